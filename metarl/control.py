"""From environments to rollouts.

An environment batch is a ``gymnasium.vector.VectorEnv`` of task-major lanes (lane i belongs to task i // episodes) with
``AutoresetMode.DISABLED``, whose arrays are NumPy's or torch tensors. A lane that has finished idles: it repeats its
last observation with reward 0 until it is reset. Task parameters go in by name through ``reset(options={...})``, one
row per lane.

Where the environment lives on the policy's device, nothing leaves it while episodes run, and the processor waits for it
once, after the last step, to learn that all numbers are finite. Such an environment may tell of broken lanes by numbers
that are not, and say why by a method ``check()`` that raises LaneError.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Generator, Tensor

from metarl import objectives
from metarl.advantages import Trajectory, with_advantages
from metarl.devices import float32, send
from metarl.lanes import LaneError as LaneError
from metarl.success import SuccessWatch
from metarl.types import Family, Learner, Role, Rollout, Spec, State


class RolloutError(RuntimeError):
    """An environment or a policy broke while episodes were collected; names the task, the lane and the step.

    Step 0 is the reset, step 1 the first action. Which lanes are named: those of an exception with the attribute
    ``lanes`` (a list of int), such as LaneError.
    """


@dataclass(frozen=True)
class Sampling:
    """How a control family is sampled."""

    episodes: int = 20
    """Episodes of each task in one draw: before every inner step, and for the outer update."""
    horizon: int = 200
    """Steps after which every episode ends."""
    discount: float = 0.99
    """Weight of the next step's reward against this one's."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation; 1 is reward-to-go less the baseline."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.horizon < 1:
            raise ValueError(f"episodes={self.episodes} and horizon={self.horizon} must be at least 1")
        if not (0 <= self.discount <= 1 and 0 <= self.gae_lambda <= 1):
            raise ValueError(f"discount and gae_lambda lie in [0, 1], not {self.discount} and {self.gae_lambda}")


@dataclass(frozen=True)
class ControlTasks:
    """A fixed batch of control tasks; implements ``metarl.types.Tasks``."""

    spec: Spec
    parameters: Mapping[str, Tensor]
    """``[task, ...]`` by name, given to the environment for every lane of the task."""
    descriptors: Tensor
    """``[task, descriptor_size]``"""
    environment: Callable[[int, torch.device], VectorEnv]
    """``(num_envs, device) -> env``; called once, at the first draw."""
    sampling: Sampling
    _made: list[VectorEnv] = field(default_factory=list, init=False, repr=False, compare=False)

    def draw(self, learner: Learner, state: State, role: Role, generator: Generator) -> Rollout:
        """Run ``sampling.episodes`` fresh episodes of every task under ``state``'s policies.

        Raises:
            RolloutError: an environment raised, or gave a wrong shape or a number that is not finite; or the policy
                asked for an action that is not finite.
            ValueError: the environment is not what ``check_environment`` expects.
        """
        tasks, episodes = len(self.descriptors), self.sampling.episodes
        if not self._made:
            env = self.environment(tasks * episodes, generator.device)
            check_environment(env, tasks * episodes, self.spec)
            self._made.append(env)
        lanes = {name: value.repeat_interleave(episodes, 0) for name, value in self.parameters.items()}
        watched = SuccessWatch(self._made[0])
        trajectory = collect(watched, learner, state, tasks, self.sampling.horizon, generator, lanes)
        return watched.scored(with_advantages(trajectory, self.sampling.discount, self.sampling.gae_lambda))


def tasks_with(family: Family, parameters: Mapping[str, Any]) -> ControlTasks:
    """Return the tasks of a control family that have these parameters, ``[task, ...]`` by name.

    Their descriptors are the parameters, flattened, in the order of ``family.parameter_space``.

    Raises:
        ValueError: the family has no parameter space, or parameters are missing, unknown, of another shape or outside.
    """
    space, sampled = getattr(family, "parameter_space", None), family.sample(1, "test", Generator().manual_seed(0))
    if not isinstance(space, spaces.Dict) or not isinstance(sampled, ControlTasks):
        raise ValueError(
            f"{type(family).__name__} is no control family with a parameter_space, so tasks cannot be given"
        )
    if set(parameters) != set(space.spaces):
        raise ValueError(f"task parameters {sorted(parameters)} were given: expected {', '.join(space.spaces)}")
    rows = {name: _rows(name, parameters[name], one, sampled.parameters[name]) for name, one in space.spaces.items()}
    if len({len(values) for values in rows.values()}) > 1:
        raise ValueError("task parameters differ in their number of tasks")
    flat = [values.reshape(len(values), -1).to(sampled.descriptors.dtype) for values in rows.values()]
    return replace(sampled, parameters=rows, descriptors=torch.cat(flat, dim=1))


