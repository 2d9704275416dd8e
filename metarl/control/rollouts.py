"""Episodes of a batch of environments (see ``metarl.control``): policies act in all lanes at once, step by step.

If the environment lives on the policy's device, no data leave the device while episodes run. The CPU waits for it only
once, after the last step, to check that all numbers are finite. In a compiled run (``metarl.speed``), the steps of an
environment whose whole state is tensors are compiled together with the policy. ``metarl.control.protocols`` says what
an environment needs for each.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from metarl.control.protocols import SelfChecking, Snapshots, TorchLanes
from metarl.distributions import Distribution
from metarl.environments import LaneError, Layout, composite, flags, flat, is_fault, made_equal, pixels_of
from metarl.safety import limited
from metarl.seeding import Places, spawn
from metarl.speed import float32, on_leaves, run_compiled, run_is_compiled, send
from metarl.types import Part, Policy, Rollout, Spec, State

COMPILED_STEPS = 10
"""Steps in one graph. More steps bring little speed and take longer to compile."""


class RolloutError(RuntimeError):
    """An environment or a policy failed during a rollout. The message names the task, the lane and the step.

    Step 0 is the reset, step 1 the first action. If an environment raises LaneError, the message names its lanes.
    """


def collect(
    env: VectorEnv,
    spec: Spec,
    policy: Policy,
    tasks: int,
    horizon: int,
    generator: Generator,
    parameters: Mapping[str, Tensor] | None = None,
    within: Places | None = None,
) -> Rollout:
    """Run one episode in every lane, of at most ``horizon`` steps.

    ``parameters`` hold one row per lane. Actions and the environments' seed are drawn from the generator, and the
    policy acts on its device. The actions of task k do not depend on the number of tasks. No gradients are recorded.
    ``within`` says which tasks of a larger batch these are: actions are drawn as they are there.
    """
    seed, reads = _environment_seed(generator), _Reads(spec.observations, pixels_of(env.single_observation_space))
    with torch.no_grad(), _threads(env), float32(generator.device):
        observation = _reset(env, seed, parameters, (tasks, *spec.input_shape), generator.device, reads)
        running = torch.ones(observation.shape[:2], dtype=observation.dtype, device=generator.device)
        noise = _noise(policy.distribution, (tasks, horizon, observation.shape[1]), generator, within)
        now, steps = _episodes(env, policy, _Now(policy.state, observation, running), noise, reads)
        log_probs = policy.distribution.drawn_log_prob(steps.outputs, steps.actions)
        happened = steps._asdict()
        del happened["outputs"]
        rollout = Rollout(**happened, log_probs=log_probs, last_observations=now.observation)
        _check_finite(rollout, env)
    return rollout


def scripted(spec: Spec, function: Callable[[Tensor], Any]) -> Policy:
    """Return the policies that take the actions of a function of observations, the same for all tasks or not.

    The function gets observations ``[task, episode, *input_shape]`` of one time step, and returns actions
    ``[task, episode, output_size]``, or integers for discrete actions, ``[task, episode]`` or, of several choices,
    ``[task, episode, choice]``, as a tensor or an array. In rollouts of such a policy, all log-probabilities are 0.

    Raises:
        ValueError: the spec is one of labelled examples. In a rollout: actions of another shape or type, or integers
            that are no actions.
    """
    distribution = spec.distribution

    def predict(state: State, observations: Tensor) -> tuple[Tensor, State]:
        expected = (*observations.shape[:2], *distribution.action_shape)
        actions = _scripted_actions(function(observations), expected, observations.device)
        if distribution.actions == "discrete":
            _check_choices(actions, distribution.sizes)
            actions = actions.long()
        else:
            actions = actions.to(observations.dtype)
        return distribution.always(actions).to(observations.dtype), state

    return Policy(distribution, None, predict)


def _check_choices(actions: Tensor, sizes: tuple[int, ...]) -> None:
    """Raise ValueError unless these are choices ``[task, episode]``, or ``[task, episode, choice]`` of several."""
    if actions.is_floating_point() or actions.dtype == torch.bool:
        raise ValueError(f"the scripted policy returned actions of type {actions.dtype}: expected integers")
    for found, size in zip(actions.reshape(-1, len(sizes)).unbind(-1), sizes, strict=True):
        if bool(((found < 0) | (found >= size)).any()):
            told = f"{int(found.min())} to {int(found.max())}"
            raise ValueError(f"the scripted policy returned actions from {told}: expected 0 to {size - 1}")


def _scripted_actions(returned: Any, expected: tuple[int, ...], device: torch.device) -> Tensor:
    actions = returned if isinstance(returned, Tensor) else torch.from_numpy(np.array(returned))
    if tuple(actions.shape) != expected:
        raise ValueError(f"the scripted policy returned actions of shape {tuple(actions.shape)}: expected {expected}")
    return actions.to(device)


class _Now(NamedTuple):
    """The current state of the episodes."""

    state: State
    observation: Tensor  # [task, episode, ...]
    running: Tensor  # [task, episode] 1 until an episode has ended, then 0


class _Steps(NamedTuple):
    """The results of some steps, ``[task, episode, time, ...]``; see Rollout."""

    observations: Tensor
    actions: Tensor
    outputs: Tensor
    rewards: Tensor
    mask: Tensor
    terminated: Tensor
    truncated: Tensor


def _noise(
    distribution: Distribution, shape: tuple[int, int, int], generator: Generator, within: Places | None
) -> Tensor:
    """Draw what all actions of ``[task, time, episode]`` need, by a generator for each task."""
    noise = torch.empty(*shape, distribution.numbers, device=generator.device)
    for of_task, own in zip(noise, spawn(generator, within or len(noise)), strict=True):
        distribution.fill_noise(of_task, own)
    return noise


def _episodes(env: VectorEnv, policy: Policy, now: _Now, noise: Tensor, reads: "_Reads") -> tuple[_Now, _Steps]:
    """Run all steps: in compiled blocks where the run is compiled and the environment allows it, else one by one."""
    act, horizon = _policies(policy), noise.shape[1]
    done = 0
    blocks: list[_Steps] = []
    if run_is_compiled():
        # Contiguous parameters look the same whether tasks share them or have their own, so one graph serves both.
        now = on_leaves(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, now)
        if can_be_compiled(env):
            size = min(COMPILED_STEPS, horizon)
            for done in range(size, horizon + 1, size):
                last = done == horizon and policy.observe is not None
                now, steps = _compiled_steps(env, policy, now, noise[:, done - size : done], done - size, last, reads)
                blocks.append(steps)
        elif _on_gpu(noise):  # on a CPU, the simulator takes nearly all of the time: compiling gains nothing
            act = _compiled(act)
    if done < horizon:
        now, steps = _steps(env, policy, act, now, noise[:, done:], done, True, reads)
        blocks.append(steps)
    if len(blocks) == 1:
        return now, blocks[0]
    return now, _Steps(*(torch.cat(values, dim=2) for values in zip(*blocks, strict=True)))


def _on_gpu(noise: Tensor) -> bool:
    return noise.device.type == "cuda"


Act = Callable[[State, Tensor, Tensor], tuple[Tensor, Tensor, State]]
"""``(state, observation, noise) -> (outputs, action, state)``"""


def _policies(policy: Policy) -> Act:
    def act(state: State, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, State]:
        outputs, state = policy.predict(state, observation)
        return outputs, policy.distribution.act(outputs, noise.to(outputs.dtype)), state

    return act


def _compiled(act: Act) -> Act:
    return lambda state, observation, noise: run_compiled("the policies", act, (state, observation, noise), ())


def can_be_compiled(env: VectorEnv) -> bool:
    """Return whether an environment's steps can be compiled: whether it offers snapshots of tensors."""
    if composite(env.single_observation_space):
        return False  # its parts are put together outside of graphs
    return on_torch(env) and isinstance(env, Snapshots) and env.snapshot() is not None


