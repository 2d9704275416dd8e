"""Lanes that are lent for one draw after another: to make them takes longer than an iteration."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from gymnasium.vector import VectorEnv

MakeLanes = Callable[[int, torch.device], VectorEnv[Any, Any, Any]]
"""``(num_envs, device) -> lanes``"""


@runtime_checkable
class Lends(Protocol):
    """Makes lanes, as any function ``(num_envs, device) -> lanes`` does, and also lends some that it has."""

    def lent(self, num_envs: int, device: torch.device) -> AbstractContextManager[VectorEnv[Any, Any, Any]]:
        """Lend lanes that nobody else uses meanwhile, to be reset before they are used."""


class Pool:
    """Makes lanes, which belong to the caller, and lends lanes, which nobody else uses meanwhile.

    Threads and processes that borrow at the same time get different lanes. A copy has lanes of its own.
    """

    def __init__(self, make: MakeLanes) -> None:
        self._make = make
        self._idle: dict[Any, list[VectorEnv[Any, Any, Any]]] = {}

    def __call__(self, num_envs: int, device: torch.device) -> VectorEnv[Any, Any, Any]:
        """Return new lanes."""
        return self._make(num_envs, device)

    @contextmanager
    def lent(self, num_envs: int, device: torch.device) -> Iterator[VectorEnv[Any, Any, Any]]:
        """Lend lanes, those that were given back last or new ones."""
        # A fork would share the worker processes with its parent.
        idle = self._idle.setdefault((num_envs, device, torch.get_default_dtype(), os.getpid()), [])
        try:
            lanes = idle.pop()  # threads cannot pop the same
        except IndexError:
            lanes = self._make(num_envs, device)
        try:
            yield lanes
        finally:
            if not lanes.closed:
                idle.append(lanes)

    def __reduce__(self) -> tuple[type["Pool"], tuple[MakeLanes]]:
        return type(self), (self._make,)
