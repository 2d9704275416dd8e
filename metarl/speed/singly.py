"""A learner that computes task by task: what it finds for one does not depend on which others are there.

In a batch, kernels choose how to round by the batch's size. Exact sums need numbers that are the same bit for bit
whatever tasks a process has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metarl.types import Batch, Experience, Learner, Memory, Params, Rollout, Shared, State


def singly(learner: Learner) -> Learner:
    """Return the learner, whose functions go from task to task."""
    one = _Singly(learner)
    memory = learner.memory and Memory(one.unroll, learner.memory.observe and one.observe)
    return learner._replace(
        begin=one.begin, adapt=one.adapt, predict=one.predict, meta_loss=one.meta_loss, memory=memory,
        estimate=learner.estimate and one.estimate,
    )  # fmt: skip


@dataclass(frozen=True)
class _Singly:
    learner: Learner

    def begin(self, params: Params, descriptors: Tensor) -> State:
        return _each(partial(self.learner.begin, params), descriptors)

    def adapt(self, state: State, batch: Batch) -> State:
        return _each(self.learner.adapt, state, batch)

    def predict(self, state: State, inputs: Tensor) -> tuple[Tensor, State]:
        found: tuple[Tensor, State] = _each(self.learner.predict, state, inputs)
        return found

    def unroll(self, state: State, batch: Batch) -> tuple[Tensor, State]:
        assert self.learner.memory is not None
        found: tuple[Tensor, State] = _each(self.learner.memory.unroll, state, batch)
        return found

    def observe(self, state: State, *outcome: Tensor) -> State:
        assert self.learner.memory is not None and self.learner.memory.observe is not None
        return _each(self.learner.memory.observe, state, *outcome)

    def estimate(self, state: State, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
        assert self.learner.estimate is not None
        found: Sequence[Rollout] = _each(self.learner.estimate, state, list(rollouts))
        return found

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        found: tuple[Tensor, dict[str, Tensor]] = _each(partial(self.learner.meta_loss, params), experience)
        return found


def _each(function: Any, *values: Any) -> Any:
    """Apply a function to the values of one task after another, and join what it returns."""
    tasks = next(len(tensor) for value in values[::-1] for tensor in _tensors(value))
    if tasks == 1:
        return function(*values)
    return joined_tasks([function(*(_part(value, task) for value in values)) for task in range(tasks)])


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors with a task axis."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for inner in (_inside(values) or {}).values() for tensor in _tensors(inner)]


def _inside(values: Any) -> dict[Any, Any] | None:
    """Return what is inside of a state or a batch, by name or place; None for a leaf."""
    if isinstance(values, Shared):
        return None
    if isinstance(values, dict):
        return values
    if isinstance(values, tuple | list):
        return dict(enumerate(values))
    return {item.name: getattr(values, item.name) for item in fields(values)} if is_dataclass(values) else None


def _rebuilt(values: Any, inside: dict[Any, Any]) -> Any:
    if isinstance(values, dict):
        return inside
    if isinstance(values, tuple | list):
        return type(values)(*inside.values()) if hasattr(values, "_fields") else type(values)(inside.values())
    return replace(values, **inside)


def _part(values: Any, task: int) -> Any:
    if isinstance(values, Tensor):
        # A copy where no gradient flows: memory of its own begins where all memory begins, which rounding may see.
        return values[task : task + 1].clone()
    inside = _inside(values)
    return values if inside is None else _rebuilt(values, {name: _part(one, task) for name, one in inside.items()})


def joined_tasks(results: Sequence[Any]) -> Any:
    """Join states, batches, or nested tuples and dicts of tensors ``[task, ...]``, of some tasks after others."""
    first = results[0]
    if isinstance(first, Tensor):
        return torch.cat([*results])
    inside = _inside(first)
    if inside is None:
        return first
    others = [_inside(result) or {} for result in results]
    return _rebuilt(first, {name: joined_tasks([one[name] for one in others]) for name in inside})
