"""What learns: an algorithm, and the learner that it builds for a spec, with its memory and its buffers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Generator, Tensor

from metarl.distributions import Distribution
from metarl.spec import Spec
from metarl.types.batches import Batch, Experience, Params, Rollout, State

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
