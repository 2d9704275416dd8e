"""From environments to rollouts: sampling, the linear feature baseline, and generalised advantages.

An environment batch is a ``gymnasium.vector.VectorEnv`` of task-major lanes (lane i belongs to task i // episodes) with
``AutoresetMode.DISABLED``, whose arrays are NumPy's or torch tensors. A lane that has finished idles: it repeats its
last observation with reward 0 until it is reset. Task parameters go in by name through ``reset(options={...})``, one
row per lane.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from metarl import objectives
from metarl.types import Learner, Role, Rollout, Spec, State


class RolloutError(RuntimeError):
    """An environment or a policy broke while episodes were collected; names the task, the lane and the step."""


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
    _made: list[VectorEnv] = field(default_factory=list, repr=False, compare=False)

    def draw(self, learner: Learner, state: State, role: Role, generator: Generator) -> Rollout:
        """Run ``sampling.episodes`` fresh episodes of every task under ``state``'s policies.

        Raises:
            RolloutError: an environment raised, or gave a wrong shape or a number that is not finite; or the policy
                asked for an action that is not finite.
        """
        tasks, episodes = len(self.descriptors), self.sampling.episodes
        if not self._made:
            self._made.append(self.environment(tasks * episodes, generator.device))
        lanes = {name: value.repeat_interleave(episodes, 0) for name, value in self.parameters.items()}
        trajectory = collect(self._made[0], learner, state, tasks, self.sampling.horizon, generator, lanes)
        return with_advantages(trajectory, self.sampling)


class Trajectory(NamedTuple):
    """What the environments and the policy said, before any estimate of advantages."""

    observations: Tensor  # [task, episode, time, *input_shape]
    actions: Tensor  # [task, episode, time(, output_size)]
    log_probs: Tensor  # [task, episode, time]
    rewards: Tensor  # [task, episode, time]
    mask: Tensor  # [task, episode, time]
    last_observations: Tensor  # [task, episode, *input_shape] after the last step
    truncated: Tensor  # [task, episode] 1 where the environment cut the episode before the horizon


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
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    steps: dict[str, list[Tensor]] = {name: [] for name in ("observations", "actions", "log_probs", "rewards", "mask")}
    with torch.no_grad(), _one_thread():
        observation = _observed(_reset(env, seed, parameters), spec, tasks, generator.device, step=0)
        running = torch.ones(observation.shape[:2], dtype=observation.dtype, device=generator.device)
        truncated = torch.zeros_like(running)
        for step in range(horizon):
            outputs, state = learner.predict(state, observation)
            action = objectives.sample(spec.kind, outputs, generator)
            following, reward, ended, cut = _step(env, action, spec, tasks, step)
            log_probs = objectives.log_prob(spec.kind, outputs, action)
            for name, value in zip(steps, (observation, action, log_probs, reward * running, running), strict=True):
                steps[name].append(value)
            if step < horizon - 1:
                truncated = torch.where((running > 0) & cut & ~ended, 1.0, truncated)
            running = running * (~(ended | cut)).to(running.dtype)
            observation = following
        stacked = {name: torch.stack(values, dim=2) for name, values in steps.items()}
        trajectory = Trajectory(**stacked, last_observations=observation, truncated=truncated)
        _check_finite(trajectory)
    return trajectory


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread while episodes run: its waiting threads would take the cores from the simulator."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reset(env: VectorEnv, seed: int, parameters: Mapping[str, Tensor] | None) -> Any:
    try:
        return env.reset(seed=seed, options=dict(parameters or {}))[0]
    except Exception as error:
        raise RolloutError(f"the environments failed to reset: {error}") from error


def _step(env: VectorEnv, action: Tensor, spec: Spec, tasks: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device, lanes = action.device, action.flatten(0, 1)
    try:
        observation, reward, ended, cut, _ = env.step(lanes if _on_torch(env) else lanes.cpu().numpy())
    except Exception as error:
        raise RolloutError(f"an environment raised at step {step}: {error}") from error
    shape = (tasks, len(lanes) // tasks)
    flags = [_tensor(value, device, f"{name} at step {step}", shape) for name, value in
             (("rewards", reward), ("terminations", ended), ("truncations", cut))]
    rewards = flags[0].to(torch.get_default_dtype())
    return _observed(observation, spec, tasks, device, step + 1), rewards, flags[1].bool(), flags[2].bool()


def _on_torch(env: VectorEnv) -> bool:
    return getattr(env.unwrapped, "device", None) is not None


def _observed(observation: Any, spec: Spec, tasks: int, device: torch.device, step: int) -> Tensor:
    lanes = len(observation)
    tensor = _tensor(observation, device, f"observations at step {step}", (tasks, lanes // tasks, *spec.input_shape))
    return tensor.to(torch.get_default_dtype())


def _tensor(value: Any, device: torch.device, what: str, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.as_tensor(value, device=device)
    expected = (shape[0] * shape[1], *shape[2:])
    if tuple(tensor.shape) != expected:
        raise RolloutError(f"{what} have shape {tuple(tensor.shape)} where {expected} was expected")
    return tensor.reshape(shape)


def _check_finite(trajectory: Trajectory) -> None:
    for name in ("observations", "actions", "rewards"):
        values = getattr(trajectory, name)
        if not torch.isfinite(values).all():
            bad = (~torch.isfinite(values)).flatten(3).any(-1) if values.ndim > 3 else ~torch.isfinite(values)
            step = int(bad.any(0).any(0).nonzero()[0])
            task, episode = (int(i) for i in bad[:, :, step].nonzero()[0])
            lane = task * bad.shape[1] + episode
            raise RolloutError(f"{name} are not finite: task {task}, lane {lane} (episode {episode}), step {step}")


def with_advantages(trajectory: Trajectory, sampling: Sampling) -> Rollout:
    """Fit the baseline to each task, estimate advantages, and normalise them per task.

    The horizon is the end of the task: no value lies beyond it, as in the MAML paper. An episode that its environment
    truncated earlier goes on in the baseline's estimate.
    """
    returns = discounted_sums(trajectory.rewards * trajectory.mask, sampling.discount)
    final_step = trajectory.mask.sum(2, keepdim=True)
    observations = torch.cat([trajectory.observations, trajectory.last_observations.unsqueeze(2)], dim=2)
    time = torch.arange(observations.shape[2], device=observations.device, dtype=observations.dtype)
    features = baseline_features(observations, torch.minimum(time, final_step))
    weights = fit_baseline(features[:, :, :-1], returns, trajectory.mask)
    values = torch.einsum("teif,tf->tei", features, weights)
    last_values = values[:, :, -1] * trajectory.truncated
    advantages = gae(trajectory.rewards, values[:, :, :-1], last_values, trajectory.mask, sampling)
    return Rollout(*trajectory[:5], advantages=normalise(advantages, trajectory.mask).to(trajectory.rewards.dtype))


def discounted_sums(rewards: Tensor, discount: float) -> Tensor:
    """Discounted reward-to-go along the last axis, which is time."""
    sums = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[..., 0])
    for step in reversed(range(rewards.shape[-1])):
        following = rewards[..., step] + discount * following
        sums[..., step] = following
    return sums


def baseline_features(observations: Tensor, time: Tensor) -> Tensor:
    """Features of the linear baseline, ``[task, episode, time, 2 * size + 4]`` in float64.

    Observations clipped to [-10, 10], their squares, powers of time / 100, and 1 (Duan et al., arXiv 1604.06778).
    """
    states = observations.flatten(3).double().clamp(-10, 10)
    step = (time.double() / 100).expand(states.shape[:3]).unsqueeze(-1)
    return torch.cat([states, states.square(), step, step.square(), step**3, torch.ones_like(step)], dim=-1)


def fit_baseline(features: Tensor, returns: Tensor, mask: Tensor, ridge: float = 1e-5) -> Tensor:
    """Least-squares weights of each task, ``[task, feature]``, over its valid steps.

    The ridge rises tenfold until the normal equations can be solved, so that no batch is refused: all episodes may end
    at their first step, or hold one and the same observation.
    """
    valid = features * mask.double().unsqueeze(-1)
    rows = valid.flatten(1, 2)
    gram = rows.mT @ rows
    target = rows.mT @ (returns.double() * mask).flatten(1).unsqueeze(-1)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for exponent in range(12):
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * 10.0**exponent * identity)
        if not failed.any():
            break
    return torch.cholesky_solve(target, factor).squeeze(-1)


def gae(rewards: Tensor, values: Tensor, last_values: Tensor, mask: Tensor, sampling: Sampling) -> Tensor:
    """Generalised advantage estimates, ``[..., time]`` (arXiv 1506.02438, eq. 16); 0 after the end.

    ``values[..., t]`` is the value of the state acted in at t, ``last_values`` that after the last valid step: 0 where
    the episode terminated.
    """
    following = torch.cat([values[..., 1:] * mask[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    is_last = mask - torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], dim=-1)
    following = following + is_last * last_values.unsqueeze(-1)
    errors = (rewards + sampling.discount * following - values) * mask
    return discounted_sums(errors, sampling.discount * sampling.gae_lambda)


def normalise(advantages: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale each task's valid advantages to mean 0 and standard deviation 1: ``[task, episode, time]``."""
    mean = objectives.masked_mean(advantages, mask).reshape(-1, 1, 1)
    centred = (advantages - mean) * mask
    std = objectives.masked_mean(centred.square(), mask).sqrt().reshape(-1, 1, 1)
    return centred / (std + 1e-8)
