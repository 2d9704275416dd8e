"""Model files: what damages them is told in one line, and nothing in them is run."""

import json
from pathlib import Path

import pytest
import torch

import metarl
from metarl import runs, safety
from metarl.algorithms.protonet import ProtoNet
from metarl.fewshot import NWayKShot
from metarl.networks import Network
from metarl.runs import RunError

FAMILY = NWayKShot(torch.rand(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) // 6, ways=2)
SUPPORT = FAMILY.inputs[:12], ["a"] * 6 + ["b"] * 6


@pytest.fixture
def file(tmp_path: Path) -> Path:
    algorithm = ProtoNet(network=Network(hidden=(8,)))
    learner = algorithm.build(FAMILY.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    trained = metarl.Trained(algorithm, FAMILY, learner, params, torch.device("cpu"), 7, origin="runs/dots")
    return trained.fit(*SUPPORT).save(tmp_path / "deep" / "model")


def rewritten(file: Path, **changes: object) -> None:
    contents = runs.load_checkpoint(file)
    record = json.loads(contents["model"])
    record.update(changes.pop("record", {}))
    runs.save_checkpoint(file, {**contents, "model": json.dumps(record), **changes})


def refused(file: Path) -> str:
    with pytest.raises(RunError) as caught:
        metarl.load_model(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_card_tells_where_a_model_comes_from(file: Path) -> None:
    told = json.loads(file.with_name("model.card.json").read_text())
    assert (told["algorithm"], told["family"], told["iteration"], told["run"]) == (
        "ProtoNet",
        "NWayKShot",
        7,
        "runs/dots",
    )
    assert told["scores"] == {"examples": 12, "accuracy/support": metarl.load_model(file).score(*SUPPORT)}
    assert told["versions"]["torch"] == torch.__version__
    assert told["classes"] == ["a", "b"]
    assert "| run | runs/dots |" in file.with_name("model.card.md").read_text()
    assert metarl.load_model(file).card.record() == {name: told[name] for name in metarl.load_model(file).card.record()}


def test_a_file_that_is_cut_or_changed_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(file)
    changed = bytearray(whole)
    changed[len(whole) // 3] ^= 1
    file.write_bytes(bytes(changed))
    assert "damaged" in refused(file)
    assert "does not exist" in refused(file.with_name("other"))
    file.write_text("no model")
    assert "cannot be read" in refused(file)


def test_wrong_contents_are_refused(file: Path) -> None:
    contents = runs.load_checkpoint(file)
    params = {name: torch.full_like(value, torch.nan) for name, value in contents["params"].items()}
    rewritten(file, params=params)
    assert "not finite" in refused(file)
    rewritten(file, params={name: value[:1] for name, value in contents["params"].items()})
    assert "another architecture" in refused(file)
    rewritten(file, params={name: 2 * value + 1 for name, value in contents["params"].items()})
    assert "other outputs than when it was saved" in refused(file)
    rewritten(file, params=contents["params"], record={"model": 2})
    assert "format 2" in refused(file)
    rewritten(file, record={"model": 1, "kind": "other"})
    assert "damaged, or no model file" in refused(file)
    runs.save_checkpoint(file, {"params": {}, "buffers": {}})
    assert "a checkpoint of a run" in refused(file)


def test_code_of_others_is_not_imported(file: Path) -> None:
    contents = json.loads(runs.load_checkpoint(file)["model"])
    algorithm = contents["algorithm"] | {"reference": "os:system"}
    unsigned = {name: value for name, value in contents.items() if name != safety.SIGNATURE}
    runs.save_checkpoint(file, {**runs.load_checkpoint(file), "model": json.dumps(unsigned | {"algorithm": algorithm})})
    assert "os:system (algorithm)" in refused(file)
    assert "--allow-code" in refused(file)


def test_classes_that_no_file_holds_are_refused(file: Path) -> None:
    model = metarl.load_model(file)
    model.fit(FAMILY.inputs[:12], [frozenset("a")] * 6 + [frozenset("b")] * 6)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="frozenset, which no file holds without code"):
        model.save(file)
    assert file.read_bytes() == before
