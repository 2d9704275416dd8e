"""Some tasks of a sampled batch, which draw what they would have drawn among all of them.

Tasks may have a ``select`` of their own, as metarl's have. For all others, ``select_tasks`` lets the whole batch draw
and keeps the rows of the selected tasks: right for any tasks, at the price of the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from metarl.seeding import Places
from metarl.types import (
    Environments,
    Examples,
    LabelledTasks,
    Policy,
    Role,
    Rollout,
    State,
    Tasks,
    Which,
    environments_of,
    places,
)


@runtime_checkable
class Selectable(Tasks, Protocol):
    """Tasks that can be selected from, with less work than all of them take."""

    def select(self, tasks: Which) -> Tasks:
        """Return some of the tasks. With the same generator, they draw what they draw among all of these."""


def select_tasks(tasks: Tasks, which: Which) -> Tasks:
    """Return some of the tasks, by their numbers, a slice, or a mask ``[task]``.

    With the same generator and the same policies, they draw exactly what they draw among all tasks. Tasks without a
    ``select`` of their own are drawn all of them, and those that were not selected are left out.

    Raises:
        ValueError: no task is selected, or one is selected twice.
        IndexError: there is no such task.
    """
    if isinstance(tasks, Selectable):
        return tasks.select(which)
    return drawn_in_whole(tasks, which)


def drawn_in_whole(tasks: Tasks, which: Which) -> Tasks:
    """Return some of the tasks, for which all are drawn: what ``select_tasks`` does for tasks without a ``select``."""
    chosen = places(which, len(tasks.descriptors))
    return _SomeLabelled(tasks, chosen) if isinstance(tasks, LabelledTasks) else _SomeEnvironments(tasks, chosen)


def overrides(tasks: Tasks, kind: type, *names: str) -> bool:
    """Return whether a subclass of ``kind`` draws in its own way: then it may not follow ``Places``."""
    return any(getattr(type(tasks), name) is not getattr(kind, name) for name in names)


def selected(within: Places | None, which: Which, count: int) -> Places:
    """Return the places of some of ``count`` tasks, which may be some of a whole themselves."""
    chosen = places(which, count)
    return Places(chosen, count) if within is None else Places(within.at[chosen], within.of)


def rows_of(values: Mapping[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    """Return the rows ``[task, ...]`` of some tasks, by name."""
    return {name: value[chosen] for name, value in values.items()}


def rollout_in_whole(whole: Environments, chosen: Tensor, policy: Policy, generator: Generator) -> Rollout:
    """Return the episodes of some tasks, played among all tasks of the whole.

    ``policy`` has a state for each chosen task. In the other tasks, the policy of the first one acts.
    """
    return whole.rollout(_widened(policy, chosen, len(whole.descriptors)), generator).select(chosen)


def _widened(policy: Policy, chosen: Tensor, count: int) -> Policy:
    """Return a policy for all tasks of the whole: what it observes of the chosen ones is all that reaches its state."""
    owner = torch.zeros(count, dtype=torch.long)
    owner[chosen] = torch.arange(len(chosen))
    observe = policy.observe

    def predict(state: State, observations: Tensor) -> tuple[Tensor, State]:
        outputs, state = policy.predict(state, observations[chosen])
        return outputs[owner], state

    def observed(state: State, actions: Tensor, rewards: Tensor, done: Tensor) -> State:
        assert observe is not None
        return observe(state, actions[chosen], rewards[chosen], done[chosen])

    return policy._replace(predict=predict, observe=observe and observed)


@dataclass(frozen=True, eq=False)
class _Some:
    """Some tasks of a whole batch."""

    whole: Tasks
    chosen: Tensor  # [task] their numbers in the whole

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return rows_of(self.whole.parameters, self.chosen)

    @property
    def descriptors(self) -> Tensor:
        return self.whole.descriptors[self.chosen]

    def select(self, tasks: Which) -> Tasks:
        return select_tasks(self.whole, self.chosen[places(tasks, len(self.chosen))])


class _SomeLabelled(_Some):
    def draw(self, role: Role, generator: Generator) -> Examples:
        assert isinstance(self.whole, LabelledTasks)
        return self.whole.draw(role, generator).select(self.chosen)


class _SomeEnvironments(_Some):
    def rollout(self, policy: Policy, generator: Generator) -> Rollout:
        return rollout_in_whole(environments_of(self.whole), self.chosen, policy, generator)
