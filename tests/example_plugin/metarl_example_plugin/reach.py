"""Reach: a point on a line moves to a goal that it cannot see."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Generator, Tensor

from metarl.control import ControlTasks, Sampling
from metarl.seeding import uniform
from metarl.types import Spec, Split


class ReachEnv(VectorEnv[Tensor, Tensor, Tensor]):
    """Points that start at 0, one per lane; the reward is minus the distance to the goal, in metres.

    The observation is the position (metres), the action a displacement (metres, clipped to [-0.1, 0.1]).
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int, device: torch.device | str = "cpu") -> None:
        self.num_envs, self.device = num_envs, torch.device(device)
        self.single_observation_space = Box(-np.inf, np.inf, (1,))
        self.single_action_space = Box(-0.1, 0.1, (1,))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.position = self.goal = torch.zeros(num_envs, 1, device=self.device)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Return to 0 in the lanes of ``options["reset_mask"]`` (else all); ``options["goal"]`` is ``[num_envs]``."""
        known = {"goal", "reset_mask"}
        if unknown := set(options or {}) - known:
            raise ValueError(f"unknown reset options {sorted(unknown)}: expected some of {sorted(known)}")
        chosen = {name: torch.as_tensor(value, device=self.device) for name, value in (options or {}).items()}
        self.goal = chosen["goal"].reshape(-1, 1) if "goal" in chosen else self.goal
        restarted = chosen.get("reset_mask", torch.ones(self.num_envs, device=self.device)).bool().reshape(-1, 1)
        self.position = torch.where(restarted, 0.0, self.position)
        return self.position, {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Move every point; nothing ends an episode."""
        self.position = self.position + actions.clamp(-0.1, 0.1)
        running = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return self.position, -(self.position - self.goal).abs().squeeze(-1), running, running, {}


@dataclass(frozen=True)
class Reach:
    """A point on a line reaches a goal in [-distance, distance] that it cannot see."""

    distance: float = 1.0
    """Largest distance of a goal from the start, in metres."""
    sampling: Sampling = field(default_factory=lambda: Sampling(episodes=10, horizon=20))
    """How episodes are sampled."""

    spec = Spec(input_shape=(1,), output_size=1, kind="continuous", descriptor_size=1)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample goals uniformly; the splits share one distribution."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        goals = (2 * uniform(generator, num_tasks) - 1) * self.distance
        return ControlTasks(self.spec, {"goal": goals}, goals.unsqueeze(-1), ReachEnv, self.sampling)
