"""Success, which some environments tell of in their infos, gathered beside a rollout."""

from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor

from metarl.types import Rollout


class SuccessWatch(VectorWrapper):  # no generic class before Gymnasium 1.4
    """Passes everything on, and remembers which lanes told of success at any step.

    A lane that has finished idles, and so tells nothing new.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.succeeded: Tensor | None = None
        """``[lane]``; None while no lane has told of success, or the lack of it."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment."""
        outcome = self.env.step(actions)
        if "success" in outcome[4]:
            told = _flags(outcome[4]["success"]).reshape(self.num_envs)
            self.succeeded = told if self.succeeded is None else self.succeeded | told
        return outcome

    def snapshot(self) -> tuple[Any, ...] | None:
        """Return all that steps read and change, as tensors; None where the environment does not tell."""
        # Another wrapper in between may keep what only it knows of.
        return (self.env.snapshot(), self.succeeded) if hasattr(self.env, "snapshot") else None

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go on from a snapshot."""
        inner: Any = self.env
        inner.restore(snapshot[0])
        self.succeeded = snapshot[1]

    def scored(self, rollout: Rollout) -> Rollout:
        """Return the rollout that was collected from the environment, with the success of each episode, if told."""
        if self.succeeded is None:
            return rollout
        return rollout._replace(success=self.succeeded.to(rollout.rewards).reshape(rollout.rewards.shape[:2]))


def _flags(values: Any) -> Tensor:
    return values.bool() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=bool))
