"""Every installed family, outer update, and algorithm with every family: the contracts, and two iterations.

All are found through the registry, so that a new plugin is covered as soon as it is installed.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl import plugins, runs, testing, training
from metarl.control.sampling import Sampling
from metarl.evaluation.scores import evaluate
from metarl.networks.options import Network
from metarl.training.settings import Settings

ALGORITHMS = [plugin.name for plugin in plugins.available("algorithms")]
FAMILIES = [plugin.name for plugin in plugins.available("tasks")]
OUTERS = [plugin.name for plugin in plugins.available("outers")]
SMALL = {
    "sampling": Sampling(episodes=2, horizon=3),
    "ways": 3,
    "shots": 2,
    "queries": 2,
    "test_queries": 2,
    "steps": 2,
    "hidden": 8,
    "network": Network(hidden=(8,)),
}
"""What families and algorithms are given for the fields that they have."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes of four images in each split."""
    root, pixels = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in "abc":
            folder = root / split / f"{split}-{name}"
            folder.mkdir(parents=True)
            for number in range(4):
                array = pixels.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(array).save(folder / f"{number}.png")
    return root


def loaded(group: plugins.Group, name: str, **options: Any) -> Any:
    target = training.source(group, name).target
    fields = {field.name: getattr(target, field.name) for field in dataclasses.fields(target)}
    fitting = {key: value for key, value in SMALL.items() if isinstance(fields.get(key, ...), type(value) | None)}
    return dataclasses.replace(target, **fitting, **options)


@pytest.fixture
def family(name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if name == "omniglot" and "METARL_DATA" not in os.environ:
        pytest.skip("omniglot needs its data: set METARL_DATA to the folder that holds omniglot/")
    if name == "images":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return loaded("tasks", name, root=images, size=8)
    if name == "table":
        rows = [f"{group},{group * row / 9},{row - group}" for group in range(12) for row in range(6)]
        (tmp_path / "table.csv").write_text("\n".join(["group,x,target", *rows]))
        return loaded("tasks", name, file=tmp_path / "table.csv")
    return loaded("tasks", name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_their_contract(family: Any, dtype: torch.dtype, float64: None) -> None:
    torch.set_default_dtype(dtype)
    testing.check_family(family)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("algorithm_name", ALGORITHMS)
def test_algorithms_keep_their_contract_or_refuse(family: Any, algorithm_name: str, float64: None) -> None:
    algorithm = loaded("algorithms", algorithm_name)
    try:
        algorithm.build(family.spec)
    except ValueError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        testing.check_algorithm(algorithm, family)
        train_and_evaluate(algorithm, family)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OUTERS)
def test_outer_updates_keep_their_contract(name: str, dtype: torch.dtype, float64: None) -> None:
    torch.set_default_dtype(dtype)
    testing.check_outer(loaded("outers", name))


def train_and_evaluate(algorithm: Any, family: Any) -> None:
    result = training.train(algorithm, family, settings=Settings(2, 2, log_every=1, device="cpu"))
    assert [row["iteration"] for row in result.rows] == [1, 2]
    found = evaluate(result.learner, result.params, family, tasks=2, steps=2)
    scores = {"regression": ("loss",), "classification": ("loss", "accuracy")}.get(family.spec.kind, ("return",))
    by_step = {f"{score}/step_{step}" for score in scores for step in range(3)}
    assert {name for name in found.metrics if not name.startswith("accuracy/instance_")} == by_step


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_are_rebuilt_from_a_configuration(name: str) -> None:
    algorithm = loaded("algorithms", name)
    assert runs.rebuild(json.loads(json.dumps(runs.describe(algorithm, name))), "algorithms") == algorithm


@pytest.mark.parametrize("name", OUTERS)
def test_outer_updates_are_rebuilt_from_a_configuration(name: str) -> None:
    outer = loaded("outers", name)
    assert runs.rebuild(json.loads(json.dumps(runs.describe(outer, name))), "outers") == outer


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_rebuilt_from_a_configuration(family: Any, name: str) -> None:
    assert runs.rebuild(json.loads(json.dumps(runs.describe(family, name))), "tasks") == family
