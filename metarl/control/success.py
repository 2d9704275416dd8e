"""Success, which some environments report in their infos, collected along with a rollout."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Generator, Tensor

from metarl.control.protocols import Snapshots
from metarl.environments import SUCCESS, flags
from metarl.types import Rollout


class SuccessWatch(VectorWrapper):  # no generic class before Gymnasium 1.4
    """Passes everything on, and remembers which lanes reported success at any step.

    A lane that has finished idles and so reports nothing new.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.succeeded: Tensor | None = None
        """``[lane]``; None until some lane reports success or failure."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment."""
        outcome = self.env.step(actions)
        name = next((name for name in SUCCESS if name in outcome[4]), None)
        if name is not None:
            now = _succeeded(name, outcome[4])
            self.succeeded = now if self.succeeded is None else self.succeeded | now
        return outcome

    @property
    def generator(self) -> Generator:
        """The random generator of the environment's steps. Raises AttributeError if the environment has none."""
        inner: Any = self.env
        generator: Generator = inner.generator
        return generator

    def snapshot(self) -> tuple[Any, ...] | None:
        """Return all state that a step reads and changes, as tensors; None if the environment offers no snapshot."""
        # Do not look through another wrapper in between: it may have state of its own.
        return (self.env.snapshot(), self.succeeded) if isinstance(self.env, Snapshots) else None

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Continue from a snapshot."""
        inner: Any = self.env
        inner.restore(snapshot[0])
        self.succeeded = snapshot[1]

    def scored(self, rollout: Rollout) -> Rollout:
        """Return a rollout that was collected from this environment, with the success of each episode if reported."""
        if self.succeeded is None:
            return rollout
        return replace(rollout, success=self.succeeded.to(rollout.rewards).reshape(rollout.rewards.shape[:2]))


def _succeeded(name: str, info: dict[str, Any]) -> Tensor:
    """Return which lanes report success, ``[lane]``. Raises ValueError for other values than True, False, 1 and 0."""
    told = info[name]
    values = told if isinstance(told, Tensor) else np.array(told)
    reported = info.get(f"_{name}")
    if reported is not None and not isinstance(values, Tensor):
        values = np.where(np.asarray(reported), values, False)  # what lanes that do not report hold means nothing
    found = flags(f"info[{name!r}]", values)
    return found if isinstance(found, Tensor) else torch.from_numpy(found)
