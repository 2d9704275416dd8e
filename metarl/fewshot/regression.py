"""Few-shot regression of functions whose parameters differ between tasks, and of tables whose rows belong to tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from metarl.fewshot.classification import check_counts, check_items, episode_sizes, gather, refuse_draw_alone, some_of
from metarl.fewshot.grouping import Classes, Groups, Sizes, group, row_size
from metarl.fewshot.numbers import fingerprint, numbers
from metarl.seeding import Places, stream, uniform
from metarl.selection import drawn_in_whole, overrides, rows_of, selected
from metarl.speed import send
from metarl.types import Examples, Role, Spec, Split, Which, places

POINTS = ("inputs", "shots", "queries", "train_shots", "test_queries", "half_range")
"""Options of ``Regression`` that families built on it share."""
TRIED = 64
"""Tasks, and points of each, at which a function is evaluated to check it."""


@dataclass(frozen=True)
class Regression:
    """Regression of a function. Tasks differ in its parameters, each uniform in its range.

    Inputs are uniform too, and new in every draw. The descriptor is the parameters, in their order. All splits have the
    same distribution.

    Raises:
        ValueError: an option is out of range; the function does not accept the parameters, returns another shape, or
            returns numbers that are not finite at some of many random points.
    """

    function: Callable[..., Tensor]
    """``function(inputs [task, item, input_size], name=[task, 1, 1], ...)`` returns ``[task, item, output_size]``."""
    parameters: Mapping[str, tuple[float, float]]
    """Range of each parameter of the function."""
    inputs: tuple[float, float] = (-5.0, 5.0)
    """Range of the inputs."""
    input_size: int = 1
    """Numbers per input."""
    output_size: int = 1
    """Numbers per target."""
    shots: int = 10
    """Support points."""
    queries: int | None = None
    """Query points in meta-training; by default as many as shots."""
    train_shots: int | None = None
    """Support points in meta-training; by default as many as shots."""
    test_queries: int = 100
    """Query points in validation and test. More points measure the error over all inputs more precisely."""
    half_range: bool = False
    """Draw support points from one half of the inputs, lower or upper at random, and queries from all inputs."""

    def __post_init__(self) -> None:
        check_counts(input_size=self.input_size, output_size=self.output_size)
        self._sizes  # noqa: B018  # raises ValueError for wrong numbers of points
        for name, (low, high) in {**self.parameters, "inputs": self.inputs}.items():
            if not low <= high:
                raise ValueError(f"{name}=({low}, {high}): expected the lower end of the range first")
            if not torch.tensor([low, high], dtype=torch.get_default_dtype()).isfinite().all():
                raise ValueError(f"{name}=({low}, {high}): expected finite numbers")
        with torch.random.fork_rng(devices=[]):  # a function with noise may draw from the global generator
            self._check_function()
            self._check_values()

    def _check_function(self) -> None:
        lowest = {name: torch.full((1, 1, 1), float(low)) for name, (low, _) in self.parameters.items()}
        try:
            shape = tuple(self.function(torch.zeros(1, 2, self.input_size), **lowest).shape)
        except Exception as error:
            raise ValueError(f"the function fails for the parameters {', '.join(lowest)}: {error}") from error
        if shape != (1, 2, self.output_size):
            raise ValueError(
                f"for two inputs of one task, the function returns shape {shape}: expected {(1, 2, self.output_size)}"
            )

    def _check_values(self) -> None:
        tasks = self._tasks(TRIED, (TRIED, TRIED), stream(0, "function"))
        drawn = tasks.draw("query", stream(1, "function"))
        inputs, targets = drawn.inputs, drawn.targets
        wrong = (~targets.isfinite()).nonzero()
        if len(wrong):
            task, item, output = wrong[0].tolist()
            value, place = targets[task, item, output], inputs[task, item].tolist()
            raise ValueError(
                f"the function returns {value:g} for the input {place}, and "
                f"{len(wrong) / targets.numel():.1%} of its values are not finite: narrow the ranges of inputs or "
                "parameters"
            )

    @property
    def spec(self) -> Spec:
        """Input: a point. Output: the function's value there. Descriptor: the function's parameters."""
        return Spec((self.input_size,), self.output_size, "regression", len(self.parameters))

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> "FunctionTasks":
        """Sample the function's parameters. Raises ValueError for fewer than one task."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        return self._tasks(num_tasks, self._sizes[split], generator)

    @cached_property
    def _sizes(self) -> Sizes:
        return episode_sizes(self.shots, self.queries, self.train_shots, self.test_queries)

    def _tasks(self, num_tasks: int, sizes: tuple[int, int], generator: Generator) -> "FunctionTasks":
        # The last number chooses the half. It is always drawn, so that the parameters do not depend on half_range.
        *numbers, half = uniform(generator, num_tasks, len(self.parameters) + 1).unbind(1)
        ranges = zip(self.parameters.items(), numbers, strict=True)
        parameters = {name: low + (high - low) * number for (name, (low, high)), number in ranges}
        ends = torch.tensor([self.inputs] * num_tasks, dtype=torch.get_default_dtype())
        middle = ends.mean(1, keepdim=True)
        lower, upper = torch.cat([ends[:, :1], middle], 1), torch.cat([middle, ends[:, 1:]], 1)
        support = torch.where(half.unsqueeze(1) < 0.5, lower, upper) if self.half_range else ends
        return FunctionTasks(self.function, parameters, support, ends, sizes, self.input_size)