def _compiled_steps(  # all of them are needed, once
    env: Any, policy: Policy, now: _Now, noise: Tensor, done: int, last: bool, reads: "_Reads"
) -> tuple[_Now, _Steps]:
    # The snapshot makes the environment's state an input and an output, so that the steps are a pure function.
    def take(snapshot: Any, now: _Now, noise: Tensor, last: bool) -> tuple[Any, _Now, _Steps]:
        env.restore(snapshot)
        now, steps = _steps(env, policy, _policies(policy), now, noise, done, last, reads)
        return env.snapshot(), now, steps

    given = env.snapshot(), now, noise.contiguous(), last
    snapshot, now, steps = run_compiled("the environment's steps", take, given, (env.generator,))
    env.restore(snapshot)
    return now, steps


def _steps(
    env: VectorEnv,
    policy: Policy,
    act: Act,
    now: _Now,
    noise: Tensor,
    done: int,
    last: bool,
    reads: "_Reads",
) -> tuple[_Now, _Steps]:
    """Take a step for each of ``noise`` ``[task, time, ...]``, after ``done``; ``last`` if the episodes end then."""
    state, observation, running = now
    results: list[tuple[Tensor, ...]] = []
    count, tensors = noise.shape[1], on_torch(env)
    for step, noise_now in enumerate(noise.unbind(1), start=done):
        outputs, action, state = act(state, observation, noise_now)
        following, reward, ended, cut = _step(env, action, tuple(observation.shape), step + 1, tensors, reads)
        if policy.observe is not None:
            ends = last and step + 1 == done + count
            state = policy.observe(state, action, reward, ended | cut | ends)
        alive = running > 0
        marks = alive & ended, alive & cut & ~ended
        results.append((observation, action, outputs, reward * running, running, *marks))
        running = running * (~(ended | cut)).to(running.dtype)
        observation = following
    stacked = (torch.stack(values, dim=2) for values in zip(*results, strict=True))
    return _Now(state, observation, running), _Steps(*stacked)


