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

from metarl.distributions import Distribution
from metarl.spec import Kind as Kind
from metarl.spec import Part as Part
from metarl.spec import Spec as Spec
from metarl.spec import Targets as Targets

Params = dict[str, Tensor]
"""Meta-parameters by name, without a task axis; stacked parameters hold ``[task, *shape]`` under the same names."""

Split = Literal["train", "validation", "test"]
Role = Literal["support", "query"]
State = Any
"""What a learner knows about each task so far: a (nested) NamedTuple of tensors whose first axis is the task. What all
tasks share, such as meta-parameters that do not adapt, is a ``Shared``."""
Which = int | slice | Sequence[int] | Tensor
"""Some of a batch's tasks: their numbers, a slice, or a mask ``[task]``. No task may be named twice."""


class Shared(dict[str, Tensor]):
    """Tensors of a state that have no task axis, by name: all tasks share them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Supervised data."""

    inputs: Tensor
    """``[task, item, *input_shape]``"""
    targets: Tensor
    """``[task, item]`` class ids, or ``[task, item, output_size]``"""
    mask: Tensor | None = None
    """``[task, item]`` 1 for items and 0 for padding, which comes last, where tasks differ in their number of items.
    None: there is no padding. Every task has one item at least."""

    @property
    def counts(self) -> Tensor:
        """The number of items of each task, without padding: ``[task]``, whole numbers."""
        if self.mask is None:
            return torch.full(self.inputs.shape[:1], self.inputs.shape[1], device=self.inputs.device)
        return self.mask.sum(1).long()

    def select(self, tasks: Which) -> "Examples":
        """Return the examples of some of the tasks. A slice gives views of the same memory."""
        return select(self, tasks)


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
    """``[task, episode, time, *action_shape]`` of ``Spec.distribution``: ids ``[task, episode, time]`` of one choice,
    ``[task, episode, time, choice]`` of several, or numbers ``[task, episode, time, output_size]``"""
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
    measures: dict[str, Tensor] | None = None
    """``[task, episode]`` by name: the mean of each number that the environments put into their infos, over the steps
    that told it. None after scores were taken of it, and where there is no number that every episode told."""
    explained_variance: Tensor | None = None
    """``[task]`` the share of the variance of the returns-to-go that the learner's baseline explains, 1 at most. None
    where no baseline has judged the episodes"""

    def select(self, tasks: Which) -> "Rollout":
        """Return the episodes of some of the tasks. A slice gives views of the same memory."""
        return select(self, tasks)


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

    def select(self, tasks: Which) -> "Experience":
        """Return the experience of some of the tasks. A slice gives views of the same memory."""
        return select(self, tasks)


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

    distribution: Distribution
    """What the outputs mean."""
    state: State
    predict: Callable[[State, Tensor], tuple[Tensor, State]]
    """``(state, observations [task, episode, *input_shape]) -> (outputs [task, episode, model_outputs], state)``"""
    observe: Observe | None = None
    """How policies with memory observe the outcome of their last action."""


class Buffers(NamedTuple):
    """What a learner keeps from one iteration to the next beside its meta-parameters, and how that moves.

    Running statistics, step counts, or earlier episodes to learn from again. Outer updates never see buffers: they get
    a learner that holds them (``holding``), and move meta-parameters only. Checkpoints contain them.
    """

    init: Callable[[], Params]
    """``() -> buffers``: tensors of any shape and dtype, on the CPU. No name may be that of a meta-parameter."""
    move: Callable[[Params, Experience], Params]
    """``(buffers, experience) -> buffers`` of the same names, shapes and dtypes. It is asked once in each iteration,
    after the outer update, unless that refused its step: within an iteration, buffers do not change."""
    held: Params | None = None
    """The buffers that the learner holds, once it is asked to; see ``holding``."""
    by_sums: bool = False
    """For runs in several processes: whether ``move`` adds up over ranks itself, by ``metarl.speed.ranks.sums``. Then
    it gets the experience of this rank's tasks. Else it gets that of all tasks, which each rank sends to all others."""


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
    masked: bool = False
    """Whether it honours ``Examples.mask``: the padding of tasks with fewer examples than others changes nothing. A
    learner that does not is refused for a ``Spec`` that is ``ragged``."""
    mixes_targets: bool = False
    """Whether it takes each task's own loss, of ``Spec.targets``. A learner that does not is refused for them."""
    buffers: Buffers | None = None
    """What is kept beside the meta-parameters. ``begin`` and ``meta_loss`` find it among the parameters, by name."""


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


class InputScale(NamedTuple):
    """What a family divides its own inputs by."""

    divisor: float
    floats: bool = False
    """Whether floats are divided, too, and not only whole numbers."""


