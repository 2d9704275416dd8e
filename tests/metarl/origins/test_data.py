"""A run is not resumed, opened or evaluated on other data than it was trained on."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl import runs
from metarl.algorithms import ProtoNet
from metarl.cli import main
from metarl.fewshot import NWayKShot, TableRegression
from metarl.networks import Network
from metarl.training import open_run
from metarl.training.settings import Settings
from metarl.training.start import resume, train

CLASSES, COPIES = 6, 4
SETTINGS = Settings(iterations=1, meta_batch_size=2, device="cpu")
OPTIONS = [
    "--tasks.size",
    "8",
    "--tasks.ways",
    "2",
    "--tasks.queries",
    "1",
    "--tasks.fractions",
    "0.34",
    "0.33",
    "0.33",
]


def draw(folder: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for number in range(CLASSES):
        (folder / f"class{number}").mkdir(parents=True)
        for copy in range(COPIES):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{number}" / f"{copy}.png")


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run trained in the folder ``here`` on its folder ``data``; ``there`` has another folder of that name."""
    draw(tmp_path / "here" / "data", 0)
    draw(tmp_path / "there" / "data", 1)
    monkeypatch.chdir(tmp_path / "here")
    words = [
        "train",
        "protonet",
        "images",
        "--recipe",
        "none",
        "--tasks.root",
        "data",
        *OPTIONS,
        "--out",
        "../run",
        "--quiet",
    ]
    assert main([*words, "--iterations", "1", "--meta-batch-size", "2", "--device", "cpu"]) == 0
    return tmp_path / "run"


def scores(folder: Path) -> Any:
    return json.loads((folder / runs.EVALUATION).read_text())["metrics"]["accuracy/step_1"]["per_task"]


def test_a_run_finds_its_own_data_from_another_working_folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["evaluate", str(trained), "--tasks", "9"]) == 0
    expected = scores(trained)
    monkeypatch.chdir(trained.parent / "there")
    assert main(["evaluate", "../run", "--tasks", "9"]) == 0
    assert scores(trained) == expected
    options = json.loads((trained / "config.json").read_text())["tasks"]["options"]
    assert options["root"] == str(trained.parent / "here" / "data")
    assert len(resume(trained, iterations=2).rows) == 1


def test_other_data_in_the_same_place_are_refused_unless_they_are_named(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = trained.parent / "here" / "data", trained.parent / "there" / "data"
    assert main(["evaluate", str(trained), "--tasks", "9"]) == 0
    expected = scores(trained)
    here.rename(trained.parent / "moved")
    there.rename(here)
    for ask in (lambda: open_run(trained, device="cpu"), lambda: resume(trained, iterations=3)):
        with pytest.raises(runs.RunError, match=f"{trained} was trained on other data than there are now in {here}: "):
            ask()
    for words in ([], ["--tasks.shots", "1"], ["--tasks.root", str(here)]):
        assert main(["evaluate", str(trained), "--tasks", "9", *words]) == 2
        assert "was trained on other data" in capsys.readouterr().err
    assert main(["evaluate", str(trained), "--tasks", "9", "--tasks.root", str(trained.parent / "moved")]) == 0
    assert scores(trained) == expected, "the same data elsewhere"
    here.rename(there)
    assert main(["evaluate", str(trained), "--tasks", "9", "--tasks.root", str(there)]) == 0
    assert scores(trained) != expected, "other data, as asked"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: Any = ModuleType("my_data")
    monkeypatch.setitem(sys.modules, "my_data", made)
    yield made


def test_a_table_of_a_module_that_has_changed_is_refused(tmp_path: Path, module: Any) -> None:
    inputs = torch.randn(40, 3)
    module.table = NWayKShot(inputs, torch.arange(40) % 10, ways=2)
    train(ProtoNet(network=Network(hidden=(4,))), "my_data:table", settings=SETTINGS, out=tmp_path / "run")
    module.table = NWayKShot(inputs.clone(), torch.arange(40) % 10, ways=2, shots=2)
    assert open_run(tmp_path / "run", device="cpu").iteration == 1, "the same data, read anew"
    changed = inputs.clone()
    changed[3, 1] += 1
    module.table = NWayKShot(changed, torch.arange(40) % 10, ways=2)
    with pytest.raises(
        runs.RunError, match="was trained on other data than there are now: does the family hold the same"
    ):
        open_run(tmp_path / "run", device="cpu")


def test_a_fingerprint_tells_data_apart_by_everything_that_they_hold() -> None:
    inputs, groups = torch.arange(24.0).reshape(12, 2), torch.arange(12) % 6
    family = TableRegression(inputs, inputs[:, :1], groups, shots=1)
    others = [
        TableRegression(inputs + 1, inputs[:, :1], groups, shots=1),
        TableRegression(inputs, inputs[:, 1:], groups, shots=1),
        TableRegression(inputs, inputs[:, :1], groups.flip(0), shots=1),
        TableRegression(inputs.double(), inputs[:, :1], groups, shots=1),
    ]
    assert len({one.fingerprint() for one in (family, *others)}) == 5
    assert TableRegression(inputs.clone(), inputs[:, :1], groups, shots=2).fingerprint() == family.fingerprint()


def test_a_run_of_an_earlier_version_has_no_fingerprint_and_opens(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    for name in ("data", "sha256"):
        del config[name]
    (trained / "config.json").write_text(json.dumps(config))
    assert open_run(trained, device="cpu").iteration == 1