def _rows(name: str, given: Any, space: spaces.Space[Any], like: Tensor) -> Tensor:
    """Return one task parameter ``[task, ...]``. Raises ValueError for what its space does not hold."""
    rows = torch.as_tensor(given, dtype=like.dtype)
    low, high = _ends(space)
    inside = rows.shape[1:] == space.shape and bool(((rows >= low) & (rows <= high)).all())
    if rows.ndim == 0 or not inside:
        raise ValueError(f"the task parameter {name} is {given}: expected, for each task, an element of {space}")
    return rows


def _ends(space: spaces.Space[Any]) -> tuple[Tensor, Tensor]:
    if isinstance(space, spaces.Box):
        return torch.as_tensor(space.low), torch.as_tensor(space.high)
    assert isinstance(space, spaces.Discrete)
    return torch.tensor(int(space.start)), torch.tensor(int(space.start + space.n - 1))


def check_environment(env: VectorEnv, lanes: int, spec: Spec) -> None:
    """Raise ValueError unless a vector environment has these lanes, leaves resets to us, and fits spec."""
    mode = env.metadata.get("autoreset_mode")
    if env.num_envs != lanes or mode != AutoresetMode.DISABLED:
        raise ValueError(
            f"the environment has {env.num_envs} lanes and {mode}: expected {lanes}, one for each episode of "
            "each task, and AutoresetMode.DISABLED in its metadata"
        )
    seen, acted = env.single_observation_space, env.single_action_space
    kind = {spaces.Discrete: "discrete", spaces.Box: "continuous"}.get(type(acted), type(acted).__name__)
    size = int(acted.n) if isinstance(acted, spaces.Discrete) else math.prod(acted.shape or ())
    if (seen.shape, size, kind) != (spec.input_shape, spec.output_size, spec.kind):
        raise ValueError(f"the environment observes {seen} and acts in {acted}, which is not what {spec} says")


def collect(
    env: VectorEnv,
    learner: Learner,
    state: State,
    tasks: int,
    horizon: int,
    generator: Generator,
    parameters: Mapping[str, Tensor] | None = None,
) -> Trajectory:
    """Run one episode in every lane, at most ``horizon`` steps, with the policies of ``state``.

    ``parameters`` hold one row per lane. Actions, and the environments' seed, come from the generator, on whose device
    the policy acts. No gradients are kept.
    """
    spec = learner.spec
    seed = _environment_seed(generator)
    steps: dict[str, list[Tensor]] = {name: [] for name in ("observations", "actions", "outputs", "rewards", "mask")}
    with torch.no_grad(), _threads(env), float32(generator.device):
        observation = _reset(env, seed, parameters, spec, tasks, generator.device)
        running = torch.ones(observation.shape[:2], dtype=observation.dtype, device=generator.device)
        truncated = torch.zeros_like(running)
        for step in range(horizon):
            outputs, state = learner.predict(state, observation)
            action = objectives.sample(spec.kind, outputs, generator)
            following, reward, ended, cut = _step(env, action, spec, tasks, step + 1)
            if learner.observe is not None:
                state = learner.observe(state, action, reward, ended | cut | (step == horizon - 1))
            for name, value in zip(steps, (observation, action, outputs, reward * running, running), strict=True):
                steps[name].append(value)
            if step < horizon - 1:
                truncated = torch.where((running > 0) & cut & ~ended, 1.0, truncated)
            running = running * (~(ended | cut)).to(running.dtype)
            observation = following
        stacked = {name: torch.stack(values, dim=2) for name, values in steps.items()}
        log_probs = objectives.log_prob(spec.kind, stacked.pop("outputs"), stacked["actions"])
        trajectory = Trajectory(**stacked, log_probs=log_probs, last_observations=observation, truncated=truncated)
        _check_finite(trajectory, env)
    return trajectory


def _environment_seed(generator: Generator) -> int:
    """Draw a seed. A number drawn on a GPU would have to be waited for: its generator's state lies in main memory."""
    if generator.device.type == "cpu":
        return int(torch.randint(2**31 - 1, (), generator=generator))
    digest = hashlib.blake2b(generator.get_state().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest) % (2**31 - 1)


