"""The vocabulary of metarl: the types that task families, algorithms and outer updates share.

The task axis comes first in every tensor. Supervised data are ``[task, item, ...]``, control data
``[task, episode, time, ...]``, adapted parameters ``[task, *shape]``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Generator, Tensor

from metarl.spec import Kind as Kind
from metarl.spec import Spec as Spec

Params = dict[str, Tensor]
"""Meta-parameters by name, without a task axis; stacked parameters hold ``[task, *shape]`` under the same names."""

Split = Literal["train", "validation", "test"]
Role = Literal["support", "query"]
State = Any
"""What a learner knows about each task so far: a (nested) NamedTuple of tensors whose first axis is the task."""


class Examples(NamedTuple):
    """Supervised data."""

    inputs: Tensor  # [task, item, *input_shape]
    targets: Tensor  # [task, item] class ids, or [task, item, output_size]


class Rollout(NamedTuple):
    """Control data: one episode per lane, of fixed length, masked after its end."""

    observations: Tensor  # [task, episode, time, *input_shape]
    actions: Tensor  # [task, episode, time] ids (discrete), or [task, episode, time, output_size]
    log_probs: Tensor  # [task, episode, time] under the policy that acted
    rewards: Tensor  # [task, episode, time] 0 after the end
    mask: Tensor  # [task, episode, time] 1 while the episode runs, then 0
    advantages: Tensor  # [task, episode, time] 0 after the end
    success: Tensor | None = None  # [task, episode] 1 if reported at any step; None if the environments report none


Batch = Examples | Rollout
AnyBatch = TypeVar("AnyBatch", Examples, Rollout, Batch)


class Experience(NamedTuple):
    """What one meta-iteration learns from."""

    descriptors: Tensor  # [task, descriptor_size]
    supports: tuple[Batch, ...]  # one per adaptation, in order
    query: Batch  # drawn after the last adaptation
    progress: float = 0.0  # fraction of the training that is done, for annealing


class Learner(NamedTuple):
    """An algorithm built for a Spec: pure functions.

    Learning a task is a fold: ``begin``, then ``adapt`` to each support batch, then ``predict``.
    """

    spec: Spec
    adaptations: int
    """How many support batches the meta-objective adapts to."""
    init: Callable[[Generator], Params]
    """``(generator) -> params``; the generator lives on the CPU, whatever the training device."""
    begin: Callable[[Params, Tensor], State]
    """``(params, descriptors [task, d]) -> state``: the state before any data of the tasks."""
    adapt: Callable[[State, Batch], State]
    """``(state, batch) -> state``; differentiable in the parameters unless gradients are disabled."""
    predict: Callable[[State, Tensor], tuple[Tensor, State]]
    """``(state, inputs [task, ..., *input_shape]) -> (outputs [task, ..., model_outputs], state)``."""
    meta_loss: Callable[[Params, Experience], tuple[Tensor, dict[str, Tensor]]]
    """``(params, experience) -> (mean loss over tasks, metrics)``. For examples, the metrics hold the mean scores on
    the query set under the names that are logged, such as ``loss/step_1``."""
    batch_norm: str | None = None
    """Which statistics batch norm uses: 'transductive' (the whole batch's) or 'inductive'. None without batch norm."""
    observe: Callable[[State, Tensor, Tensor, Tensor], State] | None = None
    """``(state, actions [task, episode(, action)], rewards [task, episode], done [task, episode]) -> state``: how a
    policy with memory observes the outcome of its last action. None where states do not change within an episode."""
    replay: Callable[[State, Batch], tuple[Tensor, State]] | None = None
    """``(state, batch) -> (outputs, state)`` of a learner with memory: its output at each step or item, before it saw
    the reward or the label, and its state after ``adapt``. None for learners without memory."""
    averages: bool = False
    """Whether the meta-parameters include running averages, which adaptive outer updates would corrupt."""
    differentiable: bool = True
    """Whether ``adapt`` can be differentiated."""
    prepare: Callable[[Experience], Experience] | None = None
    """Called once on the whole experience before the update, for advantages that span several episodes."""


class Algorithm(Protocol):
    """A frozen dataclass of hyper-parameters; entry-point group ``metarl.algorithms``.

    It may have one more method, that of ``PrefersOuter``.
    """

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec. Raises ValueError when the algorithm does not support it."""


class Tasks(Protocol):
    """A fixed batch of sampled tasks. It may have one more ability, that of ``DrawsGroups``."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What defines each task, ``[task, ...]`` by name."""

    @property
    def descriptors(self) -> Tensor:
        """The parameters as a vector that a model can read, ``[task, descriptor_size]``."""

    def draw(self, learner: Learner, state: State, role: Role, generator: Generator) -> Batch:
        """Draw a fresh batch on the generator's device. Control families act with the policies of ``state``."""


@runtime_checkable
class DrawsGroups(Tasks, Protocol):
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
        """Sample tasks. The generator lives on the CPU, so that tasks do not depend on the device."""


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


class Update(NamedTuple):
    """What an outer update returns."""

    params: Params
    state: dict[str, Any]
    """The optimiser's own state: tensors, numbers and None only, by name, so that it can be checkpointed."""
    metrics: Mapping[str, Tensor | float]
    """Scalars. Tensors stay on their device until they are logged."""
    finite: bool = True
    """False when the meta-gradient was not finite and the step was refused."""


@runtime_checkable
class Outer(Protocol):
    """A frozen dataclass of hyper-parameters: how the meta-parameters move; entry-point group ``metarl.outers``.

    It may have two more members: the method of ``Selective``, and the field of ``Chunked``.
    """

    def init(self, params: Params) -> dict[str, Any]:
        """Return the optimiser's state before the first update."""

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Return the moved parameters, a function of what it is given; nothing of that is written to.

        Raises ValueError for data that do not fit its options.
        """


@runtime_checkable
class Selective(Protocol):
    """An outer update that does not serve every learner."""

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner that it cannot serve: this is asked before training."""


@runtime_checkable
class Chunked(Protocol):
    """An outer update that can work through the tasks in groups, one after another, to need less memory."""

    @property
    def chunks(self) -> int | None:
        """How many groups there are, at most as many as tasks; None: as the outer update sees fit.

        The step does not depend on it, but for rounding.
        """


@runtime_checkable
class PrefersOuter(Protocol):
    """An algorithm that states its own outer update."""

    def default_outer(self) -> Outer:
        """Return the outer update to use where none is chosen; it may depend on the algorithm's options."""


NO_POLICIES = "this outer update moves policies and needs rollouts; for labelled examples use adam"
NOT_DIFFERENTIATED = "this algorithm's adaptation is not differentiated, as trpo and promp would; use sgd or adam"


def inputs_of(batch: Batch) -> Tensor:
    """Return a batch's network inputs, ``[task, ..., *input_shape]``."""
    return batch.inputs if isinstance(batch, Examples) else batch.observations


def rollout_of(batch: Batch) -> Rollout:
    """Return the batch. Raises ValueError unless it is a rollout."""
    if not isinstance(batch, Rollout):
        raise ValueError(NO_POLICIES)
    return batch


def each_tensor(function: Callable[[Tensor], Tensor], batch: AnyBatch) -> AnyBatch:
    """Apply a function to all tensors of a batch; what it does not tell of, such as success, stays None."""
    make: Any = type(batch)
    changed: AnyBatch = make(*(None if field is None else function(field) for field in batch))
    return changed


def joined(batches: Iterable[Batch]) -> Rollout:
    """Join the rollouts of a trial, episode after episode, along time; it succeeds by any of them, if all tell."""
    rollouts = [rollout_of(batch) for batch in batches]
    told = [rollout.success for rollout in rollouts if rollout.success is not None]
    success = torch.stack(told).amax(0) if len(told) == len(rollouts) else None
    steps = zip(*(rollout[:6] for rollout in rollouts), strict=True)
    return Rollout(*(torch.cat(fields, dim=2) for fields in steps))._replace(success=success)


def tasks_of(experience: Experience, tasks: slice | Tensor) -> Experience:
    """Return an experience of some of its tasks: a slice, or the tasks at indices ``[task]``."""

    def cut(batch: Batch) -> Batch:
        return each_tensor(lambda values: values[tasks], batch)

    supports = tuple(cut(support) for support in experience.supports)
    return experience._replace(
        descriptors=experience.descriptors[tasks], supports=supports, query=cut(experience.query)
    )
