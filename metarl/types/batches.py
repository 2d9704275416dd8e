"""What is learnt from: batches of labelled examples and of episodes, and how they are put together and picked apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

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


NO_POLICIES = "this outer update moves policies and needs rollouts; for labelled examples use adam"


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
