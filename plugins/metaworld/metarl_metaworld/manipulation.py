"""One environment for all of Meta-World's tasks, which takes the number of its task when it is reset.

Nothing here imports torch, so that worker processes stay small.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from metaworld.types import Task

import metaworld

HORIZON = 500
"""Steps after which Meta-World truncates every episode."""
OBSERVATION_SIZE, ACTION_SIZE = 39, 4


class Manipulation(gymnasium.Env[Any, Any]):
    """Meta-World's robot arm with a task of a list.

    ``reset(options={"task": i})`` sets the task; without, the last one stays (the first is number 0). Observations are
    Meta-World's 39 numbers (metres, quaternions, the opening of the gripper in [0, 1]; two time steps) with zeros for
    the goal, which is hidden. Actions in [-1, 1] move the hand along three axes and close the gripper. Rewards are its
    shaped ones, from 0 to 10 per step; ``info["success"]`` tells whether the task is solved at that step. Resets are
    not random: episodes of one task all begin alike.

    The simulation of another kind of task is built when it is asked for, which takes some tenths of a second.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, tasks: Sequence[Task]):
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), dtype=np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_SIZE,), dtype=np.float32)
        self._tasks, self._task = tasks, 0
        self._kind, self._env = "", None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Restart; the seed has no effect."""
        super().reset(seed=seed)
        self._task = int((options or {}).get("task", self._task))
        task = self._tasks[self._task]
        if self._kind != task.env_name:
            self.close()
            self._kind, self._env = task.env_name, metaworld.ALL_V3_ENVIRONMENTS[task.env_name]()
        self._env.set_task(task)
        return self._env.reset()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act."""
        return self._env.step(action)

    def close(self) -> None:
        """Free the simulation."""
        if self._env is not None:
            self._env.close()
            self._kind, self._env = "", None
