"""Few-shot regression: of functions whose parameters differ between tasks, or of a table whose rows belong to tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from metarl.fewshot.classification import check_counts, check_items, episode_items, gather, refuse_draw_alone
from metarl.fewshot.grouping import SPLITS, Classes, Groups, group
from metarl.fewshot.numbers import numbers
from metarl.seeding import stream
from metarl.speed import send
from metarl.types import Examples, Learner, Role, Spec, Split, State

LOOKED_AT = 64
"""Tasks, and points of each, at which a function is tried."""


@dataclass(frozen=True)
class Regression:
    """Regression of a function: tasks differ in its parameters, each uniform in its range.

    Inputs are uniform too, and fresh in every draw. The descriptor is the parameters, in their order. The splits share
    one distribution.

    Raises:
        ValueError: an option is out of range; the function takes other parameters, gives another shape, or, at some of
            many random points, numbers that are not finite.
    """

    function: Callable[..., Tensor]
    """``function(inputs [task, item, input_size], name=[task, 1, 1], ...)`` gives ``[task, item, output_size]``."""
    parameters: Mapping[str, tuple[float, float]]
    """Ends of the range of each of the function's parameters."""
    inputs: tuple[float, float] = (-5.0, 5.0)
    """Ends of the range of inputs."""
    input_size: int = 1
    """Numbers in an input."""
    output_size: int = 1
    """Numbers in a target."""
    shots: int = 10
    """Support points."""
    queries: int | None = None
    """Query points in meta-training; by default as many as shots."""
    train_shots: int | None = None
    """Support points in meta-training; by default as many as shots."""
    test_queries: int = 100
    """Query points at validation and test: the more, the better is the error over all inputs measured."""
    half_range: bool = False
    """Take support points from one half of the inputs, the lower or the upper at random; queries from everywhere."""

    def __post_init__(self) -> None:
        counts = ("input_size", "output_size", "shots", "queries", "train_shots", "test_queries")
        check_counts(**{name: getattr(self, name) for name in counts})
        for name, (low, high) in {**self.parameters, "inputs": self.inputs}.items():
            if not low <= high:
                raise ValueError(f"{name}=({low}, {high}): expected the lower end of the range first")
            if not torch.tensor([low, high], dtype=torch.get_default_dtype()).isfinite().all():
                raise ValueError(f"{name}=({low}, {high}): expected ends that are finite")
        with torch.random.fork_rng(devices=[]):  # a noisy function may draw from the global generator
            self._check_function()
            self._check_values()

    def _check_function(self) -> None:
        lowest = {name: torch.full((1, 1, 1), float(low)) for name, (low, _) in self.parameters.items()}
        try:
            shape = tuple(self.function(torch.zeros(1, 2, self.input_size), **lowest).shape)
        except Exception as error:
            raise ValueError(f"the function fails for the parameters {', '.join(lowest)}: {error}") from error
        if shape != (1, 2, self.output_size):
            raise ValueError(f"for two inputs of a task the function gives {shape}, not {(1, 2, self.output_size)}")

    def _check_values(self) -> None:
        tasks = self._tasks(LOOKED_AT, (LOOKED_AT, LOOKED_AT), stream(0, "function"))
        inputs, targets = tasks.draw(None, None, "query", stream(1, "function"))
        wrong = (~targets.isfinite()).nonzero()
        if len(wrong):
            task, item, output = wrong[0].tolist()
            told = f"{targets[task, item, output]:g} for the input {inputs[task, item].tolist()}"
            share = f"{len(wrong) / targets.numel():.1%} of its values are not finite"
            raise ValueError(f"the function gives {told}, and {share}: narrow the ranges of inputs or parameters")

    @property
    def spec(self) -> Spec:
        """A point in, the function's value there out; described by the function's parameters."""
        return Spec((self.input_size,), self.output_size, "regression", len(self.parameters))

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> "FunctionTasks":
        """Sample the function's parameters. Raises ValueError for fewer than one task."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        sizes = episode_items(split, self.shots, self.queries, self.train_shots, self.test_queries)
        return self._tasks(num_tasks, sizes, generator)

    def _tasks(self, num_tasks: int, sizes: tuple[int, int], generator: Generator) -> "FunctionTasks":
        parameters = {
            name: low + (high - low) * torch.rand(num_tasks, generator=generator)
            for name, (low, high) in self.parameters.items()
        }
        # Drawn last, and in any case: the parameters are the same with and without the half range.
        upper = torch.randint(2, (num_tasks, 1), generator=generator)
        ends = torch.tensor([self.inputs] * num_tasks, dtype=torch.get_default_dtype())
        middle = ends.mean(1, keepdim=True)
        half = torch.where(upper == 1, torch.cat([middle, ends[:, 1:]], 1), torch.cat([ends[:, :1], middle], 1))
        return FunctionTasks(self.function, parameters, half if self.half_range else ends, ends, sizes, self.input_size)


@dataclass(frozen=True, eq=False)
class FunctionTasks:
    """Tasks made of a function with parameters of its own for each."""

    function: Callable[..., Tensor]
    parameters: dict[str, Tensor]  # [task]
    support: Tensor  # [task, 2] ends of the range of inputs
    query: Tensor  # [task, 2]
    sizes: tuple[int, int]  # support and query points
    input_size: int

    @property
    def descriptors(self) -> Tensor:
        """The parameters, ``[task, parameter]``."""
        return torch.stack(list(self.parameters.values()), dim=1)

    def draw(self, learner: Learner | None, state: State, role: Role, generator: Generator) -> Examples:
        """Draw fresh points of every task."""
        device = generator.device
        ends, items = (self.support, self.sizes[0]) if role == "support" else (self.query, self.sizes[1])
        low, high = send(ends, device).reshape(-1, 1, 2).chunk(2, dim=-1)
        inputs = low + (high - low) * torch.rand(len(ends), items, self.input_size, generator=generator, device=device)
        # Copies: a function that writes into what it is given would change inputs, and the task itself.
        parameters = {name: send(values, device).reshape(-1, 1, 1).clone() for name, values in self.parameters.items()}
        return Examples(inputs, self.function(inputs.clone(), **parameters))


@dataclass(frozen=True, eq=False)
class TableRegression:
    """Regression on a table whose rows come in groups: a task is a group, some rows of which are known.

    Which rows are support and which are query is drawn when a task is sampled; they share none. Task parameter:
    ``group`` ``[task]``. Nothing describes a task.

    Raises:
        ValueError: an option is out of range, shapes do not agree, two splits share a group; from ``sample``, a split
            without groups, or a group with fewer rows than support and query take.
    """

    inputs: Tensor
    """``[row, *shape]``; scale them, for nothing here does, whatever their dtype."""
    targets: Tensor
    """``[row, output_size]`` or ``[row]``; scale them too."""
    groups: Tensor
    """``[row]``: the group of each row, an integer."""
    shots: int = 10
    """Support rows."""
    queries: int | None = None
    """Query rows in meta-training; by default as many as shots."""
    train_shots: int | None = None
    """Support rows in meta-training; by default as many as shots."""
    test_queries: int | None = None
    """Query rows at validation and test; by default as many as shots."""
    splits: Classes | None = None
    """The groups of each split; by default 64, 16 and 20 % of them at random (``metarl.fewshot.split_classes``)."""
    names: Sequence[str] = ()
    """What errors call the groups 0, 1, ...; by default their numbers."""
    drop_small: bool = False
    """Leave out groups with fewer rows than support and query take; a warning says how many."""

    def __post_init__(self) -> None:
        check_counts(
            shots=self.shots, queries=self.queries, train_shots=self.train_shots, test_queries=self.test_queries
        )
        check_items(self.inputs, self.groups, "inputs and groups", "row")
        check_items(self.targets, self.groups, "targets and groups", "row")
        if self.targets.ndim > 2:
            raise ValueError(f"targets have shape {tuple(self.targets.shape)}: expected [row] or [row, output_size]")
        self._groups  # noqa: B018  # raises ValueError for wrong groups and splits
        if self.drop_small:
            self._groups.tell_small({split: self._sizes(split) for split in SPLITS}, "groups")

    @property
    def spec(self) -> Spec:
        """A row in, its targets out."""
        return Spec(tuple(self.inputs.shape[1:]), self._targets.shape[1], "regression")

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> "TableTasks":
        """Sample tasks. Raises ValueError for fewer than one, and for a split that cannot fill an episode."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        support, query = self._sizes(split)
        groups = self._groups.choose_groups(self._pool(split), num_tasks, 1, generator).squeeze(1)
        rows = self._groups.choose(groups, support + query, generator)
        parameters = {"group": self._groups.labels[groups]}
        return TableTasks(self.inputs, self._targets, rows[:, :support], rows[:, support:], parameters)

    def check_split(self, split: Split) -> None:
        """Raise ValueError for a split that has groups, but cannot fill an episode."""
        if len(self._groups.pools[split]):
            self._pool(split)

    def _sizes(self, split: Split) -> tuple[int, int]:
        return episode_items(split, self.shots, self.queries, self.train_shots, self.test_queries)

    def _pool(self, split: Split) -> Tensor:
        items, words = sum(self._sizes(split)), ("group", "groups")
        return self._groups.pool(split, 1, items, self.names, words, self.drop_small)

    @cached_property
    def _targets(self) -> Tensor:
        return self.targets.reshape(len(self.targets), -1)

    @cached_property
    def _groups(self) -> Groups:
        return group(self.groups, self.splits)


