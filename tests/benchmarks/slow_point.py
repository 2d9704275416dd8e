"""An environment that is slow without needing a CPU; in a module of its own, so that worker processes can import it."""

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Slow(gymnasium.Env[Any, Any]):
    """A point that takes 5 ms for a step, as a simulator on another machine may: it waits, and needs no CPU."""

    observation_space = spaces.Box(-10.0, 10.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, goal: float = 0.0) -> None:
        self.goal, self.place = goal, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = 0.0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(0.005)
        self.place = float(np.clip(self.place + action[0], -10, 10))
        return np.array([self.place], np.float32), -abs(self.place - self.goal), False, False, {}
