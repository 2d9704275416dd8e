"""Environments with several choices and observations of several parts, whose dynamics are easy to follow."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

MOVES = spaces.MultiDiscrete([3, 2, 3], start=[-1, 0, 5])
"""Left, stay or right; rest or not; and a dial."""
SEEN = spaces.Dict(
    arm=spaces.Dict(angle=spaces.Box(-10, 10, (2,)), joint=spaces.Discrete(3, start=1)),
    flags=spaces.MultiBinary(2),
    image=spaces.Box(0, 255, (2, 2), np.uint8),
    pair=spaces.Tuple([spaces.MultiDiscrete([2, 3], start=[0, -1]), spaces.Box(-1, 1, (), np.float64)]),
)
"""Of 2 + 3 + 2 + 4 + 5 + 1 numbers."""


class Dials(gymnasium.Env[Any, Any]):
    """A position is moved by the first choice, and the reward is higher the nearer it is to a goal.

    ``acts`` are the actions, ``sees`` the observations: a Box of the position, or ``SEEN``.
    """

    def __init__(self, goal: float = 0.0, acts: Any = MOVES, sees: Any = None, render_mode: str | None = None) -> None:
        self.goal, self.action_space, self.render_mode = goal, acts, render_mode
        self.observation_space = spaces.Box(-10, 10, (1,)) if sees is None else sees
        self.position, self.last, self.metadata = 0.0, None, {"render_modes": ["rgb_array"], "render_fps": 10}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.last = float(self.np_random.uniform(-1, 1)), None
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is no action"
        self.last = action
        first = float(np.ravel(action)[0])
        self.position += first / 2 if isinstance(self.action_space, spaces.MultiDiscrete) else 0.1 * first
        return self._seen(), -abs(self.position - self.goal), False, False, {}

    def render(self) -> Any:
        return np.full((32, 32, 3), 128, np.uint8)

    def _seen(self) -> Any:
        position = np.clip(self.position, -10, 10)
        if self.observation_space is not SEEN and not isinstance(self.observation_space, spaces.Dict):
            return np.array([position], np.float32)
        angle = np.array([position, -position], np.float32)
        whole = {
            "arm": {"angle": angle, "joint": np.int64(2)},
            "flags": np.array([1, 0], np.int8),
            "image": np.array([[0, 255], [51, 102]], np.uint8),
            "pair": (np.array([1, 1]), np.array(0.25)),
        }
        return {name: whole[name] for name in self.observation_space.spaces}
