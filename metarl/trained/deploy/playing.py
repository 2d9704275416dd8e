"""Episodes of policies in an environment of one's own, and episodes that were recorded elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from torch import Generator, Tensor

from metarl.control import ControlTasks, Sampling
from metarl.environments import SUCCESS, Eye, LaneError, chain, describe, is_fault, layout, opened, refuse_statistics
from metarl.seeding import spawn
from metarl.trained.deploy.native import Native, read
from metarl.types import Learner, Policy, Rollout, Spec, State

AnyEnv = gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]


MEND = "mend or wrap it, so that reset and step return finite observations of its observation_space"


class ObservationError(LaneError):
    """One's own environment returned what is no observation of its space; the message names the lane and the step.

    Commands tell it in a line: a traceback would show metarl's code only, as no line of the environment failed.
    """

    is_told = True


class OwnLanes(VectorEnv[Any, Any, Any]):
    """One's own environment, single or a vector of any autoreset mode, as lanes that idle after their episode.

    Policies see and act as in the family that they were trained on. The environment stays its owner's: it is never
    closed here, and not stepped when all of its episodes have ended.
    """

    def __init__(self, env: AnyEnv, spec: Spec, own: Native, frame_skip: int, dtype: str) -> None:
        lanes = env.num_envs if isinstance(env, VectorEnv) else 1
        kind: Any = np.dtype(dtype).type
        describe(self, Box(-np.inf, np.inf, spec.input_shape, dtype=kind), own.policy_actions(spec), lanes, None)
        self._env, self._own, self._repeats = env, own, frame_skip
        vector = isinstance(env, VectorEnv)
        self._mode = env.metadata.get("autoreset_mode") if vector else AutoresetMode.DISABLED
        self._sees: Any = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
        acts: Any = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
        self._acts = acts.dtype
        self._layout = layout(self._sees)
        self._eyes = [Eye(kind, "the environment") for _ in range(lanes)]
        self._seen = np.zeros((lanes, *spec.input_shape), dtype=kind)
        self._done = np.zeros(lanes, dtype=bool)
        self._book = opened(np.zeros(lanes, dtype=np.int64))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every lane."""
        observations, _ = self._env.reset(seed=seed)
        self._done[:] = False
        for book in self._book:
            book[:] = 0
        self._read(observations, np.arange(self.num_envs), "reset")
        return self._seen.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act in every lane whose episode has not ended."""
        own = self._own.act(torch.as_tensor(np.asarray(actions))).numpy().astype(self._acts)
        rewards, info = np.zeros(self.num_envs), dict[str, Any]()
        for _ in range(self._repeats):
            running = np.flatnonzero(self._book.running)
            if len(running):
                more, told = self._stepped(own, running)
                rewards[running] += more
                info = _joined(info, told)
        return self._seen.copy(), rewards, self._book.terminated.copy(), self._book.truncated.copy(), info

    def close_extras(self, **kwargs: Any) -> None:
        """Leave the environment to its owner."""

    def _stepped(self, own: Any, running: Any) -> tuple[Any, dict[str, Any]]:
        env: Any = self._env
        if isinstance(self._env, VectorEnv):
            if self._mode == AutoresetMode.DISABLED and self._done.any():  # they must not be stepped as they are
                env.reset(options={"reset_mask": self._done})
            observations, rewards, ended, cut, info = env.step(own)
            observations = self._final(observations, info)
            self._done = np.asarray(ended, bool) | np.asarray(cut, bool)
        else:
            action = own[0] if own[0].shape else own[0].item()
            observations, reward, end, cut_off, told = env.step(action)
            rewards, ended, cut = (np.array([float(reward)]), np.array([bool(end)]), np.array([bool(cut_off)]))
            info = {name: np.array([bool(told[name])]) for name in SUCCESS if name in told}
        self._read(observations, running, f"step {self._book.elapsed[running[0]] + 1}")
        self._book.terminated[running] = np.asarray(ended, bool)[running]
        self._book.truncated[running] = np.asarray(cut, bool)[running]
        self._book.elapsed[running] += 1
        return np.asarray(rewards, float)[running], info

    def _final(self, observations: Any, info: Mapping[str, Any]) -> Any:
        """Return each lane's observation after its step: where a lane was reset in the same step, the one before."""
        if self._mode != AutoresetMode.SAME_STEP or "final_obs" not in info:
            return observations
        rows = list(iterate(self._env.observation_space, observations))
        for lane, there in enumerate(info["_final_obs"]):
            if there:
                rows[lane] = info["final_obs"][lane]
        return rows

    def _read(self, observations: Any, lanes: Any, moment: str) -> None:
        if isinstance(self._env, VectorEnv) and not isinstance(observations, list):
            rows = list(iterate(self._env.observation_space, observations))
        else:
            rows = observations if isinstance(self._env, VectorEnv) else [observations]
        for lane in lanes.tolist():
            try:
                self._seen[lane] = self._eyes[lane].read(self._layout, rows[lane])
            except Exception as error:
                if not is_fault(error):
                    raise
                where = f"{moment}, lane {lane}" if isinstance(self._env, VectorEnv) else moment
                told = f"the environment's {where}: {error}; {MEND}"
                raise ObservationError(told, [lane]) from error


