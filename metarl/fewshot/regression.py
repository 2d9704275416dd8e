"""Few-shot regression of functions whose parameters differ between tasks, and of tables whose rows belong to tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Generator, Tensor

from metarl.fewshot.classification import (
    check_counts,
    check_rows,
    episode_sizes,
    gather,
    is_ragged,
    masked,
    refuse_draw_alone,
    some_of,
)
from metarl.fewshot.grouping import Bounds, Count, Groups, Keys, Parted, Sizes, group, numbered, row_size
from metarl.fewshot.numbers import check_numbers, fingerprint, numbers
from metarl.fewshot.standard import Missing, check_missing, filled, in_units, standard_of
from metarl.seeding import Places, stream, uniform
from metarl.selection import drawn_in_whole, overrides, rows_of, selected
from metarl.speed import send
from metarl.types import AS_GIVEN, Examples, Role, Spec, Split, Units, Which, places

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
    shots: Count = 10
    """Support points, or a range such as 5 20, from which each task draws: batches then have a mask, and tasks a
    parameter ``shots``."""
    queries: int | None = None
    """Query points in meta-training; by default as many as shots, at most."""
    train_shots: Count | None = None
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
        tasks = self._tasks(TRIED, Bounds((TRIED, TRIED), (TRIED, TRIED)), stream(0, "function"))
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
        ragged = is_ragged(shots=self.shots, train_shots=self.train_shots)
        return Spec((self.input_size,), self.output_size, "regression", len(self.parameters), ragged=ragged)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> "FunctionTasks":
        """Sample the function's parameters. Raises ValueError for fewer than one task."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        return self._tasks(num_tasks, self._sizes[split], generator)

    @cached_property
    def _sizes(self) -> Sizes:
        return episode_sizes(self.shots, self.queries, self.train_shots, self.test_queries)

    def _tasks(self, num_tasks: int, bounds: Bounds, generator: Generator) -> "FunctionTasks":
        low, high = bounds.support
        sizes, ragged = (high, bounds.query[1]), self.spec.ragged
        # The last number chooses the half. It is always drawn, so that the parameters do not depend on half_range.
        *numbers, half = uniform(generator, num_tasks, len(self.parameters) + 1 + ragged).unbind(1)
        counts = None
        if ragged:
            if "shots" in self.parameters:
                raise ValueError("a parameter of the function is called shots, as the support points are: rename it")
            counts, half = low + ((high - low + 1) * half).long(), numbers.pop()
        ranges = zip(self.parameters.items(), numbers, strict=True)
        parameters = {name: low + (high - low) * number for (name, (low, high)), number in ranges}
        ends = torch.tensor([self.inputs] * num_tasks, dtype=torch.get_default_dtype())
        middle = ends.mean(1, keepdim=True)
        lower, upper = torch.cat([ends[:, :1], middle], 1), torch.cat([middle, ends[:, 1:]], 1)
        support = torch.where(half.unsqueeze(1) < 0.5, lower, upper) if self.half_range else ends
        told = {} if counts is None else {"shots": counts.to(torch.get_default_dtype())}
        return FunctionTasks(self.function, parameters | told, support, ends, sizes, self.input_size, counts=counts)


@dataclass(frozen=True, eq=False)
class FunctionTasks:
    """Tasks that share a function and have different parameters."""

    function: Callable[..., Tensor]
    parameters: dict[str, Tensor]  # [task] of the function, and ``shots`` where tasks differ in them
    support: Tensor  # [task, 2] range of the inputs
    query: Tensor  # [task, 2]
    sizes: tuple[int, int]  # support and query points
    input_size: int
    places: Places | None = None  # in the whole that these tasks were selected from
    counts: Tensor | None = None  # [task] support points, where tasks differ in them

    @property
    def descriptors(self) -> Tensor:
        """The function's parameters, ``[task, parameter]``."""
        return torch.stack(list(self._of_function.values()), dim=1)

    @property
    def _of_function(self) -> dict[str, Tensor]:
        return {name: values for name, values in self.parameters.items() if name != "shots" or self.counts is None}

    def select(self, tasks: Which) -> Any:
        """Return some of the tasks, as ``FunctionTasks``; they draw what they draw among all of these."""
        if overrides(self, FunctionTasks, "draw"):
            return drawn_in_whole(self, tasks)
        within = selected(self.places, tasks, len(self.support))
        of_these = places(tasks, len(self.support))
        parameters = rows_of(self.parameters, of_these)
        ranges = self.support[of_these], self.query[of_these]
        counts = None if self.counts is None else self.counts[of_these]
        return replace(self, parameters=parameters, support=ranges[0], query=ranges[1], places=within, counts=counts)

    def draw(self, role: Role, generator: Generator) -> Examples:
        """Draw new points of every task."""
        device = generator.device
        ends, items = (self.support, self.sizes[0]) if role == "support" else (self.query, self.sizes[1])
        low, high = send(ends, device).reshape(-1, 1, 2).chunk(2, dim=-1)
        inputs = low + (high - low) * uniform(generator, self.places or len(ends), items, self.input_size)
        # Copies, because a function may write into its arguments: that would change the inputs and the tasks.
        parameters = {
            name: send(values, device).reshape(-1, 1, 1).clone() for name, values in self._of_function.items()
        }
        drawn = Examples(inputs=inputs, targets=self.function(inputs.clone(), **parameters))
        if self.counts is None:
            return drawn
        counts = send(self.counts, device) if role == "support" else torch.full_like(self.counts, items, device=device)
        return masked(drawn, torch.arange(items, device=device) < counts.unsqueeze(1))