class Standard(NamedTuple):
    """What numbers are in standard units of: their mean and standard deviation in the training split, in float64."""

    mean: Tensor
    """``[*shape]``, or what broadcasts with it."""
    std: Tensor
    """The same. It is positive."""
    fills: bool = False
    """Whether missing numbers (nan) are the mean."""

    def apply(self, values: Tensor) -> Tensor:
        """Return values ``[..., *shape]`` in standard units, in torch's default dtype."""
        shifted = (values.double() - self.mean.to(values.device)) / self.std.to(values.device)
        return (shifted.nan_to_num(0.0) if self.fills else shifted).to(torch.get_default_dtype())

    def undo(self, values: Tensor) -> Tensor:
        """Return values ``[..., *shape]`` in the units that they had before ``apply``, in their dtype."""
        return (values.double() * self.std.to(values.device) + self.mean.to(values.device)).to(values.dtype)


class Units(NamedTuple):
    """The standard units that a family's examples are in; None for what is left as it is."""

    inputs: Standard | None = None
    targets: Standard | None = None


AS_GIVEN = Units()
"""The units of data that are left as they are."""


@runtime_checkable
class Standardises(Protocol):
    """A family of labelled examples in standard units. Examples of one's own are converted, and predictions back."""

    def units(self) -> Units:
        """Return what its examples are in units of."""

    def with_units(self, units: Units) -> Any:
        """Return the family with the units of another one, such as that of training."""


@runtime_checkable
class ScalesInputs(Protocol):
    """A family of labelled examples that scales its inputs. Examples of one's own are scaled in the same way."""

    @property
    def input_scale(self) -> InputScale:
        """What inputs are divided by."""


@runtime_checkable
class ReadsFiles(Protocol):
    """A family of labelled examples whose inputs can be read from files of one's own, such as images."""

    def read(self, files: Sequence[Path]) -> Tensor:
        """Return the inputs ``[item, *input_shape]`` of files, as its tasks have them.

        Raises ValueError for files that cannot be read.
        """


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
    changed: dict[str, Any] = {
        name: {key: function(one) for key, one in value.items()} if isinstance(value, dict) else function(value)
        for name, value in vars(batch).items()
        if value is not None
    }
    return replace(batch, **changed)


def pooled(batches: Sequence[Examples]) -> Examples:
    """Return one batch with the items of all."""
    inputs, targets = (torch.cat([getattr(batch, name) for batch in batches], dim=1) for name in ("inputs", "targets"))
    if all(batch.mask is None for batch in batches):
        return Examples(inputs=inputs, targets=targets)
    mask = torch.cat([valid(batch) for batch in batches], dim=1)
    return _padded_last(inputs, targets, mask)


def valid(examples: Examples) -> Tensor:
    """Return 1 for items and 0 for padding, ``[task, item]``, also where there is no padding."""
    lead = examples.inputs.shape[:2]
    return torch.ones(lead, device=examples.inputs.device) if examples.mask is None else examples.mask


def _padded_last(inputs: Tensor, targets: Tensor, mask: Tensor) -> Examples:
    """Move the items of each task, in their order, before its padding."""
    order = (mask == 0).to(torch.int8).argsort(dim=1, stable=True)
    inputs, targets = (_in_order(values, order) for values in (inputs, targets))
    return Examples(inputs=inputs, targets=targets, mask=mask.gather(1, order))