@contextmanager
def _threads(env: VectorEnv) -> Iterator[None]:
    """Keep torch to one thread while a simulator runs: threads that wait would take the cores from the simulator's."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if on_torch(env) else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reset(
    env: VectorEnv, seed: int, parameters: Mapping[str, Tensor] | None, spec: Spec, tasks: int, device: torch.device
) -> Tensor:
    episodes = env.num_envs // tasks
    with _blamed(0, episodes):
        observation, _ = env.reset(seed=seed, options=dict(parameters or {}))
    return _observed(observation, device, 0, (tasks, episodes, *spec.input_shape))


def _step(env: VectorEnv, action: Tensor, spec: Spec, tasks: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device, lanes = action.device, action.flatten(0, 1)
    shape = (tasks, len(lanes) // tasks)
    with _blamed(step, shape[1], lanes):
        observation, reward, ended, cut, _ = env.step(lanes if on_torch(env) else lanes.cpu().numpy())
    told = (("rewards", reward), ("terminations", ended), ("truncations", cut))
    rewards, *flags = (_told(value, device, f"{name} at step {step}", shape) for name, value in told)
    following = _observed(observation, device, step, (*shape, *spec.input_shape))
    return following, rewards.to(following.dtype), flags[0].bool(), flags[1].bool()


@contextmanager
def _blamed(step: int, episodes: int, actions: Tensor | None = None) -> Iterator[None]:
    """Say where an environment raised, as far as it tells, or that it was given actions ``[lane, ...]`` of nan."""
    try:
        yield
    except Exception as error:
        what, lanes = "an environment raised", list(getattr(error, "lanes", ()))
        if actions is not None and not torch.isfinite(actions).all():
            what = "actions are not finite"
            lanes = (~torch.isfinite(actions).reshape(len(actions), -1).all(1)).nonzero().flatten().tolist()
        named = [*(_lane(lane, episodes) for lane in lanes[:3]), *(["..."] if len(lanes) > 3 else []), f"step {step}"]
        raise RolloutError(f"{what}: {', '.join(named)}: {type(error).__name__}: {error}") from error


def _lane(lane: int, episodes: int) -> str:
    return f"task {lane // episodes}, lane {lane} (episode {lane % episodes})"


def on_torch(env: VectorEnv) -> bool:
    """Return whether an environment's arrays are torch tensors, not NumPy's."""
    return getattr(env.unwrapped, "device", None) is not None


def _observed(observation: Any, device: torch.device, step: int, shape: tuple[int, ...]) -> Tensor:
    # A copy: the environment may write its next observation into the array that it gave.
    return _told(observation, device, f"observations at step {step}", shape).to(torch.get_default_dtype(), copy=True)


def _told(value: Any, device: torch.device, what: str, shape: tuple[int, ...]) -> Tensor:
    expected = (shape[0] * shape[1], *shape[2:])
    try:
        # NumPy's arrays are copied, because torch warns of those that cannot be written to.
        array = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise RolloutError(f"{what} are no array of numbers but {type(value).__name__}: {error}") from error
    if tuple(array.shape) != expected:
        raise RolloutError(f"{what} have shape {tuple(array.shape)} where {expected} was expected")
    return send(array, device).reshape(shape)


def _check_finite(trajectory: Trajectory, env: VectorEnv) -> None:
    """Raise RolloutError for numbers that are not finite. Asks the device once, where there are none."""
    last, horizon = trajectory.last_observations.unsqueeze(2), trajectory.rewards.shape[2]
    # In the order of cause and effect within a step: an action that is not finite makes the rest so.
    told = (
        ("actions", trajectory.actions, 1),
        ("observations", trajectory.observations, 0),
        ("observations", last, horizon),
        ("rewards", trajectory.rewards, 1),
    )
    if torch.stack([values.isfinite().all() for _, values, _ in told]).all():
        return
    broken = [
        (int(bad.any(0).any(0).nonzero()[0]) + first, name, bad[:, :, bad.any(0).any(0)])
        for name, values, first in told
        if (bad := ~torch.isfinite(values).reshape(*values.shape[:3], -1).all(-1)).any()
    ]
    step, name, bad = min(broken, key=lambda found: found[0])
    where = _lane(int(bad[:, :, 0].flatten().nonzero()[0]), bad.shape[1])
    try:
        getattr(env.unwrapped, "check", lambda: None)()
    except LaneError as error:
        raise RolloutError(f"{name} are not finite: {where}, step {step}: {error}") from error
    raise RolloutError(f"{name} are not finite: {where}, step {step}")
