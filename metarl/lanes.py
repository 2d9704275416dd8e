"""Any Gymnasium environment as lanes of a vector environment, seen as a policy sees it, in this process."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, SupportsFloat, TypeGuard

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from metarl.control import LaneError
from metarl.types import Spec

Env = gymnasium.Env[Any, Any]
Array = np.ndarray[Any, Any]
Maker = str | Callable[..., Env]
"""Id of a registered environment, or a function that makes one."""
Apply = Literal["keyword", "options", "attribute"] | Callable[..., object]
"""How task parameters reach an environment; see ``metarl.families.GymnasiumFamily.apply``."""


def make(env: Maker, apply: Apply, values: Mapping[str, Any]) -> Env:
    """Make an environment from its id or function, with ``values`` as keywords where that is how they are applied."""
    keywords = dict(values) if apply == "keyword" else {}
    # Gymnasium's checker looks at the first step only; the lanes look at every one.
    return gymnasium.make(env, disable_env_checker=True, **keywords) if isinstance(env, str) else env(**keywords)


def assign(env: Env, apply: Apply, values: Mapping[str, Any]) -> None:
    """Apply ``values`` to a made environment, where they are attributes (ValueError if absent) or a function's job."""
    if callable(apply):
        apply(env, **values)
    elif apply == "attribute":
        if missing := [name for name in values if not hasattr(env.unwrapped, name)]:
            raise ValueError(f"{env.unwrapped} has no attribute {', '.join(missing)} to hold a task parameter")
        for name, value in values.items():
            setattr(env.unwrapped, name, value)


def spec_of(env: Env, parameters: spaces.Dict) -> Spec:
    """Return what an environment's spaces ask of a policy. Raises ValueError for spaces that cannot be served."""
    descriptor_size = sum(math.prod(space.shape or ()) for space in parameters.spaces.values())
    seen, acted = env.observation_space, env.action_space
    if not isinstance(seen, spaces.Box | spaces.Discrete):
        raise ValueError(
            f"observations of {seen} cannot be read: expected Box or Discrete; wrap the environment, "
            "for example in gymnasium.wrappers.FlattenObservation"
        )
    input_shape = (int(seen.n),) if isinstance(seen, spaces.Discrete) else seen.shape
    if isinstance(acted, spaces.Discrete):
        return Spec(input_shape, int(acted.n), "discrete", descriptor_size)
    if is_bounded_box(acted):
        return Spec(input_shape, math.prod(acted.shape), "continuous", descriptor_size)
    raise ValueError(f"actions of {acted} cannot be chosen: expected Discrete or a bounded Box of floats")


def is_bounded_box(space: spaces.Space[Any]) -> TypeGuard["spaces.Box[Any]"]:
    """Return whether a space is a Box of floating-point numbers with finite ends."""
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.is_bounded()


def middle(space: spaces.Space[Any]) -> Array:
    """Return the middle of a bounded Box, or the first element of a Discrete space, as an array."""
    if isinstance(space, spaces.Box):
        return np.asarray((space.low.astype(float) + space.high) / 2)
    assert isinstance(space, spaces.Discrete)
    return np.asarray(space.start)


def plain(space: spaces.Space[Any], row: Array) -> Any:
    """Return a task parameter as environments take it: an int, a float where it is one number, or an array."""
    if isinstance(space, spaces.Discrete):
        return int(row)
    return float(row.item()) if row.size == 1 else row.astype(space.dtype)


