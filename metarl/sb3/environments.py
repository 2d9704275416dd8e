"""A control family as a Stable-Baselines3 ``VecEnv``, for any of its algorithms."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from metarl.control import ControlFamily, TorchLanes, check_environment
from metarl.environments import as_array, composite, flags, flat, plain_seed
from metarl.seeding import stream
from metarl.types import Split, Tasks

Array = np.ndarray[Any, Any]
Indices = Any
"""None for every lane, a lane's number, or several of them."""


class TaskVecEnv(VecEnv):
    """Lanes of a control family, each with its own task. A finished lane starts its next episode at once.

    The family's horizon limits episodes. The info of an episode's last step holds ``task``, the episode's task
    parameters by name, and the keys that Stable-Baselines3 uses: ``episode`` (as its Monitor writes it),
    ``terminal_observation`` and ``TimeLimit.truncated``. ``get_attr`` returns a task parameter of every lane.

    Args:
        family: A control family.
        num_envs: Number of lanes.
        tasks: Tasks to cycle through, n of them: episode k of lane i has task (i + k num_envs) % n, starting over at
            every ``reset``. None: every episode has a new task.
        split: The split that new tasks are sampled from.
        seed: Seed of the new tasks and of the environments. ``seed()`` changes it from the next reset on.

    Raises:
        ValueError: the family is not a control family, or its environment does not match its Spec.
    """

    def __init__(
        self,
        family: ControlFamily,
        num_envs: int = 8,
        tasks: Tasks | None = None,
        split: Split = "train",
        seed: int = 0,
    ):
        if not (family.spec.control and isinstance(family, ControlFamily)):
            raise ValueError(f"{type(family).__name__} is no control family: it has no environment to act in")
        # A family may cache its lanes. A copy with the same options does not share them.
        own: Any = dataclasses.replace(family)  # type: ignore[type-var]
        self._lanes: VectorEnv = own.environment(num_envs, torch.device("cpu"))
        check_environment(self._lanes, num_envs, family.spec)
        lanes = self._lanes.unwrapped
        self._device = lanes.device if isinstance(lanes, TorchLanes) else None
        self._family, self._tasks, self._split = family, tasks, split
        self._parameters: dict[str, Tensor] = {}
        self._actions = np.zeros(0)
        self._began = time.perf_counter()
        self._episodes = np.zeros(num_envs, dtype=np.int64)
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
        sees: Any = self._lanes.single_observation_space
        if composite(sees):
            sees = spaces.Box(-np.inf, np.inf, family.spec.input_shape)
        super().__init__(num_envs, sees, self._lanes.single_action_space)
        self.seed(seed)

    def reset(self) -> Array:
        """Start new episodes in every lane."""
        seed, self._episodes[:] = self._seeds[0], 0
        if seed is not None:
            self._generator = stream(seed, "tasks/sb3")
        self._reset_seeds()
        return self._restart(np.ones(self.num_envs, dtype=np.bool_), seed)

    def seed(self, seed: Any = None) -> Sequence[int | None]:
        """Seed the next reset, by any integer. Raises ValueError for anything else."""
        return super().seed(plain_seed(seed))

    def step_async(self, actions: Array) -> None:
        """Store the actions for ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Take a step in every lane. Raises what the environment raises."""
        actions = self._actions if self._device is None else torch.as_tensor(self._actions, device=self._device)
        step_results = self._lanes.step(actions)
        observations = self._seen(step_results[0])
        rewards, terminated, truncated = map(_array, step_results[1:4])
        terminated, truncated = flags("terminations", terminated), flags("truncations", truncated)
        self._returns += rewards
        self._lengths += 1
        done = np.logical_or(terminated, truncated)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for lane in np.flatnonzero(done).tolist():
            infos[lane] = self._ended(lane) | {
                "terminal_observation": observations[lane].astype(self.observation_space.dtype),
                "TimeLimit.truncated": not terminated[lane],
            }
        if done.any():
            self._episodes += done
            observations = self._restart(done)
        return observations.astype(self.observation_space.dtype), rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Close the lanes."""
        self._lanes.close()

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Raise ValueError: tasks are set in the constructor."""
        raise ValueError("reset takes no options here: pass tasks=... when you create this environment")

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return each lane's value of a task parameter, or an attribute of the vector environment, equal for all."""
        if attr_name in self._parameters:
            return [self._parameters[attr_name][lane].numpy().copy() for lane in self._get_indices(indices)]
        value = None if attr_name == "render_mode" else getattr(self._lanes, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Raise NotImplementedError: a lane is not a separate object."""
        raise NotImplementedError(f"lanes are one batch: the attribute {attr_name} cannot be set for some of them")

    def env_method(self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any) -> Any:
        """Raise NotImplementedError: a lane is not a separate object."""
        raise NotImplementedError(f"lanes are one batch: the method {method_name} cannot be called on some of them")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Return True for Monitor, because infos hold ``episode``, and False for every other wrapper."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[Array | None]:
        """Return no images. For videos, use the family's registered single environment."""
        return [None] * self.num_envs

    def _restart(self, lanes: Array, seed: int | None = None) -> Array:
        """Start new episodes with new tasks in the lanes of a mask. Return the observations of all lanes."""
        drawn = self._next_tasks(np.flatnonzero(lanes))
        if not self._parameters:
            self._parameters = {name: rows.clone() for name, rows in drawn.items()}
        for name, rows in drawn.items():
            self._parameters[name][torch.from_numpy(lanes)] = rows
        self._returns[lanes], self._lengths[lanes] = 0, 0
        observations, _ = self._lanes.reset(seed=seed, options={**self._parameters, "reset_mask": lanes})
        return self._seen(observations).astype(self.observation_space.dtype)

    def _seen(self, observations: Any) -> Array:
        return flat(self._family.spec.observations, observations) if composite(observations) else _array(observations)

    def _next_tasks(self, lanes: Array) -> Mapping[str, Tensor]:
        """Return the parameters of these lanes' next tasks, ``[lane, ...]`` by name."""
        if self._tasks is None:
            return self._family.sample(len(lanes), self._split, self._generator).parameters
        positions = (lanes + self._episodes[lanes] * self.num_envs) % len(self._tasks.descriptors)
        return {name: rows[torch.from_numpy(positions)] for name, rows in self._tasks.parameters.items()}

    def _ended(self, lane: int) -> dict[str, Any]:
        """Return the info of a lane's finished episode."""
        total, length = float(self._returns[lane]), int(self._lengths[lane])
        episode = {"r": total, "l": length, "t": time.perf_counter() - self._began}  # as SB3's Monitor names them
        task = {name: rows[lane].numpy().copy() for name, rows in self._parameters.items()}
        return {"episode": episode, "task": task}


def _array(value: Any) -> Array:
    # A copy: the environment may reuse the array for its next step.
    return np.array(as_array(value))
