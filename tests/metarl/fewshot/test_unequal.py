"""Tasks of unequal size: ways and shots as ranges, classes and groups of different sizes, keys and missing values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from metarl import testing
from metarl.algorithms import MAML
from metarl.evaluation import evaluate
from metarl.fewshot import NWayKShot, Regression, TableRegression, picture
from metarl.pictures import plotting
from metarl.selection import select_tasks
from metarl.testing.batches import batch_faults
from metarl.types import Examples, Role

SIZES = [3, 5, 9, 20, 4, 8, 30, 6, 7, 12]
"""Items of the classes or groups 0, 1, ..., 9."""
LABELS = torch.arange(10).repeat_interleave(torch.tensor(SIZES))
CLASSES = {"train": range(5), "validation": (), "test": range(5, 10)}
ROLES: tuple[Role, Role] = ("support", "query")


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def classes(**options: Any) -> NWayKShot:
    """Item i is (i, its label)."""
    inputs = torch.stack([torch.arange(len(LABELS)), LABELS], dim=1).float()
    given = {"ways": (2, 4), "shots": (1, 6), "queries": (1, 3), "test_queries": 2, "classes": CLASSES}
    return NWayKShot(inputs, LABELS, **given | options)


def groups(**options: Any) -> TableRegression:
    """Row i is (i, -i), with the target 10 i."""
    rows = torch.arange(len(LABELS)).float()
    given = {"shots": (1, 6), "queries": (1, 4), "splits": CLASSES, "normalise": False}
    return TableRegression(torch.stack([rows, -rows], 1), 10 * rows, LABELS, **given | options)


def items(examples: Examples, task: int) -> list[int]:
    return [int(item) for item in examples.inputs[task, : int(examples.counts[task]), 0].tolist()]


def test_classes_of_different_sizes_give_what_they_have() -> None:
    family = classes()
    assert family.spec.ragged
    assert family.spec.output_size == 4
    tasks = family.sample(300, "train", generator())
    support, query = (tasks.draw(role, generator(1)) for role in ROLES)
    ways, seen = tasks.parameters["ways"], set()
    assert ways.unique().tolist() == [2, 3, 4]
    for task in range(300):
        own, others = items(support, task), items(query, task)
        assert len({*own, *others}) == len(own) + len(others), "no item comes twice"
        of_way = tasks.parameters["classes"][task].tolist()
        assert [label == -1 for label in of_way] == [way >= ways[task] for way in range(4)]
        for batch, found in ((support, own), (query, others)):
            assert [of_way[way] for way in batch.targets[task, : len(found)].tolist()] == LABELS[found].tolist()
        for label in of_way[: int(ways[task])]:
            shots = sum(int(LABELS[item]) == label for item in own)
            queries = sum(int(LABELS[item]) == label for item in others)
            assert 1 <= shots <= min(6, SIZES[label] - 1)
            assert queries == min(3, SIZES[label] - shots)
            seen.add((label, shots))
        assert tasks.parameters["shots"][task] == pytest.approx(len(own) / int(ways[task]))
    assert seen == {(label, shots) for label in range(5) for shots in range(1, min(6, SIZES[label] - 1) + 1)}


def test_numbers_of_shots_and_ways_are_uniform() -> None:
    tasks = classes(ways=(2, 3), classes={"train": [2, 3, 6]}).sample(6000, "train", generator())
    assert tasks.support_known is not None
    shots = tasks.support_known.sum(-1)[:, 0].bincount(minlength=7)[1:]
    assert (shots - 1000).abs().max() < 150  # binomial: standard deviation 29
    assert abs(int((tasks.parameters["ways"] == 2).sum()) - 3000) < 200


def test_a_split_of_few_classes_has_tasks_of_so_many_at_most() -> None:
    family = classes(ways=(2, 9))
    tasks = family.sample(100, "test", generator())
    assert tasks.parameters["ways"].max() == 5
    assert family.spec.output_size == 9
    with pytest.raises(ValueError, match="the test split has 1 classes, but a task takes 2"):
        classes(classes={"train": range(9), "test": [9]}).sample(1, "test", generator())


def test_groups_of_different_lengths_give_what_they_have() -> None:
    tasks = groups().sample(200, "train", generator())
    support, query = (tasks.draw(role, generator(1)) for role in ROLES)
    for task, (group, shots) in enumerate(zip(*tasks.parameters.values(), strict=True)):
        own, others = items(support, task), items(query, task)
        assert len(own) == shots
        assert 1 <= shots <= min(6, SIZES[group] - 1)
        assert len(others) == min(4, SIZES[group] - len(own))
        assert len({*own, *others}) == len(own) + len(others)
        assert {int(LABELS[item]) for item in own + others} == {int(group)}
        assert support.targets[task, : len(own), 0].tolist() == [10.0 * item for item in own]
    assert (support.inputs[support.mask == 0] == 0).all()


@pytest.mark.parametrize("family", [classes(), classes(rotations="none", ways=3), groups()])
def test_some_tasks_draw_what_they_draw_among_all(family: Any) -> None:
    tasks = family.sample(12, "train", generator())
    some = select_tasks(tasks, [7, 2])
    for role in ROLES:
        whole, part = tasks.draw(role, generator(3)), some.draw(role, generator(3))
        for name in ("inputs", "targets", "mask"):
            assert torch.equal(getattr(whole, name)[[7, 2]], getattr(part, name))
    halves = list(tasks.draw_groups("support", generator(3), 5))
    assert torch.equal(torch.cat([half.mask for half in halves]), tasks.draw("support", generator(3)).mask)


def test_points_of_functions_differ_in_their_number() -> None:
    lines = Regression(lambda inputs, slope: slope * inputs, {"slope": (1.0, 2.0)}, shots=(2, 5), test_queries=7)
    tasks = lines.sample(50, "test", generator())
    support, query = (tasks.draw(role, generator(1)) for role in ROLES)
    assert support.counts.tolist() == tasks.parameters["shots"].tolist()
    assert support.counts.unique().tolist() == [2, 3, 4, 5]
    assert query.counts.tolist() == [7] * 50
    assert tasks.descriptors.shape == (50, 1)
    assert torch.equal(support.targets, tasks.parameters["slope"].reshape(-1, 1, 1) * support.inputs)
    with pytest.raises(ValueError, match="is called shots"):
        Regression(lambda inputs, shots: shots * inputs, {"shots": (1.0, 2.0)}, shots=(2, 5)).sample(
            1, "train", generator()
        )


@pytest.mark.parametrize(
    "family",
    [classes(), groups(), Regression(lambda x, slope: slope * x, {"slope": (1.0, 2.0)}, shots=(2, 5))],
    ids=["classes", "groups", "functions"],
)
def test_families_of_unequal_tasks_hold_the_contract(family: Any) -> None:
    testing.check_family(family)


def test_scores_of_unequal_tasks_do_not_depend_on_the_others() -> None:
    family = groups()
    learner = MAML(step_size=0.0001).build(family.spec)
    params = learner.init(generator())
    ten, five = (evaluate(learner, params, family, tasks, 2).scores["loss"] for tasks in (10, 5))
    torch.testing.assert_close(ten[:, :5], five)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": (0, 3)}, r"shots=\(0, 3\): expected at least 1"),
        ({"shots": (4, 3)}, r"shots=\(4, 3\): expected the lower end of the range first"),
        ({"ways": (1, 3)}, r"ways=\(1, 3\): a task has at least 2 classes"),
        ({"train_ways": (4, 3)}, "expected the lower end of the range first"),
        ({"shots": (3, 4), "classes": {"train": range(5)}}, "class 0 of the train split has 3 items"),
    ],
)
def test_wrong_ranges_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classes(**options).sample(1, "train", generator())


# Keys, missing values and units of tables


def test_groups_may_have_names() -> None:
    names = [f"school {chr(ord('j') - label)}" for label in LABELS.tolist()]
    splits = {"train": ["school a", "school d"], "test": ["school c"]}
    family = TableRegression(
        LABELS.float().unsqueeze(1), LABELS.float(), names, shots=1, queries=1, splits=splits, normalise=False
    )
    assert family.keys == tuple(f"school {letter}" for letter in "abcdefghij")
    tasks = family.sample(20, "train", generator())
    assert {family.keys[number] for number in tasks.parameters["group"].tolist()} == {"school a", "school d"}
    assert set(tasks.draw("support", generator()).targets.flatten().tolist()) == {9.0, 6.0}
    with pytest.raises(ValueError, match=r"the splits list the group 'school z', which no item has"):
        TableRegression(LABELS.float().unsqueeze(1), LABELS.float(), names, splits={"train": ["school z"]})
    with pytest.raises(ValueError, match=r"group 'school j' of the train split has 3 items"):
        TableRegression(
            LABELS.float().unsqueeze(1), LABELS.float(), names, splits={"train": ["school j"]}, shots=2
        ).sample(1, "train", generator())
    with pytest.raises(ValueError, match=r"the group of 2 rows is missing, first of row 1"):
        TableRegression(torch.zeros(4, 1), torch.zeros(4), ["a", None, float("nan"), "b"], shots=1)
    with pytest.raises(ValueError, match="the groups cannot be sorted"):
        TableRegression(torch.zeros(2, 1), torch.zeros(2), ["a", 1], shots=1)


HOLES = torch.tensor([[1.0, 10], [3, torch.nan], [torch.nan, 30], [100, 100]])


def holes(**options: Any) -> TableRegression:
    splits = {"train": [0], "test": [1]}
    given = {"shots": 1, "splits": splits, "columns": ["age", "height"]}
    return TableRegression(HOLES, torch.arange(4.0), torch.tensor([0, 0, 0, 1]), **given | options)


def test_missing_values_are_refused_by_name_or_imputed() -> None:
    told = r"inputs, column 'age' and 1 more columns: 1 of 4 values are missing, first in row 2: fill them in"
    with pytest.raises(ValueError, match=told):
        holes()
    family = holes(missing="mean", normalise=False, shots=2, queries=1)
    drawn = [family.sample(1, "train", generator()).draw(role, generator()) for role in ROLES]
    rows = {tuple(row) for batch in drawn for row in batch.inputs.flatten(0, 1).tolist()}
    assert rows <= {(1.0, 10.0), (3.0, 20.0), (2.0, 30.0)}
    with pytest.raises(ValueError, match=r"targets, column 0: 1 of 4 values are missing, first in row 3"):
        TableRegression(HOLES[:, :1] * 0, torch.tensor([0, 1, 2, torch.nan]), torch.arange(4), missing="mean", shots=1)
    with pytest.raises(ValueError, match="missing='median': expected one of refuse, mean"):
        holes(missing="median")


def test_standard_units_are_those_of_the_training_groups() -> None:
    family = holes(missing="mean")
    inputs, targets = family.units()
    assert inputs is not None
    assert targets is not None
    assert (inputs.mean.tolist(), inputs.std.tolist()) == ([2.0, 20.0], [1.0, 10.0])
    assert targets.mean.tolist() == [1.0]
    assert targets.std.item() == pytest.approx((2 / 3) ** 0.5)
    drawn = family.sample(1, "train", generator()).draw("support", generator())
    assert drawn.inputs.flatten().tolist() in ([-1.0, -1.0], [1.0, 0.0], [0.0, 1.0])
    assert inputs.undo(drawn.inputs).flatten().tolist() in ([1.0, 10.0], [3.0, 20.0], [2.0, 30.0])
    other = holes(missing="mean", splits={"train": [1], "test": [0]}).with_units(family.units())
    assert other.units() is family.units()


def test_large_numbers_lose_nothing_in_standard_units() -> None:
    seconds = torch.arange(20, dtype=torch.float64).unsqueeze(1) + 1_700_000_000
    family = TableRegression(seconds, seconds, torch.arange(20) % 4, shots=1, splits={"train": range(4)})
    drawn = family.sample(400, "train", generator()).draw("support", generator())
    assert len(drawn.inputs.unique()) == 20


def test_a_constant_column_is_zero_in_standard_units() -> None:
    rows = torch.full((20, 1), 0.1)
    family = TableRegression(rows, torch.arange(20.0), torch.arange(20) % 4, shots=1, splits={"train": range(4)})
    assert family.sample(9, "train", generator()).draw("support", generator()).inputs.abs().max() < 1e-6


def test_a_mask_that_the_spec_does_not_tell_of_is_found() -> None:
    inputs = torch.zeros(2, 3, 2)
    batch = Examples(inputs=inputs, targets=torch.zeros(2, 3, 1), mask=torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    found = [fault.message for fault in batch_faults(batch, groups(shots=2, queries=2).spec, 2)]
    assert any("spec.ragged is False" in message for message in found)
    assert any("mask rises, or begins with 0" in message for message in found)


def test_padding_is_not_drawn(tmp_path: Path) -> None:
    """A padded picture would be an item of class 0 more."""
    pixels = torch.rand(len(LABELS), 1, 4, 4, generator=generator())
    family = NWayKShot(pixels, LABELS, ways=(2, 3), shots=(1, 3), queries=(1, 2), classes=CLASSES, normalise=True)
    assert picture(family.sample(4, "train", generator()), [], tmp_path / "tasks.png").stat().st_size > 1000
    images, padded = np.random.default_rng(0).random((4, 1, 4, 4)), np.array([0, 1, 1, -1])
    first, other = (plotting._mosaic(images[:count], padded[:count], 5) for count in (3, 4))
    assert np.array_equal(first, other)
    assert first.shape == (2 * 6, 2 * 6, 3)