@dataclass(frozen=True, eq=False)
class TableRegression:
    """Regression on a table whose rows come in groups. Each task is one group.

    A task's support and query rows are drawn once, when the task is sampled, without overlap. Task parameter: ``group``
    ``[task]``, its number; ``names`` says which that is where groups have names. Descriptors are empty.

    Inputs and targets are in standard units: minus their mean over the rows of the training groups, divided by their
    standard deviation there. So losses are shares of the targets' variance in training. Models that ``metarl.open_run``
    fits predict in the units of the table.

    Shots and queries may be ranges, such as ``shots=(5, 20)``, for groups of different lengths: a group draws its
    number of support rows uniformly, and a short one gives what it has. Batches then have a mask, and tasks a parameter
    ``shots`` ``[task]``.

    Raises:
        ValueError: an option is out of range, shapes do not agree, values are missing, or two splits share a group.
            ``sample`` raises it for a split without groups, and for a group with too few rows for support and query.
    """

    inputs: Tensor
    """``[row, *shape]``, of any dtype."""
    targets: Tensor
    """``[row, output_size]`` or ``[row]``."""
    groups: Tensor | Sequence[Any]
    """``[row]``: the group of each row: integers, or keys of any sortable kind, such as texts."""
    shots: Count = 10
    """Support rows, or a range."""
    queries: Count | None = None
    """Query rows in meta-training; by default as many as shots. A range: as many as are left, up to its end."""
    train_shots: Count | None = None
    """Support rows in meta-training; by default as many as shots."""
    test_queries: Count | None = None
    """Query rows in validation and test; by default as many as shots."""
    splits: Mapping[Split, Sequence[Any]] | None = None
    """The groups of each split; by default a random 64, 16 and 20 % of them (``metarl.fewshot.split_classes``)."""
    names: Sequence[str] = ()
    """Names of the groups 0, 1, ...; by default the keys, or their numbers."""
    drop_small: bool = False
    """Leave out groups with fewer rows than support and query take. A warning counts them."""
    normalise: bool = True
    """Bring inputs and targets into standard units."""
    missing: Missing = "refuse"
    """What to do about missing inputs (nan): refuse them, or put the mean of the training groups there (mean)."""
    columns: Sequence[str] = ()
    """Names of the inputs' columns, for error messages."""

    def __post_init__(self) -> None:
        self._sizes  # noqa: B018  # raises ValueError for wrong numbers of rows
        if self.missing not in get_args(Missing):
            raise ValueError(f"missing={self.missing!r}: expected one of {', '.join(get_args(Missing))}")
        self._check_values()
        if self.targets.ndim > 2:
            raise ValueError(f"targets have shape {tuple(self.targets.shape)}: expected [row] or [row, output_size]")
        self._groups  # noqa: B018  # raises ValueError for wrong groups and splits
        self._rows  # noqa: B018  # warns of numbers that are lost
        if self.drop_small:
            self._groups.warn_of_small(self._sizes)

    def _check_values(self) -> None:
        keys = self._keys.numbers
        for name in ("inputs", "targets"):
            check_rows(getattr(self, name), keys, f"{name} and groups", "row")
        if self.missing == "refuse":
            hint = "fill them in, leave these rows out, or impute them with missing='mean'"
            check_missing(self.inputs, self.columns, "inputs", hint)
        check_missing(self.targets, (), "targets", "leave these rows out")

    @property
    def spec(self) -> Spec:
        """Input: a row. Output: its targets."""
        ragged = is_ragged(
            **{name: getattr(self, name) for name in ("shots", "queries", "train_shots", "test_queries")}
        )
        return Spec(tuple(self.inputs.shape[1:]), self._targets.shape[1], "regression", ragged=ragged)

    @property
    def keys(self) -> tuple[Any, ...]:
        """The keys of the groups 0, 1, ...: of task parameter ``group``."""
        return self._keys.keys

    def units(self) -> Units:
        """Return the standard units of inputs and targets; None for what is left as it is."""
        return self._units

    def with_units(self, units: Units) -> "TableRegression":
        """Return the family in the units of another one, such as that of training."""
        copy: TableRegression = in_units(self, units)
        return copy

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> "TableTasks":
        """Sample tasks. Raises ValueError for fewer than one task, and for a split that cannot fill an episode."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        bounds, pool = self._sizes[split], self._pool(split)
        # Always float64, so that the tasks of a seed do not depend on torch's default dtype.
        size, ragged = row_size(1, bounds.most), self.spec.ragged
        numbers = uniform(generator, num_tasks, size + ragged, dtype=torch.float64)
        if not ragged:
            groups, rows = (one.squeeze(1) for one in self._groups.choose(pool, 1, bounds.most, numbers))
            support = bounds.support[1]
            parameters = {"group": self._groups.labels[groups]}
            return TableTasks(*self._rows, rows[:, :support], rows[:, support:], parameters, units=self._units)
        groups, *parts = self._groups.choose_unequal(pool, 1, bounds, numbers[:, :size], numbers[:, size:])
        support_rows, query_rows = (Parted(part.items.squeeze(1), part.known.squeeze(1)) for part in parts)
        shots = support_rows.known.sum(1).to(torch.get_default_dtype())
        parameters = {"group": self._groups.labels[groups.squeeze(1)], "shots": shots}
        tasks = TableTasks(*self._rows, support_rows.items, query_rows.items, parameters)
        return replace(tasks, support_known=support_rows.known, query_known=query_rows.known, units=self._units)

    def check_split(self, split: Split) -> None:
        """Raise ValueError if a split has groups but cannot fill an episode."""
        if len(self._groups.pools[split]):
            self._pool(split)

    def fingerprint(self) -> str:
        """Return a digest of the rows and their groups. A run is only used with the data that it was trained on."""
        return fingerprint(self.inputs, self.targets, self._keys.numbers)

    def _pool(self, split: Split) -> Tensor:
        return self._groups.pool(split, 1, self._sizes[split].least, self.drop_small)

    @cached_property
    def _units(self) -> Units:
        """Mean and standard deviation of the rows of the training groups, as far as they are used."""
        if not self.normalise:
            return Units()
        training = self._groups.training_rows("rows")
        inputs = standard_of(self.inputs[training], fills=self.missing == "mean")
        return Units(inputs, standard_of(self._targets[training]))

    @cached_property
    def _sizes(self) -> Sizes:
        return episode_sizes(self.shots, self.queries, self.train_shots, self.test_queries)

    @cached_property
    def _targets(self) -> Tensor:
        return self.targets.reshape(len(self.targets), -1)

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets as tasks have them: in standard units, or as they were given."""
        rows = []
        for name, values, standard in zip(
            ("inputs", "targets"), (self.inputs, self._targets), self._units, strict=True
        ):
            if standard is not None:
                values = standard.apply(values)
            elif self.missing == "mean":
                values = filled(values, standard_of(values[self._groups.rows("train")]).mean)
            check_numbers(values, name)
            rows.append(values)
        return rows[0], rows[1]

    @cached_property
    def _keys(self) -> "Keys":
        return numbered(self.groups)

    @cached_property
    def _groups(self) -> Groups:
        keys, splits = self._keys, self.splits
        if splits is not None and keys.keys:
            splits = {split: [keys.number(key) for key in some] for split, some in splits.items()}
        names = self.names or tuple(map(str, keys.keys))
        return group(keys.numbers, splits, names, words=("group", "groups"))


@dataclass(frozen=True, eq=False)
class TableTasks:
    """Tasks made of rows: the positions of each task's support and query rows in a table."""

    inputs: Tensor  # [row, *shape], the rows of all tasks
    targets: Tensor  # [row, output_size]
    support: Tensor  # [task, row] positions in the table
    query: Tensor  # [task, row]
    parameters: dict[str, Tensor]
    places: Places | None = None  # in the whole that these tasks were selected from
    support_known: Tensor | None = None  # [task, row] bool: not padding; None: none is
    query_known: Tensor | None = None  # [task, row]
    units: Units = AS_GIVEN  # of inputs and targets

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
        keys = uniform(generator, self.places or len(chosen), chosen.shape[1])
        known = self.support_known if role == "support" else self.query_known
        known = None if known is None else send(known, device)
        order = (keys if known is None else torch.where(known, keys, 2)).argsort(1)  # padding comes last
        rows = chosen.gather(1, order)
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            inputs, targets = (numbers(gather(values, rows[part]), 1) for values in (self.inputs, self.targets))
            drawn = Examples(inputs=inputs, targets=targets)
            yield drawn if known is None else masked(drawn, known[part].gather(1, order[part]))