def _joined(before: dict[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    name = next((name for name in SUCCESS if name in info), None)
    if name is None:
        return before
    happened = np.asarray(info[name]).astype(bool)
    told = np.asarray(info.get(f"_{name}", np.ones(len(happened)))).astype(bool)
    now = {SUCCESS[0]: happened & told, f"_{SUCCESS[0]}": told}
    return {key: before.get(key, False) | value for key, value in now.items()}


@dataclass(frozen=True, eq=False)
class OwnTask:
    """One's own environment as a task in which policies act."""

    env: AnyEnv
    spec: Spec
    own: Native
    horizon: int
    frame_skip: int = 1

    def check(self) -> None:
        """Raise ValueError for wrappers that keep statistics: the policy would see other numbers all the time."""
        if isinstance(self.env, VectorEnv):
            refuse_statistics(self.env)
            return
        for one in chain(self.env):
            if isinstance(one, NormalizeObservation | NormalizeReward) and one.update_running_mean:
                raise ValueError(
                    f"the environment has the wrapper {type(one).__name__}, whose running statistics change while the "
                    "policy adapts: set its update_running_mean = False, or leave it out"
                )

    def play(
        self,
        policy: Policy,
        episodes: int,
        generator: Generator,
        progress: Callable[[float], object] = lambda share: None,
    ) -> Rollout:
        """Play ``episodes`` episodes, or a few more where they are no multiple of a vector's lanes.

        ``progress`` is called with the share that is played, from 0 to 1.

        Raises RolloutError where the environment raises or returns what is no number, and ValueError for wrappers that
        keep statistics.
        """
        self.check()
        dtype = torch.empty(0).numpy().dtype.name
        lanes = OwnLanes(self.env, self.spec, self.own, self.frame_skip, dtype)
        sampling = Sampling(lanes.num_envs, self.horizon)
        tasks = ControlTasks(self.spec, {}, torch.zeros(1, 0), lambda number, device: lanes, sampling)
        rounds = -(-episodes // lanes.num_envs)
        played = []
        for number, own in enumerate(spawn(generator, rounds), start=1):
            played.append(tasks.rollout(policy, own))
            progress(number / rounds)
        return beside(played)


def beside(rollouts: Sequence[Rollout]) -> Rollout:
    """Return one rollout with the episodes of all. Success is told where all tell it."""
    fields: dict[str, Any] = {}
    for name in vars(rollouts[0]):
        values = [value for rollout in rollouts if isinstance(value := getattr(rollout, name), Tensor)]
        fields[name] = torch.cat(values, dim=1) if len(values) == len(rollouts) else None
    return Rollout(**fields)


class Episode(NamedTuple):
    """One recorded episode, in the environment's own units."""

    observations: Any
    """``[time, ...]`` before each step, or ``[time + 1, ...]`` with the one after the last"""
    actions: Any
    """``[time, ...]`` as the environment got them"""
    rewards: Any
    """``[time]``"""
    terminated: Any = False
    """Whether it ended in a state without future, as one flag or ``[time]``; otherwise it was cut."""
    log_probs: Any = None
    """``[time]`` log-densities of the actions under the policy that acted; None: they are computed anew"""


def rollout_of(episodes: Sequence[Any], learner: Learner, state: State, own: Native, device: torch.device) -> Rollout:
    """Return recorded episodes as a rollout ``[1, episode, time, ...]``.

    Log-probabilities that were not recorded are those of the learner's policy in ``state``, which is taken to have
    acted. Actions at a bound count as such: an environment that clips hides by how much.

    Raises ValueError for episodes of other shapes, without steps, of unequal lengths inside, or with numbers that are
    not finite.
    """
    if not len(episodes):
        raise ValueError("there are no episodes to adapt to")
    read_ones = [_Read.of(place, one, learner.spec, own) for place, one in enumerate(episodes)]
    longest = max(len(one.rewards) for one in read_ones)
    fields = {
        "observations": torch.stack([_padded(one.observations, longest) for one in read_ones]),
        "last_observations": torch.stack([one.last for one in read_ones]),
        "actions": torch.stack([_padded(one.actions, longest) for one in read_ones]),
        "rewards": torch.stack([_padded(one.rewards, longest, zero=True) for one in read_ones]),
        "mask": torch.stack([_padded(torch.ones_like(one.rewards), longest, zero=True) for one in read_ones]),
    }
    ends = torch.zeros(2, len(read_ones), longest, dtype=torch.bool)
    for episode, one in enumerate(read_ones):
        ends[0 if one.terminated else 1, episode, len(one.rewards) - 1] = True
    tensors: dict[str, Any] = {name: value[None].to(device) for name, value in fields.items()}
    outputs, _ = learner.predict(state, tensors["observations"])
    log_probs = learner.spec.distribution.log_prob(outputs, tensors["actions"]) * tensors["mask"]
    for episode, one in enumerate(read_ones):
        if one.log_probs is not None:
            log_probs[0, episode, : len(one.log_probs)] = one.log_probs.to(log_probs)
    terminated, truncated = (end[None].to(device) for end in ends)
    return Rollout(**tensors, terminated=terminated, truncated=truncated, log_probs=log_probs)


class _Read(NamedTuple):
    observations: Tensor
    last: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: bool
    log_probs: Tensor | None

    @classmethod
    def of(cls, place: int, episode: Any, spec: Spec, own: Native) -> "_Read":
        try:
            if not isinstance(episode, Mapping | tuple):
                raise ValueError(f"it is a {type(episode).__name__}: expected a metarl.Episode, or a dict of its names")
            given = Episode(**episode) if isinstance(episode, Mapping) else Episode(*episode)
            return cls._made(given, spec, own)
        except (TypeError, ValueError) as error:
            raise ValueError(f"episode {place}: {error}") from error

    @classmethod
    def _made(cls, given: Episode, spec: Spec, own: Native) -> "_Read":
        rewards = torch.as_tensor(np.asarray(given.rewards, float)).to(torch.get_default_dtype())
        if rewards.ndim != 1 or not len(rewards):
            raise ValueError(f"rewards have shape {tuple(rewards.shape)}: expected (time,), one step at least")
        seen = read(own, spec, given.observations)
        steps = len(rewards)
        if seen.ndim != 1 + len(spec.input_shape) or len(seen) not in (steps, steps + 1):
            raise ValueError(f"there are {len(seen)} observations for {steps} rewards: expected {steps} or {steps + 1}")
        native_actions = torch.as_tensor(np.asarray(given.actions))
        if tuple(native_actions.shape) != (steps, *own.acted):
            raise ValueError(f"actions have shape {tuple(native_actions.shape)}: expected {(steps, *own.acted)}")
        actions = own.chosen(native_actions)
        _check_choices(actions, spec)
        log_probs = None
        if given.log_probs is not None:
            log_probs = torch.as_tensor(np.asarray(given.log_probs, float))
            if tuple(log_probs.shape) != (steps,):
                raise ValueError(f"log_probs have shape {tuple(log_probs.shape)}: expected {(steps,)}")
            if own.high:
                log_probs = log_probs + own.half.log().sum()
        for name, values in {
            "observations": seen,
            "rewards": rewards,
            "actions": actions,
            "log_probs": log_probs,
        }.items():
            if values is not None and values.is_floating_point() and not values.isfinite().all():
                raise ValueError(f"{name} contain numbers that are not finite")
        ended = bool(np.asarray(given.terminated).reshape(-1)[-1])
        return cls(seen[:steps], seen[-1], actions, rewards, ended, log_probs)


def _check_choices(actions: Tensor, spec: Spec) -> None:
    """Raise ValueError for choices that there are not."""
    if spec.kind == "discrete":
        sizes = torch.tensor(spec.choices or (spec.output_size,))
        if ((actions < 0) | (actions >= (sizes if spec.choices else sizes[0]))).any():
            raise ValueError(f"some actions are outside of the environment's, which has {sizes.tolist()} of them")


def _padded(values: Tensor, length: int, zero: bool = False) -> Tensor:
    """Repeat the last of ``[time, ...]``, or zeros, up to a length."""
    last = torch.zeros_like(values[-1:]) if zero else values[-1:]
    return torch.cat([values, last.expand(length - len(values), *values.shape[1:])])
