"""Ranges of splits, and finite training sets, of robots' families."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

from metarl import open_run, runs
from metarl.cli import main
from metarl.control import Sampling
from metarl.testing import check_family
from metarl_envs.mujoco import Dynamics, Splits
from metarl_envs.robots import AntDirection, AntGoal, AntVelocity, HalfCheetahDirection, HalfCheetahVelocity

SHORT = Sampling(2, 5)
FAMILIES: list[Any] = [
    (HalfCheetahVelocity(), (0.0, 2.0), (2.0, 3.0)),
    (AntVelocity(), (0.0, 3.0), (3.0, 4.0)),
    (AntGoal(), (-3.0, 3.0), (4.0, 5.0)),
    (AntDirection(plane=True, angle_range=(0.0, 1.0)), (0.0, 1.0), (1.0, 2.0)),
]


def drawn(family: Any, split: Any, number: int = 100, seed: int = 0) -> torch.Tensor:
    return family.sample(number, split, torch.Generator().manual_seed(seed)).descriptors


def places(family: Any, split: Any) -> torch.Tensor:
    """Return what is uniform: velocities and goals as they are, directions as their angles."""
    found = drawn(family, split)
    return torch.atan2(found[:, 1], found[:, 0]) if isinstance(family, AntDirection) else found


@pytest.mark.parametrize(("family", "train", "test"), FAMILIES, ids=lambda value: type(value).__name__)
def test_a_split_has_its_own_range_and_others_that_of_training(family: Any, train: Any, test: Any) -> None:
    changed = replace(family, splits=Splits(test_range=test))
    for split in ("train", "validation"):
        assert torch.equal(drawn(changed, split), drawn(family, split))
    (low, high), (other_low, other_high) = train, test
    expected = other_low + (places(family, "test") - low) / (high - low) * (other_high - other_low)
    torch.testing.assert_close(places(changed, "test"), expected, rtol=1e-5, atol=1e-5)
    validated = replace(family, splits=Splits(validation_range=test))
    assert torch.equal(drawn(validated, "validation"), drawn(changed, "test"))
    assert changed.spec == family.spec
    check_family(replace(changed, sampling=SHORT))


def test_the_parameter_space_covers_all_ranges() -> None:
    dynamics, wide = Dynamics(mass=(0.5, 2.0)), Splits(validation_range=(-1.0, 0.5), test_range=(2.5, 3.0))
    space = HalfCheetahVelocity(dynamics=dynamics, splits=wide).parameter_space
    assert isinstance(space["velocity"], spaces.Box)
    assert (space["velocity"].low, space["velocity"].high) == (-1.0, 3.0) and list(space) == ["velocity", "mass"]
    goals = AntGoal(splits=Splits(test_range=(8.0, 9.0)))
    assert goals.parameter_space["goal"] == spaces.Box(-3.0, 9.0, (2,), dtype="float64")  # type: ignore[arg-type]
    assert goals.camera["distance"] == AntGoal(goal_range=(-3.0, 9.0)).camera["distance"]  # pictures show test goals


@pytest.mark.parametrize("family", [family for family, _, _ in FAMILIES], ids=lambda value: type(value).__name__)
def test_training_has_a_finite_set_of_tasks_and_other_splits_have_not(family: Any) -> None:
    family = replace(family, dynamics=Dynamics(mass=(0.5, 2.0)))
    finite = replace(family, splits=Splits(train_tasks=4))
    seen = [set(map(tuple, drawn(finite, "train", 100, seed).tolist())) for seed in range(3)]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 4
    assert torch.equal(drawn(finite, "test"), drawn(family, "test"))
    assert torch.equal(drawn(finite, "train", 5), drawn(finite, "train", 40)[:5])
    larger = replace(family, splits=Splits(train_tasks=9))
    assert set(map(tuple, drawn(larger, "train").tolist())) > seen[0]


def test_a_training_set_may_hold_one_of_two_directions() -> None:
    one = HalfCheetahDirection(splits=Splits(train_tasks=1))
    assert len(drawn(one, "train").unique()) == 1 and len(drawn(one, "test").unique()) == 2
    assert sorted(drawn(HalfCheetahDirection(splits=Splits(train_tasks=2)), "train").unique().tolist()) == [-1, 1]
    with pytest.raises(ValueError, match="train_tasks=3: expected at most 2"):
        drawn(HalfCheetahDirection(splits=Splits(train_tasks=3)), "train")
    check_family(replace(one, sampling=SHORT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_range": (2.0, 1.0)}, r"test_range must be finite, low <= high, not \(2.0, 1.0\)"),
        ({"validation_range": (0.0, math.inf)}, "validation_range must be finite"),
        ({"train_tasks": 0}, "train_tasks=0: expected at least 1"),
    ],
)
def test_splits_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Splits(**options)


def test_a_range_of_what_has_none_is_refused() -> None:
    for family in (HalfCheetahDirection, AntDirection):
        with pytest.raises(ValueError, match=r"splits.test_range=\(0.0, 1.0\): .*Direction has no range of goals"):
            family(splits=Splits(test_range=(0.0, 1.0)))
    with pytest.raises(ValueError, match="is for directions in the plane"):
        AntDirection(angle_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="angle_range must be finite, low <= high"):
        AntDirection(plane=True, angle_range=(1.0, 0.0))


def test_a_run_folder_records_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = "train maml half-cheetah-velocity --iterations 1 --meta-batch-size 2 --device cpu"
    options = "--tasks.splits.test-range 2 3 --tasks.splits.train-tasks 2 --tasks.sampling.episodes 2"
    sizes = "--tasks.sampling.horizon 5 --out"
    assert main([*f"{words} {options} {sizes}".split(), str(folder)]) == 0
    recorded = json.loads((folder / "config.json").read_text())["tasks"]["options"]["splits"]
    assert recorded == {"validation_range": None, "test_range": [2.0, 3.0], "train_tasks": 2, "train_seed": 0}
    opened = open_run(folder)
    assert opened.family.splits == Splits(test_range=(2.0, 3.0), train_tasks=2)  # type: ignore[attr-defined]
    assert opened.tasks(20).parameters["velocity"].min() >= 2
    assert opened.tasks(20, "validation").parameters["velocity"].max() <= 2


def test_a_family_without_them_is_rebuilt_by_its_options_of_before() -> None:
    record = runs.describe(HalfCheetahVelocity())
    del record["options"]["splits"]
    assert runs.rebuild(record, "tasks") == HalfCheetahVelocity()