class Lanes(VectorEnv[Any, Any, Any]):
    """One environment per lane, stepped in turn; NumPy arrays in and out; a finished lane idles until it is reset.

    Observations and actions are the policy's: see ``metarl.families.GymnasiumFamily``. Lane i is seeded with
    ``seed + i``. Until ``reset`` is given parameters, every lane runs the task in the middle of the ranges.

    Args:
        env: Id of a registered environment, or a function that makes one.
        parameters: What tasks differ in.
        apply: How parameters reach an environment.
        spec: What every environment must ask of a policy, whatever its task.
        num_envs: Number of lanes.
        horizon: Steps after which a lane is truncated, its environment's own limit aside; None for never.

    Raises:
        LaneError: an environment raised, asks for another spec, or gave an observation of another shape or a number
            that is not finite; names the lane and its step (0 is the reset) and chains the cause.
        ValueError: unknown reset options, wrong shapes, or actions that are not finite.
    """

    def __init__(
        self, env: Maker, parameters: spaces.Dict, apply: Apply, spec: Spec, num_envs: int, horizon: int | None = None
    ):
        if num_envs < 1 or (horizon is not None and horizon < 1):
            raise ValueError(f"a batch needs at least one lane and one step, not {num_envs} and {horizon}")
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.num_envs, self.horizon, self.parameter_space = num_envs, horizon, parameters
        self.single_observation_space, self.single_action_space = _policy_spaces(spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._env, self._apply, self._policy_spec = env, apply, spec
        self._envs: dict[int, Env] = {}
        self._rows = {name: np.stack([middle(space)] * num_envs) for name, space in parameters.spaces.items()}
        self._outdated = np.ones(num_envs, dtype=bool)
        self._low, self._high = np.zeros((2, num_envs, spec.output_size))
        self._observations = np.zeros((num_envs, *spec.input_shape), dtype=self.single_observation_space.dtype)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._terminated, self._truncated = np.zeros((2, num_envs), dtype=bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Restart the lanes of ``options["reset_mask"]`` (all without it); the others go on undisturbed.

        The other options are task parameters, one row per lane, of which the restarted lanes take theirs.
        """
        super().reset(seed=seed)
        given = {name: _array(value) for name, value in (options or {}).items()}
        restarted = given.pop("reset_mask", np.ones(self.num_envs)).astype(bool)
        if restarted.shape != (self.num_envs,):
            raise ValueError(f"reset_mask has shape {restarted.shape} where {(self.num_envs,)} was expected")
        self._take(given, restarted)
        for lane in np.flatnonzero(restarted).tolist():
            self._restart(lane, None if seed is None else seed + lane)
        return self._observations.copy(), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Act in every lane that has not finished."""
        if len(self._envs) < self.num_envs:
            raise ResetNeeded("every lane must be reset before the first step")
        scaled = self._scaled(_array(actions))
        rewards = np.zeros(self.num_envs, dtype=self._observations.dtype)
        for lane in np.flatnonzero(~(self._terminated | self._truncated)).tolist():
            rewards[lane] = self._advance(lane, scaled[lane])
        return self._observations.copy(), rewards, self._terminated.copy(), self._truncated.copy(), {}

    def close_extras(self, **kwargs: Any) -> None:
        """Close every lane's environment."""
        for env in self._envs.values():
            env.close()

    def _take(self, given: Mapping[str, Array], restarted: Array) -> None:
        """Put task parameters in force in the restarted lanes."""
        if unknown := sorted(set(given) - set(self._rows)):
            raise ValueError(f"unknown options {unknown}: expected some of {[*self._rows, 'reset_mask']}")
        for name, rows in given.items():
            old = self._rows[name]
            if rows.shape != old.shape or not np.can_cast(rows.dtype, old.dtype, "same_kind"):
                raise ValueError(f"{name} is {rows.dtype} {rows.shape} where {old.dtype} {old.shape} was expected")
        for name, rows in given.items():
            differs = (rows != self._rows[name]).reshape(self.num_envs, -1).any(1)
            self._outdated |= differs & restarted
            self._rows[name][restarted] = rows[restarted]

    def _restart(self, lane: int, seed: int | None) -> None:
        values = {name: plain(space, self._rows[name][lane]) for name, space in self.parameter_space.spaces.items()}
        with _blamed(lane, step=0):
            env = self._made(lane, values)
            assign(env, self._apply, values)
            observation, _ = env.reset(seed=seed, options=values if self._apply == "options" else None)
            self._observations[lane] = _seen(env.observation_space, observation)
        self._elapsed[lane], self._terminated[lane], self._truncated[lane] = 0, False, False

    def _made(self, lane: int, values: Mapping[str, Any]) -> Env:
        """Return the lane's environment, made anew where it is missing or was constructed for another task."""
        if lane not in self._envs or (self._apply == "keyword" and self._outdated[lane]):
            if lane in self._envs:
                self._envs.pop(lane).close()
            env = make(self._env, self._apply, values)
            if (asked := spec_of(env, self.parameter_space)) != self._policy_spec:
                env.close()
                raise ValueError(f"the task {values} asks for {asked} where its family has {self._policy_spec}")
            self._envs[lane], (self._low[lane], self._high[lane]) = env, _bounds(env.action_space)
        self._outdated[lane] = False
        return self._envs[lane]

    def _scaled(self, actions: Array) -> Any:
        """Return each lane's action as its environment takes it."""
        if actions.shape != self.action_space.shape or not np.isfinite(actions).all():
            raise ValueError(f"actions of shape {actions.shape}: expected finite numbers of {self.action_space.shape}")
        acted = self._envs[0].action_space
        if isinstance(acted, spaces.Discrete):
            return (actions + self._low[:, 0]).astype(int).tolist()
        scaled = self._low + (self._high - self._low) * (np.clip(actions, -1, 1) + 1) / 2
        return np.clip(scaled, self._low, self._high).reshape(-1, *(acted.shape or ())).astype(acted.dtype)

    def _advance(self, lane: int, action: Any) -> float:
        """Step one lane and return its reward."""
        env, step = self._envs[lane], int(self._elapsed[lane]) + 1
        with _blamed(lane, step):
            observation, reward, terminated, truncated, _ = env.step(action)
            self._observations[lane] = _seen(env.observation_space, observation)
            if not (isinstance(reward, SupportsFloat) and math.isfinite(reward)):
                raise ValueError(f"the reward is {reward!r}, not a finite number")
        self._elapsed[lane] = step
        self._terminated[lane], self._truncated[lane] = terminated, truncated or step == self.horizon
        return float(reward)


@contextmanager
def _blamed(lane: int, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise LaneError(f"lane {lane}, step {step}: {type(error).__name__}: {error}", [lane]) from error


def _seen(space: spaces.Space[Any], observation: Any) -> Array:
    """Return an observation as the policy reads it. Raises ValueError for one that its space does not promise."""
    array = np.asarray(observation)
    if array.shape != space.shape:
        raise ValueError(f"an observation has shape {array.shape} where {space.shape} was expected")
    if isinstance(space, spaces.Discrete):
        if observation not in space:
            raise ValueError(f"the observation {observation!r} is not in {space}")
        return np.asarray(np.arange(space.start, space.start + space.n) == array)
    if not np.isfinite(array).all():
        raise ValueError(f"an observation holds numbers that are not finite: {observation!r}")
    return array


def _bounds(space: spaces.Space[Any]) -> tuple[Any, Any]:
    """Return the ends of an action space, one number per action dimension; a Discrete space starts at its first."""
    if isinstance(space, spaces.Box):
        return space.low.ravel(), space.high.ravel()
    assert isinstance(space, spaces.Discrete)
    return space.start, space.start


def _policy_spaces(spec: Spec) -> tuple[spaces.Box, spaces.Box | spaces.Discrete]:
    """Return what a policy reads and chooses, in torch's default dtype."""
    dtype = torch.empty(0).numpy().dtype.type
    observations = spaces.Box(-np.inf, np.inf, spec.input_shape, dtype=dtype)
    if spec.kind == "discrete":
        return observations, spaces.Discrete(spec.output_size)
    return observations, spaces.Box(-1, 1, (spec.output_size,), dtype=dtype)


def _array(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
