from typing import Any

import pytest
import torch
from torch import Tensor

from metarl.fewshot.regression import Regression, TableRegression
from metarl.types import Spec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def line(inputs: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    return slope * inputs + offset


def lines(**options: Any) -> Regression:
    given: dict[str, Any] = {"function": line, "parameters": {"slope": (1.0, 3.0), "offset": (-2.0, 0.0)}} | options
    return Regression(**given)


def test_targets_are_the_functions() -> None:
    tasks = lines(inputs=(4.0, 6.0), shots=7).sample(30, "train", generator())
    slope, offset = tasks.parameters["slope"], tasks.parameters["offset"]
    assert torch.equal(tasks.descriptors, torch.stack([slope, offset], dim=1))
    for role in ("support", "query"):
        drawn = tasks.draw(role, generator())
        inputs, targets = drawn.inputs, drawn.targets
        assert inputs.shape == targets.shape == (30, 7, 1)
        torch.testing.assert_close(targets, slope[:, None, None] * inputs + offset[:, None, None])
        assert inputs.min() >= 4
        assert inputs.max() <= 6
        assert inputs.std() > 0.5
    assert lines().spec == Spec((1,), 1, "regression", 2)


def test_parameters_fill_their_ranges() -> None:
    for split in ("train", "validation", "test"):
        tasks = lines().sample(2000, split, generator())
        torch.testing.assert_close(tasks.descriptors.amin(0), torch.tensor([1.0, -2.0]), atol=0.01, rtol=0)
        torch.testing.assert_close(tasks.descriptors.amax(0), torch.tensor([3.0, 0.0]), atol=0.01, rtol=0)
        torch.testing.assert_close(tasks.descriptors.mean(0), torch.tensor([2.0, -1.0]), atol=0.05, rtol=0)


def test_points_are_fresh_and_of_the_generator() -> None:
    tasks = lines().sample(3, "train", generator())
    first, again, other = (tasks.draw("support", generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert torch.equal(lines().sample(3, "train", generator()).descriptors, tasks.descriptors)


def test_numbers_of_points() -> None:
    def sizes(family: Regression, split: Any) -> tuple[int, ...]:
        tasks = family.sample(2, split, generator())
        return tuple(tasks.draw(role, generator()).inputs.shape[1] for role in ("support", "query"))

    assert sizes(lines(), "train") == (10, 10)
    assert sizes(lines(shots=5), "test") == (5, 100)
    family = lines(shots=5, queries=4, train_shots=20, test_queries=6)
    assert (sizes(family, "train"), sizes(family, "validation")) == ((20, 4), (5, 6))


def test_support_from_half_of_the_inputs() -> None:
    tasks = lines(inputs=(0.0, 10.0), shots=50, half_range=True).sample(200, "test", generator())
    assert torch.equal(tasks.descriptors, lines().sample(200, "test", generator()).descriptors)
    support = tasks.draw("support", generator()).inputs
    low, high = support.amin((1, 2)), support.amax((1, 2))
    lower = high <= 5
    assert (lower | (low >= 5)).all()
    # Binomial(200, 1/2): standard deviation 7.
    assert 65 < lower.sum() < 135
    assert (high - low).min() > 3.5
    query = tasks.draw("query", generator()).inputs
    assert (query.amin((1, 2)) < 2).all()
    assert (query.amax((1, 2)) > 8).all()


def test_several_inputs_and_outputs(float64: None) -> None:
    family = Regression(
        lambda inputs, scale: torch.cat([inputs.sum(-1, keepdim=True), inputs[..., :1]], dim=-1) * scale,
        {"scale": (2.0, 2.0)},
        input_size=3,
        output_size=2,
    )
    assert family.spec == Spec((3,), 2, "regression", 1)
    drawn = family.sample(4, "train", generator()).draw("support", generator())
    inputs, targets = drawn.inputs, drawn.targets
    assert (inputs.shape, targets.shape, inputs.dtype) == ((4, 10, 3), (4, 10, 2), torch.float64)
    torch.testing.assert_close(targets[..., 0], 2 * inputs.sum(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": {"slope": (0.0, 1.0)}}, "the function fails for the parameters slope: .*'offset'"),
        ({"parameters": {"slope": (1.0, 0.0), "offset": (0.0, 1.0)}}, r"slope=\(1.0, 0.0\): expected the lower end"),
        ({"inputs": (1.0, 0.0)}, r"inputs=\(1.0, 0.0\): expected the lower end of the range first"),
        ({"inputs": (0.0, float("nan"))}, "inputs="),
        ({"inputs": (0.0, float("inf"))}, r"inputs=\(0.0, inf\): expected finite numbers"),
        (
            {"parameters": {"slope": (0.0, 1e39), "offset": (0.0, 1.0)}},
            r"slope=\(0.0, 1e\+39\): expected finite num",
        ),
        (
            {"function": lambda x, slope, offset: (slope * x + offset).log()},
            r"returns nan for the input \[.*values are not fin",
        ),
        (
            {"function": lambda x, slope, offset: x.double().mul(1e30 * slope).exp()},
            "the function returns inf for the input",
        ),
        ({"shots": 0}, "shots=0: expected at least 1"),
        ({"test_queries": 0}, "test_queries=0"),
        (
            {"output_size": 2},
            r"for two inputs of one task, the function returns shape \(1, 2, 1\): expected \(1, 2, 2\)",
        ),
    ],
)
def test_wrong_functions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lines(**options)


def test_a_function_may_write_into_what_it_is_given() -> None:
    def writing(inputs: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
        return inputs.mul_(slope).add_(offset.mul_(1))

    def spoiling(inputs: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
        return slope.mul_(2) * inputs + offset.zero_()

    plain, written = lines().sample(4, "test", generator()), lines(function=writing).sample(4, "test", generator())
    for role in ("support", "query"):
        expected, found = plain.draw(role, generator(1)), written.draw(role, generator(1))
        assert torch.equal(expected.inputs, found.inputs)
        torch.testing.assert_close(expected.targets, found.targets)
    spoilt = lines(function=spoiling).sample(4, "test", generator())
    before = spoilt.descriptors.clone()
    first, again = (spoilt.draw("support", generator(1)) for _ in range(2))
    assert torch.equal(spoilt.descriptors, before)
    assert torch.equal(first.targets, again.targets)


def test_trying_a_function_draws_from_no_global_generator() -> None:
    before = torch.get_rng_state()
    lines(function=lambda x, slope, offset: slope * x + offset + torch.randn_like(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_tasks() -> None:
    with pytest.raises(ValueError, match="at least one task is needed, not 0"):
        lines().sample(0, "train", generator())
    with pytest.raises(ValueError, match="at least one task is needed, not -1"):
        table().sample(-1, "train", generator())


# Tables

GROUPS = torch.tensor([4, 4, 4, 9, 9, 9, 9, 1, 1, 1] * 2)


def table(**options: Any) -> TableRegression:
    """Twenty rows: row i holds (i, -i) and the target 10 i."""
    rows = torch.arange(20)
    given: dict[str, Any] = {
        "inputs": torch.stack([rows, -rows], dim=1), "targets": 10 * rows, "groups": GROUPS, "shots": 2,
        "splits": {"train": [4, 9], "test": [1]}, "normalise": False,
    } | options  # fmt: skip
    return TableRegression(**given)


def test_rows_of_a_group() -> None:
    tasks = table(queries=4).sample(60, "train", generator())
    assert set(tasks.parameters["group"].tolist()) == {4, 9}
    assert tasks.descriptors.shape == (60, 0)
    support, query = (tasks.draw(role, generator()) for role in ("support", "query"))
    assert (support.inputs.shape, query.targets.shape) == ((60, 2, 2), (60, 4, 1))
    rows = torch.cat([support.inputs, query.inputs], dim=1)
    assert (GROUPS[rows[..., 0].long()] == tasks.parameters["group"].unsqueeze(1)).all()
    assert torch.equal(rows[..., 1], -rows[..., 0])
    assert torch.equal(torch.cat([support.targets, query.targets], dim=1), 10 * rows[..., :1])
    assert all(len(set(row)) == 6 for row in rows[..., 0].tolist())
    assert table().sample(5, "test", generator()).parameters["group"].tolist() == [1] * 5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_whole_numbers_are_no_pixels(dtype: torch.dtype) -> None:
    ages = (torch.arange(20) + 18).to(dtype)
    family = table(inputs=ages.unsqueeze(1), targets=(torch.arange(20) % 11).to(dtype))
    support = family.sample(50, "train", generator()).draw("support", generator())
    assert set(support.inputs.flatten().tolist()) <= set(ages.float().tolist())
    assert support.inputs.max() == ages.float()[GROUPS != 1].max()
    assert support.targets.max() == (1 if dtype == torch.bool else 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_distinct_values_that_become_equal_are_told(dtype: torch.dtype) -> None:
    """Float32 tells every 128th second apart, today."""
    seconds = torch.arange(20) + 1_700_000_000
    inputs = torch.stack([torch.arange(20), seconds], dim=1).to(dtype)
    told = "20 distinct values of inputs, column 1, become 1 in torch.float32: subtract 1700000009 first"
    with pytest.warns(UserWarning, match=told) as said:
        table(inputs=inputs)
    assert len(said) == 1
    with pytest.warns(UserWarning, match="distinct values of targets, column 0"):
        table(targets=seconds.to(dtype))
    table(inputs=inputs - torch.tensor([0, 1_700_000_000]).to(dtype))
    table(targets=torch.randn(20, dtype=torch.float64, generator=generator()) * 1e6)


def test_what_chance_makes_equal_is_not_told() -> None:
    values = torch.randn(200_000, 1, dtype=torch.float64, generator=generator()) + 1
    assert len(values.unique()) > len(values.float().unique())
    table(inputs=values, targets=values, groups=GROUPS.repeat(10_000))


@pytest.mark.parametrize("what", ["inputs", "targets"])
def test_numbers_that_the_cast_makes_infinite_are_refused(what: str, float64: None) -> None:
    values = torch.full((20, 1), 1e39, dtype=torch.float64)
    table(**{what: values})
    torch.set_default_dtype(torch.float32)
    with pytest.raises(
        ValueError, match=rf"{what} range from 1e\+39 to 1e\+39, which torch.float32 cannot represent: sc"
    ):
        table(**{what: values})


def test_small_groups_are_left_out_if_asked() -> None:
    """Groups 4, 9 and 1 have 6, 8 and 6 rows."""
    with pytest.warns(
        UserWarning, match="groups with fewer items than an episode takes are left out: 1 of 2 in train$"
    ):
        family = table(queries=6, drop_small=True)
    assert family.sample(20, "train", generator()).parameters["group"].unique().tolist() == [9]
    family.check_split("train")
    with pytest.raises(ValueError, match="group 4 of the train split has 6 items"):
        table(queries=6).check_split("train")


def test_rows_are_the_same_in_every_draw() -> None:
    tasks = table(shots=3, queries=1).sample(20, "train", generator())
    first, other = (tasks.draw("support", generator(seed)) for seed in (1, 2))
    assert not torch.equal(first.targets, other.targets)
    assert torch.equal(first.targets.sort(1).values, other.targets.sort(1).values)


def test_what_a_table_asks_of_a_model() -> None:
    assert table().spec == Spec((2,), 1, "regression", 0)
    assert table(targets=torch.zeros(20, 3), inputs=torch.zeros(20, 4, 4)).spec == Spec((4, 4), 3, "regression", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots=0: expected at least 1"),
        (
            {"targets": torch.zeros(19)},
            r"targets and groups have shapes \(19,\) and \(20,\): expected \[row, \*shape\]",
        ),
        (
            {"targets": torch.zeros(20, 2, 2)},
            r"targets have shape \(20, 2, 2\): expected \[row\] or \[row, output_size\]",
        ),
        ({"targets": torch.full((20,), torch.inf)}, "targets contain numbers that are not finite"),
        ({"groups": GROUPS.float()}, "labels are torch.float32"),
        ({"splits": {"train": [4], "test": [4]}}, "listed twice"),
    ],
)
def test_wrong_tables_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(**options)


def test_groups_that_cannot_fill_an_episode() -> None:
    with pytest.raises(ValueError, match="the validation split has 0 groups, but a task takes 1"):
        table().sample(1, "validation", generator())
    with pytest.raises(
        ValueError,
        match=r"group 4 of the train split has 6 items, but .* take 7 of each; ask for fewer shots or queries$",
    ):
        table(queries=5).sample(1, "train", generator())
