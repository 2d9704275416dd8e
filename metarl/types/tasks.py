"""What is learnt: families of tasks, the tasks sampled from them, and what else a family may be able to do."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Generator, Tensor

from metarl.spec import Spec
from metarl.types.batches import Batch, Examples, Role, Rollout, Split
from metarl.types.learners import Policy


class Tasks(Protocol):
    """A fixed batch of sampled tasks: either ``LabelledTasks`` or ``Environments``."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What defines each task, ``[task, ...]`` by name."""

    @property
    def descriptors(self) -> Tensor:
        """The parameters as a vector that a model can read, ``[task, descriptor_size]``."""


@runtime_checkable
class LabelledTasks(Tasks, Protocol):
    """Tasks of labelled examples. They may have one more ability, that of ``DrawsGroups``."""

    def draw(self, role: Role, generator: Generator) -> Examples:
        """Draw a fresh support or query set of each task, on the generator's device."""


@runtime_checkable
class Environments(Tasks, Protocol):
    """Tasks in which policies act."""

    def rollout(self, policy: Policy, generator: Generator) -> Rollout:
        """Run fresh episodes of every task, on the generator's device."""


@runtime_checkable
class DrawsGroups(LabelledTasks, Protocol):
    """Tasks that can draw their examples for a few tasks at a time, so that not all are held in memory at once.

    ``draw_groups`` and ``draw`` must return the same examples: a subclass that overrides one must override both.
    """

    @property
    def items(self) -> int:
        """Examples per task, support and query together."""

    def draw_groups(self, role: Role, generator: Generator, size: int) -> Iterator[Examples]:
        """Yield what ``draw`` would return with this generator, ``size`` tasks at a time."""


class Family(Protocol):
    """A frozen dataclass: a distribution over tasks; entry-point group ``metarl.tasks``.

    Optional abilities have protocols of their own: ``SharesTasks``, ``ChecksSplits`` and ``Pictured`` here, those about
    environments in ``metarl.control.protocols``.
    """

    @property
    def spec(self) -> Spec:
        """The shapes and kind of data that a model must handle."""

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> Tasks:
        """Sample tasks. Task k depends on the generator and on k, not on how many tasks there are.

        The generator lives on the CPU, so that tasks do not depend on the device.
        """


@runtime_checkable
class SharesTasks(Protocol):
    """A family that may have too few tasks to hold any out."""

    @property
    def splits_share_tasks(self) -> bool:
        """Whether test tasks may also occur in training."""


@runtime_checkable
class ChecksSplits(Protocol):
    """A family that can tell before training that a split has tasks, but cannot fill them."""

    def check_split(self, split: Split) -> None:
        """Raise ValueError for such a split."""


@runtime_checkable
class Pictured(Protocol):
    """A family that can plot adaptation, such as the paths of a point."""

    def picture(self, tasks: Tasks, queries: Sequence[Batch], path: Path) -> Path:
        """Plot the batches ``[task, ...]`` collected after 0, 1, ... adaptation steps; return the file written."""


def labelled_tasks(tasks: Tasks) -> LabelledTasks:
    """Return the tasks. Raises ValueError unless labelled examples can be drawn from them."""
    if not isinstance(tasks, LabelledTasks):
        raise ValueError(
            f"{type(tasks).__name__} has no draw(role, generator), but its family's spec is one of examples"
        )
    return tasks


def environments_of(tasks: Tasks) -> Environments:
    """Return the tasks. Raises ValueError unless policies can act in them."""
    if not isinstance(tasks, Environments):
        raise ValueError(
            f"{type(tasks).__name__} has no rollout(policy, generator), but its family's spec is one of control"
        )
    return tasks