@dataclass(frozen=True, eq=False)
class FunctionTasks:
    """Tasks that share a function and have different parameters."""

    function: Callable[..., Tensor]
    parameters: dict[str, Tensor]  # [task]
    support: Tensor  # [task, 2] range of the inputs
    query: Tensor  # [task, 2]
    sizes: tuple[int, int]  # support and query points
    input_size: int
    places: Places | None = None  # in the whole that these tasks were selected from

    @property
    def descriptors(self) -> Tensor:
        """The parameters, ``[task, parameter]``."""
        return torch.stack(list(self.parameters.values()), dim=1)

    def select(self, tasks: Which) -> Any:
        """Return some of the tasks, as ``FunctionTasks``; they draw what they draw among all of these."""
        if overrides(self, FunctionTasks, "draw"):
            return drawn_in_whole(self, tasks)
        within = selected(self.places, tasks, len(self.support))
        of_these = places(tasks, len(self.support))
        parameters = rows_of(self.parameters, of_these)
        ranges = self.support[of_these], self.query[of_these]
        return replace(self, parameters=parameters, support=ranges[0], query=ranges[1], places=within)

    def draw(self, role: Role, generator: Generator) -> Examples:
        """Draw new points of every task."""
        device = generator.device
        ends, items = (self.support, self.sizes[0]) if role == "support" else (self.query, self.sizes[1])
        low, high = send(ends, device).reshape(-1, 1, 2).chunk(2, dim=-1)
        inputs = low + (high - low) * uniform(generator, self.places or len(ends), items, self.input_size)
        # Copies, because a function may write into its arguments: that would change the inputs and the tasks.
        parameters = {name: send(values, device).reshape(-1, 1, 1).clone() for name, values in self.parameters.items()}
        return Examples(inputs=inputs, targets=self.function(inputs.clone(), **parameters))


