"""A single environment of a ``GymnasiumFamily``, with the observations and actions of its lanes."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from metarl.environments import lanes, making
from metarl.environments.bookkeeping import plain_seed
from metarl.environments.observations import named
from metarl.environments.spaces import Env
from metarl.spec import Spec


class SingleEnv(gymnasium.Env[Any, Any]):
    """A single lane, which can be rendered. The only time limit is the environment's own.

    Args:
        env: Id of a registered environment, or a function that makes one. To be rendered, it must accept the keyword
            ``render_mode``.
        space: The parameters that differ between tasks, and their ranges.
        apply: How the environment receives its parameters.
        spec: The policy's inputs and outputs.
        parameters: The task's parameters by name.
        render_mode: One of the environment's own render modes.
        frame_skip: Steps of the environment for which each action is applied.
        action_scale: The policy's action that reaches the upper bounds of a Box action space.

    Raises:
        LaneError: from ``reset`` and ``step``, as lanes raise it.
    """

    def __init__(
        self,
        env: making.Maker,
        space: spaces.Dict,
        apply: making.Apply,
        spec: Spec,
        parameters: Mapping[str, Any],
        render_mode: str | None = None,
        frame_skip: int = 1,
        action_scale: float = 1.0,
    ):
        self.render_mode, self._maker = render_mode, env
        self._made: Env | None = None
        options = lanes.LaneOptions(self._make, space, apply, spec, 1, name=named(env))
        self._lane = lanes.Lanes(options._replace(frame_skip=frame_skip, action_scale=action_scale))
        self.observation_space, self.action_space = self._lane.single_observation_space, self._lane.single_action_space
        self._rows = {name: np.asarray(value)[None] for name, value in parameters.items()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode. Options are task parameters, which hold until they are set again."""
        seed = plain_seed(seed)
        super().reset(seed=seed)
        rows = self._rows | {name: np.asarray(value)[None] for name, value in (options or {}).items()}
        observations, _ = self._lane.reset(seed=seed, options=dict(rows))
        self._rows = rows
        return observations[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step with a policy's action: numbers in [-1, 1], or the index of an action."""
        observations, rewards, terminations, truncations, _ = self._lane.step(np.asarray(action)[None])
        return observations[0], float(rewards[0]), bool(terminations[0]), bool(truncations[0]), {}

    def render(self) -> Any:
        """Return the environment's own rendering. Raises ResetNeeded before the first reset."""
        if self._made is None:
            raise ResetNeeded("the environment must be reset before it is rendered")
        return self._made.render()

    def close(self) -> None:
        """Close the environment."""
        self._lane.close()

    def _make(self, **keywords: Any) -> Env:
        if self.render_mode is not None:
            keywords["render_mode"] = self.render_mode
        self._made = making.make_env(self._maker, "keyword", keywords)
        self.metadata = self._made.metadata
        return self._made


class OwnEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The environment itself, with its own observations and actions, of one task.

    Args: as of ``SingleEnv``; ``values`` are the task's parameters as the environment gets them.
    """

    def __init__(self, env: making.Maker, apply: making.Apply, values: Mapping[str, Any], frame_skip: int = 1):
        super().__init__(making.make_env(env, apply, values))
        self._apply, self._values, self._repeats = apply, dict(values), frame_skip
        making.apply_parameters(self.env, apply, self._values)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode of the task."""
        making.apply_parameters(self.env, self._apply, self._values)
        given = {**self._values, **(options or {})} if self._apply == "options" else options
        return self.env.reset(seed=seed, options=given)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Apply an action for ``frame_skip`` steps, unless the episode ends before. The reward is their sum."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        for _ in range(self._repeats - 1):
            if terminated or truncated:
                break
            observation, more, terminated, truncated, info = self.env.step(action)
            reward += more  # type: ignore[operator]
        return observation, reward, terminated, truncated, info