def _in_order(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(1, order.reshape(*order.shape, *[1] * (values.ndim - 2)).expand_as(values))


def learner_for(algorithm: Algorithm, spec: Spec) -> Learner:
    """Return the learner of an algorithm for the tasks of a spec, which may be padded or differ in their losses.

    Raises ValueError where the algorithm does not support the spec, or would take padding for examples.
    """
    learner = algorithm.build(spec)
    check_served(learner, spec)
    return learner


def check_served(learner: Learner, spec: Spec) -> None:
    """Raise ValueError where tasks may have padding or losses of their own, and the learner does not honour that."""
    if spec.targets and not learner.mixes_targets:
        raise ValueError(
            "the tasks differ in what their targets are, and so in their loss: this learner takes one loss for all; "
            "use multitask"
        )
    if spec.ragged and not learner.masked:
        why = (
            "batch norm would count the padding; use another norm (conv4 and resnet12: norm layer)"
            if learner.batch_norm is not None
            else "this learner would take the padding for examples; use another one, such as maml or protonet"
        )
        raise ValueError(f"the tasks differ in their number of examples, and are padded: {why}, or give all as many")


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Join the rollouts of a trial, episode after episode, along time. Success is that of any of them, if all report.

    Advantages are joined where all rollouts have them.
    """
    fields: dict[str, Any] = {}
    for name in vars(rollouts[0]):
        values = [value for rollout in rollouts if isinstance(value := getattr(rollout, name), Tensor)]
        fields[name] = (
            torch.cat(values, dim=2) if values and len(values) == len(rollouts) and values[0].ndim > 2 else None
        )
    reported = [rollout.success for rollout in rollouts if rollout.success is not None]
    success = torch.stack(reported).amax(0) if len(reported) == len(rollouts) else None
    return Rollout(**fields | {"last_observations": rollouts[-1].last_observations, "success": success})


Selected = TypeVar("Selected")


def select(values: Selected, tasks: Which) -> Selected:
    """Return some of the tasks of an experience, a batch, or a learner's state.

    What a state holds in a ``Shared`` stays, and so do its numbers.

    Raises:
        ValueError: no task is selected, or the tensors differ in their number of tasks.
        IndexError: there is no such task.
    """
    found = list[Tensor]()
    _each(values, found.append)
    if not found:
        return values
    counts = {len(tensor) if tensor.ndim else 0 for tensor in found}
    if len(counts) != 1:
        shapes = ", ".join(sorted({str(tuple(tensor.shape)) for tensor in found}))
        raise ValueError(
            f"tensors of shapes {shapes or 'none'} have no common number of tasks as their first axis: what all tasks "
            "share must be in a Shared (metarl.types)"
        )
    index = tasks if isinstance(tasks, slice) else places(tasks, counts.pop())
    picked: Selected = _each(values, lambda tensor: tensor[index])
    return picked


def places(tasks: Which, count: int) -> Tensor:
    """Return the numbers ``[task]`` of some of ``count`` tasks.

    Raises:
        ValueError: there is none, or one is named twice.
        IndexError: there is no such task.
    """
    given = list(tasks) if isinstance(tasks, range | tuple) else tasks
    found = torch.arange(count)[given.cpu() if isinstance(given, Tensor) else given].reshape(-1)
    if not len(found) or len(set(found.tolist())) < len(found):
        raise ValueError(f"the tasks {found.tolist()} are selected: expected one at least, and none twice")
    return found


def _each(values: Any, function: Callable[[Tensor], object]) -> Any:
    """Apply a function to the tensors of batches and states, in place of each; other values stay as they are."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, Examples | Rollout | Experience):
        # In a compiled iteration, progress is a tensor, too.
        named = {name: value for name, value in vars(values).items() if name != "progress"}
        return replace(values, **{name: _each(value, function) for name, value in named.items()})
    if isinstance(values, dict) and not isinstance(values, Shared):
        return {name: _each(value, function) for name, value in values.items()}
    if isinstance(values, tuple | list):
        parts = [_each(value, function) for value in values]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    return values


def holding(learner: Learner, buffers: Params | None = None) -> Learner:
    """Return the learner with buffers, by default the initial ones: its functions ask for meta-parameters alone.

    A learner without buffers is returned as it is. One that holds some already holds these instead.

    Raises:
        ValueError: the learner's buffers have other names.
    """
    if learner.buffers is None:
        if buffers:
            raise ValueError(f"there are buffers ({', '.join(buffers)}) for a learner that has none")
        return learner
    held = learner.buffers.init() if buffers is None else buffers
    if (expected := learner.buffers.held) is not None and held.keys() != expected.keys():
        raise ValueError(f"the learner has the buffers {', '.join(expected)}, not {', '.join(held) or 'none'}")
    holder = _Holder(learner, held)
    return learner._replace(begin=holder.begin, meta_loss=holder.meta_loss, buffers=learner.buffers._replace(held=held))


@dataclass(frozen=True)
class _Holder:
    learner: Learner
    held: Params

    # What is given goes before what is held, so that a learner that holds buffers can be asked to hold others.
    def begin(self, params: Params, descriptors: Tensor) -> State:
        return self.learner.begin(self.held | params, descriptors)

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        return self.learner.meta_loss(self.held | params, experience)


def held_by(learner: Learner) -> Params:
    """Return the buffers that a learner holds; none where it has none, or holds none."""
    return {} if learner.buffers is None else learner.buffers.held or {}


def moved_buffers(learner: Learner, buffers: Params, experience: Experience) -> Params:
    """Return the buffers after an iteration. Raises ValueError where they come back in another form."""
    if learner.buffers is None:
        return buffers
    moved = learner.buffers.move(buffers, experience)
    ours, theirs = (
        {name: (tuple(value.shape), value.dtype) for name, value in values.items()} for values in (buffers, moved)
    )
    if ours != theirs:
        name = next(name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"the learner's buffer {name} was moved from {ours.get(name, 'absent')} to {theirs.get(name, 'absent')}: "
            "buffers keep their names, shapes and dtypes"
        )
    return {name: moved[name].detach() for name in buffers}


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


def outputs_at(learner: Learner, state: State, inputs: Tensor) -> Tensor:
    """Return the outputs ``[item, model_outputs]`` of a single task's state for inputs ``[item, *input_shape]``.

    Observations count as the steps of one episode, so that one policy answers where a task has several.
    """
    if learner.spec.control and learner.memory is None:
        return learner.predict(state, inputs[None, None])[0][0, 0]
    return learner.predict(state, inputs[None])[0][0]


def policy_of(learner: Learner, state: State) -> Policy:
    """Return the policies of a learner in a state."""
    observe = None if learner.memory is None else learner.memory.observe
    return Policy(learner.spec.distribution, state, learner.predict, observe)