@dataclass(frozen=True, eq=False)
class TableRegression:
    """Regression on a table whose rows come in groups. Each task is one group.

    A task's support and query rows are drawn once, when the task is sampled, without overlap. Task parameter: ``group``
    ``[task]``. Descriptors are empty.

    Raises:
        ValueError: an option is out of range, shapes do not agree, or two splits share a group. ``sample`` raises it
            for a split without groups, and for a group with too few rows for support and query.
    """

    inputs: Tensor
    """``[row, *shape]``, of any dtype. They are not scaled here: scale them before."""
    targets: Tensor
    """``[row, output_size]`` or ``[row]``. They are not scaled either."""
    groups: Tensor
    """``[row]``: the group of each row, an integer."""
    shots: int = 10
    """Support rows."""
    queries: int | None = None
    """Query rows in meta-training; by default as many as shots."""
    train_shots: int | None = None
    """Support rows in meta-training; by default as many as shots."""
    test_queries: int | None = None
    """Query rows in validation and test; by default as many as shots."""
    splits: Classes | None = None
    """The groups of each split; by default a random 64, 16 and 20 % of them (``metarl.fewshot.split_classes``)."""
    names: Sequence[str] = ()
    """Names of the groups 0, 1, ... for error messages; by default their numbers."""
    drop_small: bool = False
    """Leave out groups with fewer rows than support and query take. A warning counts them."""

    def __post_init__(self) -> None:
        self._sizes  # noqa: B018  # raises ValueError for wrong numbers of rows
        check_items(self.inputs, self.groups, "inputs and groups", "row")
        check_items(self.targets, self.groups, "targets and groups", "row")
        if self.targets.ndim > 2:
            raise ValueError(f"targets have shape {tuple(self.targets.shape)}: expected [row] or [row, output_size]")
        self._groups  # noqa: B018  # raises ValueError for wrong groups and splits
        if self.drop_small:
            self._groups.warn_of_small(self._sizes)

    @property
    def spec(self) -> Spec:
        """Input: a row. Output: its targets."""
        return Spec(tuple(self.inputs.shape[1:]), self._targets.shape[1], "regression")

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> "TableTasks":
        """Sample tasks. Raises ValueError for fewer than one task, and for a split that cannot fill an episode."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        support, query = self._sizes[split]
        # Always float64, so that the tasks of a seed do not depend on torch's default dtype.
        numbers = uniform(generator, num_tasks, row_size(1, support + query), dtype=torch.float64)
        chosen = self._groups.choose(self._pool(split), 1, support + query, numbers)
        groups, rows = (of_one.squeeze(1) for of_one in chosen)
        parameters = {"group": self._groups.labels[groups]}
        return TableTasks(self.inputs, self._targets, rows[:, :support], rows[:, support:], parameters)

    def check_split(self, split: Split) -> None:
        """Raise ValueError if a split has groups but cannot fill an episode."""
        if len(self._groups.pools[split]):
            self._pool(split)

    def fingerprint(self) -> str:
        """Return a digest of the rows and their groups. A run is only used with the data that it was trained on."""
        return fingerprint(self.inputs, self.targets, self.groups)

    def _pool(self, split: Split) -> Tensor:
        return self._groups.pool(split, 1, sum(self._sizes[split]), self.drop_small)

    @cached_property
    def _sizes(self) -> Sizes:
        return episode_sizes(self.shots, self.queries, self.train_shots, self.test_queries)

    @cached_property
    def _targets(self) -> Tensor:
        return self.targets.reshape(len(self.targets), -1)

    @cached_property
    def _groups(self) -> Groups:
        return group(self.groups, self.splits, self.names, words=("group", "groups"))


@dataclass(frozen=True, eq=False)
class TableTasks:
    """Tasks made of rows: the positions of each task's support and query rows in a table."""

    inputs: Tensor  # [row, *shape], the rows of all tasks
    targets: Tensor  # [row, output_size]
    support: Tensor  # [task, row] positions in the table
    query: Tensor  # [task, row]
    parameters: dict[str, Tensor]
    places: Places | None = None  # in the whole that these tasks were selected from

    def __init_subclass__(cls) -> None:
        refuse_draw_alone(cls)

    def select(self, tasks: Which) -> Any:
        """Return some of the tasks, as ``TableTasks``; they draw what they draw among all of these."""
        return some_of(self, tasks, TableTasks)

    @property
    def descriptors(self) -> Tensor:
        """Empty: ``[task, 0]``."""
        return torch.zeros(len(self.support), 0)

    @property
    def items(self) -> int:
        """Rows per task, support and query together."""
        return self.support.shape[1] + self.query.shape[1]

    def draw(self, role: Role, generator: Generator) -> Examples:
        """Return all rows of a role in random order. Every draw returns the same rows."""
        return next(self.draw_groups(role, generator, len(self.support)))

    def draw_groups(self, role: Role, generator: Generator, size: int) -> Iterator[Examples]:
        """Yield what ``draw`` returns, ``size`` tasks at a time: the rows of all tasks may not fit in memory."""
        device = generator.device
        chosen = send(self.support if role == "support" else self.query, device)
        rows = chosen.gather(1, uniform(generator, self.places or len(chosen), chosen.shape[1]).argsort(1))
        for part in torch.split(rows, size):
            inputs, targets = (numbers(gather(values, part), 1) for values in (self.inputs, self.targets))
            yield Examples(inputs=inputs, targets=targets)
