"""Success, which some environments tell of in their infos, gathered beside a rollout."""

from typing import Any

import torch
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor

from metarl.types import Rollout, ScoredRollout


class SuccessWatch(VectorWrapper[Any, Any, Any]):
    """Passes everything on, and remembers which lanes told of success, at any step, before their episode ended."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.succeeded: Tensor | None = None
        """``[lane]``; None while no lane has told of success, or the lack of it."""
        self._running = torch.ones(env.num_envs, dtype=torch.bool)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "success" in infos:
            told = self._flags(infos["success"]) & self._running
            self.succeeded = told if self.succeeded is None else self.succeeded | told
        self._running &= ~(self._flags(terminated) | self._flags(truncated))
        return observations, rewards, terminated, truncated, infos

    def scored(self, rollout: Rollout) -> Rollout:
        """Return the rollout that was collected from the environment, with the success of each episode, if told."""
        if self.succeeded is None:
            return rollout
        scored = ScoredRollout(*rollout)
        scored.success = self.succeeded.to(rollout.rewards).reshape(rollout.rewards.shape[:2])
        return scored

    def _flags(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.bool, device="cpu").reshape(self._running.shape)