def _environment_seed(generator: Generator) -> int:
    """Draw a seed without waiting for a GPU: its generator's state lies in main memory, and is hashed instead."""
    if generator.device.type == "cpu":
        return int(torch.randint(2**31 - 1, (), generator=generator))
    digest = hashlib.blake2b(generator.get_state().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest) % (2**31 - 1)


@contextmanager
def _threads(env: VectorEnv) -> Iterator[None]:
    """Limit torch to one thread while a CPU simulator runs: waiting torch threads would take the simulator's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if on_torch(env) else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Reads(NamedTuple):
    """How observations are read, besides numbers of the right shape."""

    parts: tuple[Part, ...]
    pixels: Layout | None


def _reset(
    env: VectorEnv,
    seed: int,
    parameters: Mapping[str, Tensor] | None,
    shape: tuple[int, ...],
    device: torch.device,
    reads: _Reads,
) -> Tensor:
    """Reset all lanes; ``shape`` is ``[task, *input_shape]``."""
    episodes = env.num_envs // shape[0]
    with _blamed(0, episodes), limited("a reset"):
        observation, _ = env.reset(seed=seed, options=dict(parameters or {}))
    return _observed(observation, device, 0, (shape[0], episodes, *shape[1:]), reads, env)


def _step(
    env: VectorEnv, action: Tensor, shape: tuple[int, ...], step: int, tensors: bool, reads: _Reads
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Step all lanes, which take tensors or arrays; ``shape`` is ``[task, episode, *input_shape]``, of observations."""
    device, lanes, lead = action.device, action.flatten(0, 1), shape[:2]
    with _blamed(step, lead[1], lanes), limited("a step"):
        observation, reward, ended, cut, _ = env.step(lanes if tensors else lanes.cpu().numpy())
    rewards = _received(reward, device, f"rewards at step {step}", lead)
    terminations = _flags(ended, device, f"terminations at step {step}", lead)
    truncations = _flags(cut, device, f"truncations at step {step}", lead)
    following = _observed(observation, device, step, shape, reads, env)
    return following, _cast(rewards, f"rewards at step {step}"), terminations, truncations


@contextmanager
def _blamed(step: int, episodes: int, actions: Tensor | None = None) -> Iterator[None]:
    """Turn an environment's error into a RolloutError that names the lanes, or actions ``[lane, ...]`` of nan."""
    try:
        yield
    except BaseException as error:
        if not is_fault(error):
            raise
        what = "an environment raised"
        lanes = error.lanes if isinstance(error, LaneError) else []
        if actions is not None and not torch.isfinite(actions).all():
            what = "actions are not finite"
            lanes = (~torch.isfinite(actions).reshape(len(actions), -1).all(1)).nonzero().flatten().tolist()
        where = [_lane(lane, episodes) for lane in lanes[:3]]
        if len(lanes) > 3:
            where.append("...")
        where.append(f"step {step}")
        raise RolloutError(f"{what}: {', '.join(where)}: {type(error).__name__}: {error}") from error


def _lane(lane: int, episodes: int) -> str:
    return f"task {lane // episodes}, lane {lane} (episode {lane % episodes})"


def on_torch(env: VectorEnv) -> bool:
    """Return whether an environment's arrays are torch tensors instead of NumPy arrays."""
    return isinstance(env.unwrapped, TorchLanes) and env.unwrapped.device is not None


def _observed(
    observation: Any, device: torch.device, step: int, shape: tuple[int, ...], reads: _Reads, env: VectorEnv
) -> Tensor:
    if reads.parts and composite(observation):
        with _blamed(step, shape[1]):
            observation = flat(reads.parts, observation)
    what = f"observations at step {step}"
    if reads.pixels is not None:
        images = _received(observation, device, what, (*shape[:2], *reads.pixels.given))
        if images.is_floating_point() and reads.pixels.whole:
            raise RolloutError(f"{what} are {images.dtype} where {reads.pixels.space} was expected: whole numbers")
        pixels: Tensor = reads.pixels.pixels(images)
        return _cast(pixels, what)
    # A copy: the environment may write its next observation into the array that it returned.
    received = _received(observation, device, what, shape)
    cast = _cast(received, what)
    if received.dtype != cast.dtype and received.device.type == "cpu":
        _warn_of_equal(received, cast, env)
    return cast


