"""Any Gymnasium environment as lanes of a vector environment, with a policy's observations and actions.

Nothing here imports torch, so worker processes start in half a second and need only tens of megabytes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import VectorEnv

from metarl.environments.bookkeeping import describe, opened
from metarl.environments.spaces import (
    Array,
    Env,
    bounds,
    checked_actions,
    checked_options,
    middle,
    plain,
    policy_spaces,
    seen,
    spec_of,
)
from metarl.spec import Spec

Maker = str | Callable[..., Env]
"""Id of a registered environment, or a function that makes one."""
Apply = Literal["keyword", "options", "attribute"] | Callable[..., object]
"""How an environment receives task parameters; see ``metarl.control.GymnasiumFamily.apply``."""
NOT_RESET = "every lane must be reset before the first step"
LARGEST_SEED = 2**31 - 1
"""A prime. All seeds are below it: older environments accept only 31 bits, some of them signed."""


class LaneError(RuntimeError):
    """Some lanes of a vector environment failed."""

    def __init__(self, message: str, lanes: list[int]) -> None:
        super().__init__(message)
        self.lanes = lanes

    def __reduce__(self) -> tuple[type["LaneError"], tuple[str, list[int]]]:
        """Keep the lanes when the error is pickled in a worker process."""
        return type(self), (str(self), self.lanes)


def lane_seeds(seed: int, num_envs: int) -> list[int]:
    """Return a different seed for every lane. A lane's seed does not depend on the number of lanes.

    The seeds are start + lane * stride modulo a prime, with a random start and stride. Such a sequence visits every
    integer below the prime before it repeats one. Two values of ``seed`` share a lane's seed by chance only, once in
    2^31 pairs, while with ``seed + lane`` neighbouring values would share nearly all of them.
    """
    start, stride = map(int, np.random.SeedSequence(seed).generate_state(2, np.uint64))
    return [(start + lane * (1 + stride % (LARGEST_SEED - 1))) % LARGEST_SEED for lane in range(num_envs)]


def make_env(env: Maker, apply: Apply, values: Mapping[str, Any]) -> Env:
    """Make an environment from its id or function, with ``values`` as keywords if ``apply`` says so."""
    keywords = dict(values) if apply == "keyword" else {}
    # Gymnasium's checker checks the first step only; the lanes check every step.
    return gymnasium.make(env, disable_env_checker=True, **keywords) if isinstance(env, str) else env(**keywords)


def apply_parameters(env: Env, apply: Apply, values: Mapping[str, Any]) -> None:
    """Set ``values`` on an environment, as attributes or by a function. Raises ValueError for a missing attribute."""
    if callable(apply):
        apply(env, **values)
    elif apply == "attribute":
        if missing := [name for name in values if not hasattr(env.unwrapped, name)]:
            raise ValueError(f"{env.unwrapped} has no attribute {', '.join(missing)} to hold a task parameter")
        for name, value in values.items():
            setattr(env.unwrapped, name, value)


class LaneOptions(NamedTuple):
    """Options of lanes, in this process or in workers."""

    env: Maker
    """Id of a registered environment, or a function that makes one."""
    parameters: spaces.Dict
    """The parameters that differ between tasks, and their ranges."""
    apply: Apply
    """How the environment receives its parameters."""
    spec: Spec
    """The policy's inputs and outputs, which must be the same for every task."""
    num_envs: int
    """Number of lanes."""
    horizon: int | None = None
    """Steps after which a lane is truncated, besides the environment's own limit. None: no limit."""
    dtype: str = "float32"
    """NumPy's name of the dtype of observations, rewards and continuous actions."""


