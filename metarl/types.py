"""The vocabulary of metarl: what a task family, an algorithm and an outer update say to each other.

The task axis comes first in every tensor. Supervised data are ``[task, item, ...]``, control data
``[task, episode, time, ...]``, adapted parameters ``[task, *shape]``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from metarl.spec import Kind as Kind
from metarl.spec import Spec as Spec

Params = dict[str, Tensor]
"""Meta-parameters by name, without a task axis; stacked parameters hold ``[task, *shape]`` under the same names."""

Split = Literal["train", "validation", "test"]
Role = Literal["support", "query"]
State = Any
"""What a learner knows of each task so far: a (nested) NamedTuple of tensors whose first axis is the task."""


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
    success: Tensor | None = None  # [task, episode] 1 if there was some at any step; None where none is told of


Batch = Examples | Rollout
AnyBatch = TypeVar("AnyBatch", Examples, Rollout, Batch)


class Experience(NamedTuple):
    """What one meta-iteration learns from."""

    descriptors: Tensor  # [task, descriptor_size]
    supports: tuple[Batch, ...]  # one per adaptation, in order
    query: Batch  # drawn after the last adaptation
    progress: float = 0.0  # share of the training that lies behind: what is annealed follows it


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
    """``(params, descriptors [task, d]) -> state``: nothing seen yet of any task."""
    adapt: Callable[[State, Batch], State]
    """``(state, batch) -> state``; differentiable in the parameters unless gradients are disabled."""
    predict: Callable[[State, Tensor], tuple[Tensor, State]]
    """``(state, inputs [task, ..., *input_shape]) -> (outputs [task, ..., model_outputs], state)``."""
    meta_loss: Callable[[Params, Experience], tuple[Tensor, dict[str, Tensor]]]
    """``(params, experience) -> (mean loss over tasks, metrics)``; for examples, the metrics hold the mean scores of
    the query set by the names that are logged, such as ``loss/step_1``."""
    batch_norm: str | None = None
    """Whose statistics batch norm uses: 'transductive' (the whole batch's) or 'inductive'; None where there is none."""
    observe: Callable[[State, Tensor, Tensor, Tensor], State] | None = None
    """``(state, actions [task, episode(, action)], rewards [task, episode], done [task, episode]) -> state``: how a
    policy with memory takes in what came of its last action; None where states do not change within an episode."""
    replay: Callable[[State, Batch], tuple[Tensor, State]] | None = None
    """``(state, batch) -> (outputs, state)`` of a learner with memory: what it said at each step, or of each item,
    before it was told what came of it, and its state after ``adapt``; None for learners without memory."""
    averages: bool = False
    """Whether the meta-parameters hold running averages besides weights, which adaptive outer updates would spoil."""
    differentiable: bool = True
    """Whether ``adapt`` can be differentiated."""
    prepare: Callable[[Experience], Experience] | None = None
    """Called once with all that was gathered, before it is learned from: advantages that look beyond an episode."""


class Algorithm(Protocol):
    """A frozen dataclass of hyper-parameters; entry-point group ``metarl.algorithms``.

    By a further method, ``default_outer() -> Outer``, it may state which outer update to use where none is chosen.
    """

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec. Raises ValueError when the algorithm cannot serve it."""


class Tasks(Protocol):
    """A fixed batch of sampled tasks."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What defines each task, ``[task, ...]`` by name."""

    @property
    def descriptors(self) -> Tensor:
        """The same as numbers that a model can read, ``[task, descriptor_size]``."""

    def draw(self, learner: Learner, state: State, role: Role, generator: Generator) -> Batch:
        """Draw a fresh batch, on the generator's device; control families act with ``state``'s policies."""


class Family(Protocol):
    """A frozen dataclass: a distribution over tasks; entry-point group ``metarl.tasks``.

    By a further method, ``single(parameters, render_mode) -> gymnasium.Env``, a control family may offer one
    environment of one task (``parameters`` by name, as arrays), with the dynamics, observations and actions of its
    lanes: ``metarl render`` films it.

    A further attribute, ``splits_share_tasks = True``, tells of a family with so few tasks that none are held out.
    """

    @property
    def spec(self) -> Spec:
        """What the family asks of a model."""

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> Tasks:
        """Sample tasks. The generator lives on the CPU, so that tasks do not depend on the device."""


class Update(NamedTuple):
    """What an outer update returns."""

    params: Params
    state: dict[str, Any]
    """The optimiser's own state: tensors and numbers only, so that it can be checkpointed."""
    metrics: Mapping[str, Tensor | float]
    """Scalars; tensors stay on their device until they are logged."""
    finite: bool = True
    """False when the meta-gradient was not finite and the step was refused."""


class Outer(Protocol):
    """A frozen dataclass of hyper-parameters: how the meta-parameters move.

    By a further method, ``check(learner)``, it may raise ValueError before training for a learner that it cannot serve.
    """

    def init(self, params: Params) -> dict[str, Any]:
        """Return the optimiser's state before the first update."""

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Return the moved parameters. Raises ValueError for data it cannot serve."""


NO_POLICIES = "this outer update moves policies and needs rollouts; for labelled examples use adam"
NOT_DIFFERENTIATED = "this algorithm's adaptation is not differentiated, as trpo and promp would; use sgd or adam"


def inputs_of(batch: Batch) -> Tensor:
    """Return what a network reads of a batch, ``[task, ..., *input_shape]``."""
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
    """Return some tasks of an experience: a slice of them, or those at positions ``[task]``."""

    def cut(batch: Batch) -> Batch:
        return each_tensor(lambda values: values[tasks], batch)

    supports = tuple(cut(support) for support in experience.supports)
    return experience._replace(
        descriptors=experience.descriptors[tasks], supports=supports, query=cut(experience.query)
    )
