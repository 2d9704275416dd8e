"""The vocabulary of metarl: the types that task families, algorithms and outer updates share.

The task axis comes first in every tensor. Supervised data are ``[task, item, ...]``, control data
``[task, episode, time, ...]``, adapted parameters ``[task, *shape]``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Supervised data."""

    inputs: Tensor
    """``[task, item, *input_shape]``"""
    targets: Tensor
    """``[task, item]`` class ids, or ``[task, item, output_size]``"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """Control data: one episode per lane, of fixed length, masked after its end. It holds what happened.

    A learner adds its judgement: ``advantages``.
    """

    observations: Tensor
    """``[task, episode, time, *input_shape]`` before each step"""
    last_observations: Tensor
    """``[task, episode, *input_shape]`` after an episode's last step"""
    actions: Tensor
    """``[task, episode, time]`` ids (discrete), or ``[task, episode, time, output_size]``"""
    log_probs: Tensor
    """``[task, episode, time]`` under the policy that acted"""
    rewards: Tensor
    """``[task, episode, time]``, 0 after the end"""
    terminated: Tensor
    """``[task, episode, time]`` bool: the episode ended in this step, in a state that has no future"""
    truncated: Tensor
    """``[task, episode, time]`` bool: the environment cut the episode after this step. An episode that runs into the
    horizon has neither mark, unless its environment ends it there, too."""
    mask: Tensor
    """``[task, episode, time]`` 1 while the episode runs, then 0"""
    success: Tensor | None = None
    """``[task, episode]`` 1 if reported at any step; None if the environments report none"""
    advantages: Tensor | None = None
    """``[task, episode, time]``, 0 after the end; None until the learner has estimated them"""


Batch = Examples | Rollout
AnyBatch = TypeVar("AnyBatch", Examples, Rollout, Batch)


@dataclass(frozen=True, kw_only=True, eq=False)
class Experience:
    """What one meta-iteration learns from."""

    descriptors: Tensor
    """``[task, descriptor_size]``"""
    supports: tuple[Batch, ...]
    """One per adaptation, in order."""
    query: Batch
    """Drawn after the last adaptation."""
    progress: float = 0.0
    """Fraction of the training that is done, for annealing."""


Observe = Callable[[State, Tensor, Tensor, Tensor], State]
"""``(state, actions [task, episode(, action)], rewards [task, episode], done [task, episode]) -> state``"""


class Memory(NamedTuple):
    """How a learner with memory goes through an episode, or through a sequence of labelled items."""

    unroll: Callable[[State, Batch], tuple[Tensor, State]]
    """``(state, batch) -> (outputs, state)``: the output at each step or item, before the reward or the label was seen,
    and the state after ``adapt``."""
    observe: Observe | None = None
    """How a policy observes the outcome of its last action. None for labelled examples."""


class Policy(NamedTuple):
    """The policies of a batch of tasks, one for each, and the state in which they act."""

    kind: Kind
    """The meaning of the outputs, see ``metarl.objectives``."""
    state: State
    predict: Callable[[State, Tensor], tuple[Tensor, State]]
    """``(state, observations [task, episode, *input_shape]) -> (outputs [task, episode, model_outputs], state)``"""
    observe: Observe | None = None
    """How policies with memory observe the outcome of their last action."""


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
    """``(params, experience) -> (losses [task], metrics [task] by name)``. Training minimises the mean over tasks and
    logs the metrics' means. For examples, the metrics hold the scores on the query set, such as ``loss/step_1``."""
    estimate: Callable[[State, Sequence[Rollout]], Sequence[Rollout]] | None = None
    """For control: ``(state, rollouts) -> rollouts`` with ``advantages``. Each rollout is judged before the adaptation
    to it, with the state that acted. A learner with memory judges all rollouts of a meta-iteration, a whole trial, at
    once, with the state before the first. ``metarl.advantages`` has the usual choices. None for examples."""
    memory: "Memory | None" = None
    """For learners whose state changes within an episode or a sequence of items."""
    batch_norm: str | None = None
    """Which statistics batch norm uses: 'transductive' (the whole batch's) or 'inductive'. None without batch norm."""
    averages: bool = False
    """Whether the meta-parameters include running averages, which adaptive outer updates would corrupt."""
    differentiable: bool = True
    """Whether ``adapt`` can be differentiated."""


class Algorithm(Protocol):
    """A frozen dataclass of hyper-parameters; entry-point group ``metarl.algorithms``.

    It may have one more method, that of ``PrefersOuter``.
    """

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec. Raises ValueError when the algorithm does not support it."""


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

    def default_outer(self) -> Outer | None:
        """Return the outer update to use where none is chosen; it may depend on the algorithm's options.

        None: the usual one, TRPO for control and Adam for examples.
        """


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


def advantages_of(rollout: Rollout) -> Tensor:
    """Return the advantages ``[task, episode, time]``. Raises ValueError where the learner has estimated none."""
    if rollout.advantages is None:
        raise ValueError("this rollout has no advantages yet: the learner's estimate, asked first, adds them")
    return rollout.advantages


def each_tensor(function: Callable[[Tensor], Tensor], batch: AnyBatch) -> AnyBatch:
    """Apply a function to all tensors of a batch; what is None, such as an unreported success, stays None."""
    changed: dict[str, Any] = {name: function(value) for name, value in vars(batch).items() if value is not None}
    return replace(batch, **changed)


def pooled(batches: Sequence[Examples]) -> Examples:
    """Return one batch with the items of all."""
    inputs, targets = (torch.cat([getattr(batch, name) for batch in batches], dim=1) for name in ("inputs", "targets"))
    return Examples(inputs=inputs, targets=targets)


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Join the rollouts of a trial, episode after episode, along time. Success is that of any of them, if all report.

    Advantages are joined where all rollouts have them.
    """
    fields: dict[str, Any] = {}
    for name in vars(rollouts[0]):
        values = [value for rollout in rollouts if (value := getattr(rollout, name)) is not None]
        fields[name] = torch.cat(values, dim=2) if len(values) == len(rollouts) and values[0].ndim > 2 else None
    reported = [rollout.success for rollout in rollouts if rollout.success is not None]
    success = torch.stack(reported).amax(0) if len(reported) == len(rollouts) else None
    return Rollout(**fields | {"last_observations": rollouts[-1].last_observations, "success": success})


def select(experience: Experience, tasks: slice | Tensor) -> Experience:
    """Return an experience of some of its tasks: a slice, or the tasks at indices ``[task]``."""

    def cut(batch: Batch) -> Batch:
        return each_tensor(lambda values: values[tasks], batch)

    return replace(
        experience,
        descriptors=experience.descriptors[tasks],
        supports=tuple(map(cut, experience.supports)),
        query=cut(experience.query),
    )


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


def policy_of(learner: Learner, state: State) -> Policy:
    """Return the policies of a learner in a state."""
    observe = None if learner.memory is None else learner.memory.observe
    return Policy(learner.spec.kind, state, learner.predict, observe)
