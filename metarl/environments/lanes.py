"""Any Gymnasium environment as lanes of a vector environment, seen as a policy sees it, in this process.

Nothing here imports torch, so that worker processes start in half a second and take tens of megabytes.
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
"""How task parameters reach an environment; see ``metarl.control.GymnasiumFamily.apply``."""
NOT_RESET = "every lane must be reset before the first step"
LARGEST_SEED = 2**31 - 1
"""A prime. Seeds lie below it: environments older than Gymnasium's generators take 31 bits, some of them signed."""


class LaneError(RuntimeError):
    """What a vector environment raises when some of its lanes broke."""

    def __init__(self, message: str, lanes: list[int]) -> None:
        super().__init__(message)
        self.lanes = lanes

    def __reduce__(self) -> tuple[type["LaneError"], tuple[str, list[int]]]:
        """Keep the lanes on the way from a worker process."""
        return type(self), (str(self), self.lanes)


def lane_seeds(seed: int, num_envs: int) -> list[int]:
    """Return the seed of every lane: never twice the same, and a lane's does not depend on how many there are.

    Steps of a random width through the integers below a prime meet each of them once before any comes again. Two
    different ``seed`` share a lane's seed by chance only, once in 2^31 pairs, not in runs as ``seed + lane`` would.
    """
    start, stride = map(int, np.random.SeedSequence(seed).generate_state(2, np.uint64))
    return [(start + lane * (1 + stride % (LARGEST_SEED - 1))) % LARGEST_SEED for lane in range(num_envs)]


def make_env(env: Maker, apply: Apply, values: Mapping[str, Any]) -> Env:
    """Make an environment from its id or function, with ``values`` as keywords where that is how they are applied."""
    keywords = dict(values) if apply == "keyword" else {}
    # Gymnasium's checker looks at the first step only; the lanes look at every one.
    return gymnasium.make(env, disable_env_checker=True, **keywords) if isinstance(env, str) else env(**keywords)


def apply_parameters(env: Env, apply: Apply, values: Mapping[str, Any]) -> None:
    """Apply ``values`` to a made environment, where they are attributes (ValueError if absent) or a function's job."""
    if callable(apply):
        apply(env, **values)
    elif apply == "attribute":
        if missing := [name for name in values if not hasattr(env.unwrapped, name)]:
            raise ValueError(f"{env.unwrapped} has no attribute {', '.join(missing)} to hold a task parameter")
        for name, value in values.items():
            setattr(env.unwrapped, name, value)


class LaneOptions(NamedTuple):
    """What lanes are made of, in this process or in workers."""

    env: Maker
    """Id of a registered environment, or a function that makes one."""
    parameters: spaces.Dict
    """What tasks differ in."""
    apply: Apply
    """How parameters reach an environment."""
    spec: Spec
    """What every environment must ask of a policy, whatever its task."""
    num_envs: int
    """Number of lanes."""
    horizon: int | None = None
    """Steps after which a lane is truncated, its environment's own limit aside; None for never."""
    dtype: str = "float32"
    """Type of the observations, rewards and continuous actions, by NumPy's name."""


class Lanes(VectorEnv[Any, Any, Any]):
    """One environment per lane, stepped in turn; NumPy arrays in and out; a finished lane idles until it is reset.

    Observations and actions are the policy's: see ``metarl.control.GymnasiumFamily``. Lane i is seeded with
    ``lane_seeds(seed, num_envs)[i]``. Until ``reset`` is given parameters, every lane runs the task in the middle of
    the ranges. Where an environment's info holds ``success``, so do the infos of ``step``: 1 or 0 for each lane.

    Args:
        options: What the lanes are made of.
        first: Number of the first lane, for errors: a worker holds some of many.

    Raises:
        LaneError: an environment raised, asks for another spec, or gave an observation of another shape or a number
            that is not finite; names the lane and its step (0 is the reset) and chains the cause.
        ValueError: unknown reset options, wrong shapes, or actions that are not finite.
    """

    def __init__(self, options: LaneOptions, first: int = 0):
        env, parameters, apply, spec, num_envs, horizon, dtype = options
        describe(self, *policy_spaces(spec, dtype), num_envs, horizon)
        self.horizon, self.parameter_space, self._first = horizon, parameters, first
        self._env, self._apply, self._policy_spec = env, apply, spec
        self._envs: dict[int, Env] = {}
        self._rows = {name: np.stack([middle(space)] * num_envs) for name, space in parameters.spaces.items()}
        self._outdated = np.ones(num_envs, dtype=bool)
        self._low, self._high = np.zeros((2, num_envs, spec.output_size))
        self._observations = np.zeros((num_envs, *spec.input_shape), dtype=self.single_observation_space.dtype)
        self._book = opened(np.zeros(num_envs, dtype=np.int64))  # written lane by lane: any of them may raise

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Restart the lanes of ``options["reset_mask"]`` (all without it); the others go on undisturbed.

        The other options are task parameters, one row per lane, of which the restarted lanes take theirs. ``seed`` is
        one for all lanes, from which theirs are derived, or one for each.
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
        told = infos(np.array([success is not None for success in successes]), np.array(successes, dtype=bool))
        return self._observations.copy(), rewards, self._book.terminated.copy(), self._book.truncated.copy(), told

    def close_extras(self, **kwargs: Any) -> None:
        """Close every lane's environment."""
        for env in self._envs.values():
            env.close()

    def _take(self, given: Mapping[str, Array], restarted: Array) -> None:
        """Put task parameters in force in the restarted lanes."""
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
        """Return the lane's environment, made anew where it is missing or was constructed for another task."""
        if lane not in self._envs or (self._apply == "keyword" and self._outdated[lane]):
            if lane in self._envs:
                self._envs.pop(lane).close()
            env = make_env(self._env, self._apply, values)
            if (asked := spec_of(env, self.parameter_space)) != self._policy_spec:
                env.close()
                raise ValueError(f"the task {values} asks for {asked} where its family has {self._policy_spec}")
            self._envs[lane], (self._low[lane], self._high[lane]) = env, bounds(env.action_space)
        self._outdated[lane] = False
        return self._envs[lane]

    def _scaled(self, actions: Array) -> Any:
        """Return each lane's action as its environment takes it."""
        acted = self._envs[0].action_space
        if isinstance(acted, spaces.Discrete):
            return (actions + self._low[:, 0]).astype(int).tolist()
        scaled = self._low + (self._high - self._low) * (np.clip(actions, -1, 1) + 1) / 2
        return np.clip(scaled, self._low, self._high).reshape(-1, *(acted.shape or ())).astype(acted.dtype)

    def _advance(self, lane: int, action: Any) -> tuple[float, bool | None]:
        """Step one lane; return its reward, and whether it succeeded, if it tells."""
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


def infos(told: Array, successes: Array) -> dict[str, Any]:
    """Return infos in Gymnasium's form, where a name with an underscore says which lanes told; empty if none did."""
    return {"success": successes, "_success": told} if told.any() else {}


def _is_finite(number: Any) -> bool:
    # To ask isinstance(number, SupportsFloat) would take as long as a step of CartPole.
    try:
        return math.isfinite(number)
    except TypeError:
        return False
