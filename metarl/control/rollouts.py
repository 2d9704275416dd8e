"""Episodes of a batch of environments (see ``metarl.control``): policies act in all lanes at once, step after step.

Where the environment lives on the policy's device, nothing leaves it while episodes run, and the processor waits for it
once, after the last step, to learn that all numbers are finite. In a compiled run (``metarl.speed``) the steps of an
environment whose whole state is tensors are compiled along with the policies'. ``protocols`` says what environments
offer for the one and the other.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from metarl import objectives
from metarl.advantages import Trajectory
from metarl.control.protocols import SelfChecking, Snapshots, TorchLanes
from metarl.environments import LaneError
from metarl.speed import float32, on_leaves, run_compiled, run_is_compiled, send
from metarl.types import Learner, Spec, State

COMPILED_STEPS = 10
"""Steps in one graph: more make it little faster, and longer to compile."""


class RolloutError(RuntimeError):
    """An environment or a policy broke while episodes were collected; names the task, the lane and the step.

    Step 0 is the reset, step 1 the first action. Which lanes are named: those of an exception with the attribute
    ``lanes`` (a list of int), such as LaneError.
    """


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
    seed = _environment_seed(generator)
    with torch.no_grad(), _threads(env), float32(generator.device):
        observation = _reset(env, seed, parameters, learner.spec, tasks, generator.device)
        running = torch.ones(observation.shape[:2], dtype=observation.dtype, device=generator.device)
        now, happened = _episodes(env, learner, _Now(state, observation, running), horizon, generator)
        log_probs = objectives.log_prob(learner.spec.kind, happened.outputs, happened.actions)
        truncated = happened.cut[:, :, :-1].any(2).to(running.dtype)
        told_of = happened.observations, happened.actions, log_probs, happened.rewards, happened.mask
        trajectory = Trajectory(*told_of, last_observations=now.observation, truncated=truncated)
        _check_finite(trajectory, env)
    return trajectory


class _Now(NamedTuple):
    """Where episodes stand."""

    state: State
    observation: Tensor  # [task, episode, ...]
    running: Tensor  # [task, episode] 1 until an episode has ended, then 0


class _Told(NamedTuple):
    """What happened in some steps, ``[task, episode, time, ...]``; see Trajectory."""

    observations: Tensor
    actions: Tensor
    outputs: Tensor
    rewards: Tensor
    mask: Tensor
    cut: Tensor  # truncated in this very step


def _episodes(env: VectorEnv, learner: Learner, now: _Now, horizon: int, generator: Generator) -> tuple[_Now, _Told]:
    act, begun, parts = _policies(learner, generator), 0, list[_Told]()
    if run_is_compiled():
        # Policies that all tasks share and those of their own look alike then, and one graph serves both.
        now = on_leaves(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, now)
        if can_be_compiled(env):
            size = min(COMPILED_STEPS, horizon)
            for begun in range(size, horizon + 1, size):
                last = begun == horizon and learner.observe is not None
                now, told = _compiled_steps(env, learner, now, generator, begun - size, size, last)
                parts.append(told)
        elif _on_gpu(generator):  # a simulator on the CPU takes all of the time there
            act = _compiled(act, generator)
    if begun < horizon:
        now, told = _steps(env, learner, act, now, begun, horizon - begun, last=True)
        parts.append(told)
    return now, parts[0] if len(parts) == 1 else _Told(*(torch.cat(told, dim=2) for told in zip(*parts, strict=True)))


def _on_gpu(generator: Generator) -> bool:
    return generator.device.type == "cuda"


Act = Callable[[State, Tensor], tuple[Tensor, Tensor, State]]
"""``(state, observation) -> (outputs, action, state)``"""


def _policies(learner: Learner, generator: Generator) -> Act:
    def act(state: State, observation: Tensor) -> tuple[Tensor, Tensor, State]:
        outputs, state = learner.predict(state, observation)
        return outputs, objectives.sample(learner.spec.kind, outputs, generator), state

    return act


def _compiled(act: Act, generator: Generator) -> Act:
    return lambda state, observation: run_compiled("the policies", act, (state, observation), (generator,))


def can_be_compiled(env: VectorEnv) -> bool:
    """Return whether an environment's steps may be a graph: whether it offers snapshots of tensors."""
    return on_torch(env) and isinstance(env, Snapshots) and env.snapshot() is not None


def _compiled_steps(
    env: Any, learner: Learner, now: _Now, generator: Generator, begun: int, steps: int, last: bool
) -> tuple[_Now, _Told]:
    def take(snapshot: Any, now: _Now, steps: int, last: bool) -> tuple[Any, _Now, _Told]:
        env.restore(snapshot)
        now, told = _steps(env, learner, _policies(learner, generator), now, begun, steps, last)
        return env.snapshot(), now, told

    streams = generator, env.generator
    snapshot, now, told = run_compiled("the environment's steps", take, (env.snapshot(), now, steps, last), streams)
    env.restore(snapshot)
    return now, told


def _steps(
    env: VectorEnv, learner: Learner, act: Act, now: _Now, begun: int, steps: int, last: bool
) -> tuple[_Now, _Told]:
    """Take some steps after ``begun`` ones; ``last``: episodes end with them."""
    (state, observation, running), spec, told = now, learner.spec, list[tuple[Tensor, ...]]()
    for step in range(begun, begun + steps):
        outputs, action, state = act(state, observation)
        following, reward, ended, cut = _step(env, action, spec, len(observation), step + 1)
        if learner.observe is not None:
            ends = last and step + 1 == begun + steps
            state = learner.observe(state, action, reward, ended | cut | ends)
        told.append((observation, action, outputs, reward * running, running, (running > 0) & cut & ~ended))
        running = running * (~(ended | cut)).to(running.dtype)
        observation = following
    return _Now(state, observation, running), _Told(*(torch.stack(values, dim=2) for values in zip(*told, strict=True)))


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
        what, lanes = "an environment raised", error.lanes if isinstance(error, LaneError) else []
        if actions is not None and not torch.isfinite(actions).all():
            what = "actions are not finite"
            lanes = (~torch.isfinite(actions).reshape(len(actions), -1).all(1)).nonzero().flatten().tolist()
        named = [*(_lane(lane, episodes) for lane in lanes[:3]), *(["..."] if len(lanes) > 3 else []), f"step {step}"]
        raise RolloutError(f"{what}: {', '.join(named)}: {type(error).__name__}: {error}") from error


def _lane(lane: int, episodes: int) -> str:
    return f"task {lane // episodes}, lane {lane} (episode {lane % episodes})"


def on_torch(env: VectorEnv) -> bool:
    """Return whether an environment's arrays are torch tensors, not NumPy's."""
    return isinstance(env.unwrapped, TorchLanes) and env.unwrapped.device is not None


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
        if isinstance(env.unwrapped, SelfChecking):
            env.unwrapped.check()
    except LaneError as error:
        raise RolloutError(f"{name} are not finite: {where}, step {step}: {error}") from error
    raise RolloutError(f"{name} are not finite: {where}, step {step}")