class Lanes(VectorEnv[Any, Any, Any]):
    """One environment per lane, stepped in turn, with NumPy arrays. A finished lane idles until it is reset.

    Observations and actions are the policy's: see ``metarl.control.GymnasiumFamily``. Lane i is seeded with
    ``lane_seeds(seed, num_envs)[i]``. Until ``reset`` sets parameters, every lane runs the task in the middle of the
    ranges. If an environment's info has ``success``, the infos of ``step`` have it too: 1 or 0 for each lane.

    Args:
        options: Options of the lanes.
        first: Number of the first lane in error messages: a worker holds only some of the lanes.

    Raises:
        LaneError: an environment raised, has another spec, or returned an observation of another shape or a number
            that is not finite. Names the lane and its step (0 is the reset), and chains the cause.
        ValueError: unknown reset options, wrong shapes, or actions that are not finite.
    """

    def __init__(self, options: LaneOptions, first: int = 0):
        env, parameters, apply, spec, num_envs, horizon, dtype = options
        describe(self, *policy_spaces(spec, dtype), num_envs, horizon)
        self.horizon, self.parameter_space, self._first = horizon, parameters, first
        self._env, self._apply, self._policy_spec = env, apply, spec
        self._envs: dict[int, Env] = {}
        self._rows = {name: np.stack([middle(space)] * num_envs) for name, space in parameters.spaces.items()}
        self._outdated = np.ones(num_envs, dtype=bool)  # lanes whose environment was made for other parameters
        self._low, self._high = np.zeros((2, num_envs, spec.output_size))
        self._observations = np.zeros((num_envs, *spec.input_shape), dtype=self.single_observation_space.dtype)
        self._book = opened(np.zeros(num_envs, dtype=np.int64))  # updated lane by lane, because any lane may raise

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Reset the lanes in the mask ``options["reset_mask"]``, by default all; the others continue undisturbed.

        The other options are task parameters, one row per lane; only rows of reset lanes take effect. ``seed`` is one
        integer, from which every lane's seed is derived, or one seed per lane.
        """
        given, restarted = checked_options(options or {}, self.parameter_space, self.num_envs)
        seeds = lane_seeds(seed, self.num_envs) if isinstance(seed, int) else seed
        self._take(given, restarted)
        for lane in np.flatnonzero(restarted).tolist():
            self._restart(lane, None if seeds is None else seeds[lane])
        return self._observations.copy(), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Act in every lane that has not finished."""
        if len(self._envs) < self.num_envs:
            raise ResetNeeded(NOT_RESET)
        scaled = self._scaled(checked_actions(actions, self.action_space))
        rewards = np.zeros(self.num_envs, dtype=self._observations.dtype)
        successes: list[bool | None] = [None] * self.num_envs
        for lane in np.flatnonzero(self._book.running).tolist():
            rewards[lane], successes[lane] = self._advance(lane, scaled[lane])
        reported = np.array([success is not None for success in successes])
        info = infos(reported, np.array(successes, dtype=bool))
        return self._observations.copy(), rewards, self._book.terminated.copy(), self._book.truncated.copy(), info

    def close_extras(self, **kwargs: Any) -> None:
        """Close every lane's environment."""
        for env in self._envs.values():
            env.close()

    def _take(self, given: Mapping[str, Array], restarted: Array) -> None:
        """Store the task parameters of the lanes to restart."""
        for name, rows in given.items():
            differs = (rows != self._rows[name]).reshape(self.num_envs, -1).any(1)
            self._outdated |= differs & restarted
            self._rows[name][restarted] = rows[restarted]

    def _restart(self, lane: int, seed: int | None) -> None:
        values = {name: plain(space, self._rows[name][lane]) for name, space in self.parameter_space.spaces.items()}
        try:
            env = self._made(lane, values)
            apply_parameters(env, self._apply, values)
            observation, _ = env.reset(seed=seed, options=values if self._apply == "options" else None)
            self._observations[lane] = seen(env.observation_space, observation)
        except Exception as error:
            raise self._blamed(lane, 0, error) from error
        for values in self._book:
            values[lane] = 0

    def _made(self, lane: int, values: Mapping[str, Any]) -> Env:
        """Return the lane's environment; make a new one if it is missing or was constructed for another task."""
        if lane not in self._envs or (self._apply == "keyword" and self._outdated[lane]):
            if lane in self._envs:
                self._envs.pop(lane).close()
            env = make_env(self._env, self._apply, values)
            if (spec := spec_of(env, self.parameter_space)) != self._policy_spec:
                env.close()
                raise ValueError(f"the task {values} asks for {spec} where its family has {self._policy_spec}")
            self._envs[lane], (self._low[lane], self._high[lane]) = env, bounds(env.action_space)
        self._outdated[lane] = False
        return self._envs[lane]

    def _scaled(self, actions: Array) -> Any:
        """Convert the policy's actions to the environments' actions, one row per lane."""
        action_space = self._envs[0].action_space
        if isinstance(action_space, spaces.Discrete):
            return (actions + self._low[:, 0]).astype(int).tolist()
        scaled = self._low + (self._high - self._low) * (np.clip(actions, -1, 1) + 1) / 2
        within = np.clip(scaled, self._low, self._high)  # rounding may leave the bounds
        return within.reshape(-1, *(action_space.shape or ())).astype(action_space.dtype)

    def _advance(self, lane: int, action: Any) -> tuple[float, bool | None]:
        """Step one lane; return its reward, and whether it succeeded, or None if it does not report success."""
        env, step = self._envs[lane], int(self._book.elapsed[lane]) + 1
        try:
            observation, reward, terminated, truncated, info = env.step(action)
            self._observations[lane] = seen(env.observation_space, observation)
            if not _is_finite(reward):
                raise ValueError(f"the reward is {reward!r}, not a finite number")
            success = info.get("success")
            succeeded = None if success is None else bool(success)
        except Exception as error:
            raise self._blamed(lane, step, error) from error
        self._book.elapsed[lane], self._book.terminated[lane] = step, terminated
        self._book.truncated[lane] = truncated or step == self.horizon
        return float(reward), succeeded

    def _blamed(self, lane: int, step: int, error: Exception) -> LaneError:
        lane += self._first
        return LaneError(f"lane {lane}, step {step}: {type(error).__name__}: {error}", [lane])


def infos(reported: Array, successes: Array) -> dict[str, Any]:
    """Return infos in Gymnasium's form: ``_success`` says which lanes reported ``success``. Empty if none did."""
    return {"success": successes, "_success": reported} if reported.any() else {}


def _is_finite(number: Any) -> bool:
    # Not isinstance(number, SupportsFloat): that takes as long as a step of CartPole.
    try:
        return math.isfinite(number)
    except TypeError:
        return False
