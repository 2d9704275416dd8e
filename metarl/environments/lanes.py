"""Any Gymnasium environment as lanes of a vector environment, with a policy's observations and actions.

Nothing here imports torch, so worker processes start in half a second and need only tens of megabytes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import VectorEnv

from metarl.environments.bookkeeping import describe, opened, plain_seed
from metarl.environments.making import Apply, Env, Maker, apply_parameters, make_env
from metarl.environments.observations import Array, Eye, Layout, layout, named
from metarl.environments.outcomes import (
    RESET,
    STEP,
    Tally,
    Told,
    close_environment,
    flag,
    is_fault,
    reward_of,
    success_of,
)
from metarl.environments.spaces import bounds, checked_actions, checked_options, middle, plain, policy_spaces, spec_of
from metarl.spec import Spec

NOT_RESET = "every lane must be reset before the first step"
LARGEST_SEED = 2**31 - 1
"""A prime. All seeds are below it: older environments accept only 31 bits, some of them signed."""

LONGEST = 200
"""Characters of a task's parameters that an error shows."""


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


def lanes_seeds(seed: Any, num_envs: int, places: Any = None) -> list[int | None]:
    """Return every lane's seed, from one integer (see ``lane_seeds``) or from one for each lane; None: no seed.

    ``places`` (``metarl.seeding.Places``) say which lanes of a larger batch these are: they get their seeds from one
    integer.

    Integers may be NumPy's. Raises ValueError for anything else.
    """
    if not hasattr(seed, "__len__"):
        one = plain_seed(seed)
        if one is None:
            return [None] * num_envs
        return [*lane_seeds(one, num_envs)] if places is None else [lane_seeds(one, places.of)[at] for at in places.at]
    if isinstance(seed, str) or len(seed) != num_envs:
        raise ValueError(f"the seed is {seed!r}: expected an integer, or one for each of the {num_envs} lanes")
    return [plain_seed(one) for one in seed]


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
    frame_skip: int = 1
    """Steps of the environment for which each action is applied, with their rewards summed, unless the episode ends
    before. The horizon and step numbers in errors count actions."""
    action_scale: float = 1.0
    """The policy's action that reaches the upper bounds of a Box action space."""
    name: str | None = None
    """What messages call the environment. None: as ``env`` is called."""


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

    places: Any = None
    """Which lanes of a larger batch these are, see ``metarl.control.Placed``."""

    def __init__(self, options: LaneOptions, first: int = 0):
        env, parameters, apply, spec, num_envs, horizon, dtype, self._repeats, self._scale, name = options
        describe(self, *policy_spaces(spec, dtype, self._scale), num_envs, horizon)
        self.horizon, self.parameter_space, self._first = horizon, parameters, first
        self._env, self._apply, self._policy_spec, self._name = env, apply, spec, name or named(env)
        self._envs: dict[int, Env] = {}
        self._spaces: dict[int, tuple[Any, Any, Any]] = {}
        self._layouts: dict[int, Layout] = {}
        self._eyes = [Eye(dtype, self._name) for _ in range(num_envs)]
        self._rows = {name: np.stack([middle(space)] * num_envs) for name, space in parameters.spaces.items()}
        self._outdated = np.ones(num_envs, dtype=bool)  # lanes whose environment was made for other parameters
        self._seeds: list[tuple[int, int] | None] = [None] * num_envs  # the last seed, environments made since
        self.calling = np.zeros(num_envs, dtype=np.int8)
        """What each lane's environment is doing, for whoever waits for it: a worker's parent has this array, too."""
        numbers = len(spec.choices) or (1 if spec.kind == "discrete" else spec.output_size)
        self._low, self._high = np.zeros((2, num_envs, numbers))
        self._actions: dict[int, tuple[tuple[int, ...], Any]] = {}  # each environment's shape and dtype of actions
        self._observations = np.zeros((num_envs, *spec.input_shape), dtype=self.single_observation_space.dtype)
        self._largest = float(np.finfo(self._observations.dtype).max)
        self._tally = Tally(num_envs)
        self._book = opened(np.zeros(num_envs, dtype=np.int64))  # updated lane by lane, because any lane may raise

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Reset the lanes in the mask ``options["reset_mask"]``, by default all; the others continue undisturbed.

        The other options are task parameters, one row per lane; only rows of reset lanes take effect. ``seed`` is one
        integer, from which every lane's seed is derived, or one seed per lane. Without a seed, lanes go on from the
        one before, also where another task needs a new environment.
        """
        given, restarted = checked_options(options or {}, self.parameter_space, self.num_envs)
        seeds = lanes_seeds(seed, self.num_envs, self.places)
        self._take(given, restarted)
        for lane in np.flatnonzero(restarted).tolist():
            self._restart(lane, seeds[lane])
        return self._observations.copy(), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Act in every lane that has not finished."""
        if len(self._layouts) < self.num_envs:
            raise ResetNeeded(NOT_RESET)
        scaled = self._scaled(checked_actions(actions, self.action_space))
        rewards = np.zeros(self.num_envs, dtype=self._observations.dtype)
        successes: list[bool | None] = [None] * self.num_envs
        for lane in np.flatnonzero(self._book.running).tolist():
            rewards[lane], successes[lane] = self._advance(lane, scaled[lane])
        reported = np.array([success is not None for success in successes])
        info = infos(reported, np.array(successes, dtype=bool))
        return self._observations.copy(), rewards, self._book.terminated.copy(), self._book.truncated.copy(), info

    def info_numbers(self) -> Told:
        """Return the numbers that environments have told in their infos since the last reset of their lanes."""
        return self._tally.told

    def close_extras(self, **kwargs: Any) -> None:
        """Close every lane's environment."""
        for env in self._envs.values():
            close_environment(env, self._name)

    def _take(self, given: Mapping[str, Array], restarted: Array) -> None:
        """Store the task parameters of the lanes to restart."""
        for name, rows in given.items():
            differs = (rows != self._rows[name]).reshape(self.num_envs, -1).any(1)
            self._outdated |= differs & restarted
            self._rows[name][restarted] = rows[restarted]

    def _restart(self, lane: int, seed: int | None) -> None:
        values = self._values(lane)
        self.calling[lane] = RESET
        try:
            env = self._made(lane, values)
            seed = self._next_seed(lane, seed)
            apply_parameters(env, self._apply, values)
            observation, _ = env.reset(seed=seed, options=values if self._apply == "options" else None)
            self._fit(lane, env, values)
            self._observations[lane] = self._eyes[lane].read(self._layouts[lane], observation)
        except BaseException as error:
            if not is_fault(error):
                raise
            raise self._blamed(lane, 0, error) from error
        self.calling[lane] = 0
        self._tally.restart(lane)
        for book in self._book:
            book[lane] = 0

    def _values(self, lane: int) -> dict[str, Any]:
        """Return the lane's task as the environment gets it."""
        return {name: plain(space, self._rows[name][lane]) for name, space in self.parameter_space.spaces.items()}

    def _made(self, lane: int, values: Mapping[str, Any]) -> Env:
        """Return the lane's environment; make a new one if it is missing or was constructed for another task."""
        if lane not in self._envs or (self._apply == "keyword" and self._outdated[lane]):
            self._drop(lane)
            self._envs[lane] = make_env(self._env, self._apply, values)
            if (before := self._seeds[lane]) is not None:
                self._seeds[lane] = before[0], before[1] + 1
        self._outdated[lane] = False
        return self._envs[lane]

    def _drop(self, lane: int) -> None:
        self._layouts.pop(lane, None)
        self._spaces.pop(lane, None)
        if lane in self._envs:
            close_environment(self._envs.pop(lane), self._name)

    def _next_seed(self, lane: int, seed: int | None) -> int | None:
        """Return the seed of a reset; None where the environment goes on with its own generator.

        A new environment would begin unseeded, so it gets a seed that follows from the lane's last one.
        """
        if seed is not None:
            self._seeds[lane] = seed, 0
            return seed
        before = self._seeds[lane]
        if before is None or before[1] == 0 or lane in self._layouts:
            return None
        return int(np.random.SeedSequence(before).generate_state(1)[0]) % LARGEST_SEED

    def _fit(self, lane: int, env: Env, values: Mapping[str, Any]) -> None:
        """Read the spaces of a lane's task. Raises ValueError where a policy of the family does not fit them."""
        observations, actions = env.observation_space, env.action_space
        known = self._spaces.get(lane)
        if known is None or known[0] is not observations or known[1] is not actions or _number(actions) != known[2]:
            if (spec := spec_of(env, self.parameter_space)) != self._policy_spec:
                self._drop(lane)
                raise ValueError(f"the task {values} asks for {spec} where its family has {self._policy_spec}")
            self._spaces[lane] = observations, actions, _number(actions)
            self._layouts[lane] = layout(observations)
            self._actions[lane] = actions.shape or (), actions.dtype
        self._low[lane], self._high[lane] = bounds(actions)

    def _scaled(self, actions: Array) -> Any:
        """Convert the policy's actions to the environments' actions, one row per lane."""
        if isinstance(self.single_action_space, spaces.Discrete):
            return (actions + self._low[:, 0]).astype(int).tolist()
        if isinstance(self.single_action_space, spaces.MultiDiscrete):
            return self._shaped(actions + self._low)
        unit = actions if self._scale == 1.0 else actions / self._scale
        scaled = self._low + (self._high - self._low) * (np.clip(unit, -1, 1) + 1) / 2
        within = np.clip(scaled, self._low, self._high)  # rounding may leave the bounds
        return self._shaped(within)

    def _shaped(self, actions: Array) -> Any:
        """Return actions in the shapes and dtypes of the environments, one row per lane."""
        kinds = [self._actions[lane] for lane in range(self.num_envs)]
        if kinds.count(kinds[0]) == len(kinds):
            shape, dtype = kinds[0]
            return actions.reshape(-1, *shape).astype(dtype)
        return [
            actions[lane].reshape(self._actions[lane][0]).astype(self._actions[lane][1])
            for lane in range(self.num_envs)
        ]

    def _advance(self, lane: int, action: Any) -> tuple[float, bool | None]:
        """Step one lane; return its reward, and whether it succeeded, or None if it does not report success."""
        step = int(self._book.elapsed[lane]) + 1
        self.calling[lane] = STEP
        try:
            number, terminated, truncated, succeeded = self._stepped(lane, action)
            for _ in range(self._repeats - 1):
                if terminated or truncated:
                    break
                more, terminated, truncated, again = self._stepped(lane, action)
                number, succeeded = number + more, succeeded if again is None else again or bool(succeeded)
        except BaseException as error:
            if not is_fault(error):
                raise
            raise self._blamed(lane, step, error) from error
        self.calling[lane] = 0
        self._book.elapsed[lane], self._book.terminated[lane] = step, terminated
        self._book.truncated[lane] = truncated or step == self.horizon
        return number, succeeded

    def _stepped(self, lane: int, action: Any) -> tuple[float, bool, bool, bool | None]:
        """Take one step of a lane's environment: reward, terminated, truncated, success."""
        observation, reward, terminated, truncated, info = self._envs[lane].step(action)
        self._observations[lane] = self._eyes[lane].read(self._layouts[lane], observation)
        number = reward_of(reward, self._largest)
        if not (type(terminated) is bool and type(truncated) is bool):
            terminated, truncated = flag("terminated", terminated), flag("truncated", truncated)
        if not info:
            return number, terminated, truncated, None
        self._tally.add(lane, info)
        return number, terminated, truncated, success_of(info)

    def _blamed(self, lane: int, step: int, error: BaseException) -> LaneError:
        where = f"{self._name}, task {short(self._values(lane))}"
        lane += self._first
        return LaneError(f"lane {lane}, step {step}: {type(error).__name__}: {error} ({where})", [lane])


def _number(actions: spaces.Space[Any]) -> Any:
    """Return what an environment may change of choices without making a new space."""
    if isinstance(actions, spaces.MultiDiscrete):
        return actions.nvec.tolist(), actions.start.tolist()
    return int(actions.n) if isinstance(actions, spaces.Discrete) else 0


def infos(reported: Array, successes: Array) -> dict[str, Any]:
    """Return infos in Gymnasium's form: ``_success`` says which lanes reported ``success``. Empty if none did."""
    return {"success": successes, "_success": reported} if reported.any() else {}


def short(values: Mapping[str, Any]) -> str:
    """Return a task's parameters for a message."""
    text = " ".join(str(dict(values)).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