@dataclass(frozen=True, eq=False)
class TableTasks:
    """Tasks made of rows: which rows of a table are whose support and query."""

    inputs: Tensor  # [row, *shape], the rows of all tasks
    targets: Tensor  # [row, output_size]
    support: Tensor  # [task, row] positions in the table
    query: Tensor  # [task, row]
    parameters: dict[str, Tensor]

    def __init_subclass__(cls) -> None:
        refuse_draw_alone(cls)

    @property
    def descriptors(self) -> Tensor:
        """``[task, 0]``: nothing describes a task."""
        return torch.zeros(len(self.support), 0)

    @property
    def items(self) -> int:
        """How many rows a task has, support and query."""
        return self.support.shape[1] + self.query.shape[1]

    def draw(self, learner: Learner | None, state: State, role: Role, generator: Generator) -> Examples:
        """Return all rows of a role, in random order; every draw returns the same ones."""
        return next(self.draw_groups(role, generator, len(self.support)))

    def draw_groups(self, role: Role, generator: Generator, size: int) -> Iterator[Examples]:
        """Yield what ``draw`` returns, ``size`` tasks at a time, so that the rows of all need not be held at once."""
        device = generator.device
        chosen = send(self.support if role == "support" else self.query, device)
        rows = chosen.gather(1, torch.rand(chosen.shape, generator=generator, device=device).argsort(1))
        for some in torch.split(rows, size):
            yield Examples(numbers(gather(self.inputs, some), 1), numbers(gather(self.targets, some), 1))
