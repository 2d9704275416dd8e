"""Environments that are seen by cameras, for families of pictures among other observations."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from metarl import GymnasiumFamily, Sampling
from metarl.networks import Network

CONV = Network("convnet", hidden=(3,), kernels=(5,), downsample="flat", joint=(6,), activation="tanh")
"""A small network of pictures."""


class Slider(gymnasium.Env[Any, Any]):
    """A bright column that moves left and right, and is paid for being at a goal that nobody sees.

    ``views`` are the pictures by name: shape, dtype and largest value. ``speed`` is a vector beside them; without it,
    the only view is all that is observed. Episodes end early where ``ends`` steps were taken.
    """

    def __init__(self, goal: float = 0.0, views: Any = None, speed: bool = True, ends: int = 99) -> None:
        self.views = {"camera": ((8, 12, 3), np.uint8, 255)} if views is None else views
        found: dict[str, Any] = {
            name: spaces.Box(0, most, shape, dtype) for name, (shape, dtype, most) in self.views.items()
        }
        if speed:
            found["arm"] = spaces.Dict(speed=spaces.Box(-9, 9, (1,)), fast=spaces.Discrete(2, start=1))
        self.parts = found
        self.observation_space = spaces.Dict(found) if speed else next(iter(found.values()))
        self.action_space = spaces.Box(np.array([-2.0], np.float32), np.array([4.0], np.float32))
        self.goal, self.ends, self.place, self.taken = goal, ends, 0.0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.taken, self.last = float(self.np_random.uniform(-0.5, 0.5)), 0, 0.0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.last = float(action[0]) - 1
        self.place = float(np.clip(self.place + 0.1 * self.last, -1, 1))
        self.taken += 1
        near = abs(self.place - self.goal) < 0.1
        return self._seen(), -abs(self.place - self.goal), self.taken >= self.ends, False, {"success": near}

    def _seen(self) -> Any:
        pictures = {name: self._view(*view) for name, view in self.views.items()}
        if "arm" not in self.parts:
            return next(iter(pictures.values()))
        arm = {"speed": np.array([self.last], np.float32), "fast": np.int64(1 + (abs(self.last) > 0.5))}
        return {**pictures, "arm": arm}

    def _view(self, shape: tuple[int, ...], dtype: Any, most: float) -> Any:
        picture = np.zeros(shape, dtype)
        axis = len(shape) - 2 if shape[-1] < min(shape[-3:-1]) else len(shape) - 1
        column = round((self.place + 1) / 2 * (shape[axis] - 1))
        np.moveaxis(picture, axis, 0)[column] = most
        return picture


def sliders(wrap: Any = None, episodes: int = 3, horizon: int = 6, **options: Any) -> GymnasiumFamily:
    """A family of sliders with goals in [-0.5, 0.5]."""

    def make() -> Any:
        env = Slider(**options)
        return env if wrap is None else wrap(env)

    def put(env: Any, goal: float) -> None:
        env.unwrapped.goal = goal

    sampling = Sampling(episodes=episodes, horizon=horizon)
    return GymnasiumFamily(make, spaces.Dict(goal=spaces.Box(-0.5, 0.5)), apply=put, sampling=sampling)
