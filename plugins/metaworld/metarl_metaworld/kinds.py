"""Lanes whose simulations keep to a kind of task, in whatever order tasks come.

Building the simulation of another kind takes some tenths of a second. If kinds have equally many lanes at every reset,
none is built twice.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from metarl.environments import Array, LaneError, as_array


class KindLanes(VectorWrapper):
    """Lanes of ``Manipulation``, which simulate tasks in the order of their kinds; the caller sees its own order.

    Args:
        env: The lanes, with the parameter ``task``.
        kinds: The kind of each task.

    Raises:
        LaneError: as the lanes do.
    """

    places: Any = None
    """Some lanes of a larger batch are as they are there (``metarl.control.Placed``): the seed has no effect."""

    def __init__(self, env: VectorEnv[Any, Any, Any], kinds: Sequence[int]) -> None:
        super().__init__(env)
        self._kinds = np.array(kinds)
        self._order = np.arange(self.num_envs)  # the caller's lane of each simulation

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Reset lanes. The seed has no effect, as in ``Manipulation``."""
        given = {name: as_array(values) for name, values in (options or {}).items()}
        tasks = given.get("task")
        # Lanes that go on keep their simulations.
        if tasks is not None and tasks.shape == (self.num_envs,) and np.all(given.get("reset_mask", True)):
            self._order = np.argsort(self._kinds.take(tasks.astype(int), mode="clip"), kind="stable")
        with self._renumbered():
            moved = {name: self._moved(values) for name, values in given.items()}
            observations, infos = self.env.reset(seed=None, options=moved)
        return self._returned(observations), infos

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Act in every lane that has not finished."""
        with self._renumbered():
            *results, infos = self.env.step(self._moved(as_array(actions)))
        observations, rewards, terminated, truncated = map(self._returned, results)
        infos = {name: self._returned(told) for name, told in infos.items()}
        return observations, rewards, terminated, truncated, infos

    def _moved(self, values: Array) -> Array:
        # What has no row for each lane is refused by the lanes themselves.
        return values[self._order] if values.shape[:1] == (self.num_envs,) else values

    def _returned(self, values: Array) -> Array:
        ours = np.empty_like(values)
        ours[self._order] = values
        return ours

    @contextmanager
    def _renumbered(self) -> Iterator[None]:
        try:
            yield
        except LaneError as error:
            lanes = [int(self._order[lane]) for lane in error.lanes]
            raise LaneError(f"lanes {lanes}, which here are numbered by kind: {error}", lanes) from error