def _cast(received: Tensor, what: str) -> Tensor:
    """Return numbers ``[task, episode, ...]`` in torch's default dtype.

    Raises RolloutError for a number that it does not hold.
    """
    dtype = torch.get_default_dtype()
    cast = received.to(dtype, copy=True)
    # On a GPU, looking would wait for the device; numbers that are too large are then told as not finite.
    if received.dtype == torch.float64 != dtype and received.device.type == "cpu" and not cast.isfinite().all():
        lost = (received.isfinite() & ~cast.isfinite()).nonzero()
        if len(lost):
            first = lost[0].tolist()
            lane = _lane(first[0] * received.shape[1] + first[1], received.shape[1])
            number = received[tuple(first)].item()
            raise RolloutError(f"{what} hold {number:g}, which {dtype} does not hold: {lane}; scale them down")
    return cast


_LARGE: "WeakKeyDictionary[VectorEnv, Tensor | None]" = WeakKeyDictionary()
"""The last observations of lanes with large numbers; None where a warning was given."""


def _warn_of_equal(received: Tensor, cast: Tensor, env: VectorEnv) -> None:
    """Warn once where observations that follow each other differ, but are the same number in the policy's dtype."""
    exact = 2.0 / torch.finfo(cast.dtype).eps  # every integer below it is told apart
    if not (received.numel() and received.abs().max() >= exact):
        return
    before = _LARGE.get(env, received)
    if before is None:
        return
    _LARGE[env] = received.clone()
    if equal := made_equal(before.numpy(), received.numpy(), cast.numpy().dtype):
        _LARGE[env] = None
        one, other = (number.item() for number in equal)
        warnings.warn(
            f"{type(env.unwrapped).__name__}: the observations {one} and {other} are the same number in {cast.dtype}: "
            f"subtract a constant such as {one} from them",
            stacklevel=2,
        )


def _flags(value: Any, device: torch.device, what: str, shape: tuple[int, ...]) -> Tensor:
    """Return an environment's flags ``[task, episode]``. Raises RolloutError for other values than True and False."""
    received = _received(value, device, what, shape)
    if received.dtype == torch.bool:
        return received
    try:
        checked: Tensor = flags(what, received.flatten())
    except ValueError as error:
        raise RolloutError(str(error)) from error
    return checked.reshape(shape)


def _received(value: Any, device: torch.device, what: str, shape: tuple[int, ...]) -> Tensor:
    """Return an environment's array as a tensor of ``shape``. Raises RolloutError for another shape or no numbers."""
    expected = (shape[0] * shape[1], *shape[2:])
    try:
        # NumPy arrays are copied: torch warns about read-only ones.
        array = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise RolloutError(f"{what} are not an array of numbers but {type(value).__name__}: {error}") from error
    if array.is_complex():
        raise RolloutError(f"{what} are complex numbers: expected real ones")
    if tuple(array.shape) != expected:
        raise RolloutError(f"{what} have shape {tuple(array.shape)} where {expected} was expected")
    return send(array, device).reshape(shape)


def _check_finite(rollout: Rollout, env: VectorEnv) -> None:
    """Raise RolloutError for numbers that are not finite. If all are finite, this waits for the device only once."""
    last, horizon = rollout.last_observations.unsqueeze(2), rollout.rewards.shape[2]
    # Name, values, step of the first ones. In the order of cause and effect within a step, because an action that is
    # not finite spoils the observation and the reward.
    checked = (
        ("actions", rollout.actions, 1),
        ("observations", rollout.observations, 0),
        ("observations", last, horizon),
        ("rewards", rollout.rewards, 1),
    )
    if torch.stack([values.isfinite().all() for _, values, _ in checked]).all():
        return
    broken: list[tuple[int, str, Tensor]] = []
    for name, values, first in checked:
        bad = ~torch.isfinite(values).reshape(*values.shape[:3], -1).all(-1)  # [task, episode, time]
        bad_times = bad.any(0).any(0).nonzero().flatten().tolist()
        if bad_times:
            broken.append((first + bad_times[0], name, bad[:, :, bad_times[0]]))
    step, name, bad = min(broken, key=lambda record: record[0])  # the earliest; the first cause among equals
    where = _lane(int(bad.flatten().nonzero()[0]), bad.shape[1])
    try:
        if isinstance(env.unwrapped, SelfChecking):
            env.unwrapped.check()
    except LaneError as error:
        raise RolloutError(f"{name} are not finite: {where}, step {step}: {error}") from error
    raise RolloutError(f"{name} are not finite: {where}, step {step} of {type(env.unwrapped).__name__}")
