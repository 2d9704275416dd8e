"""A policy adapted to an environment of one's own, or to episodes that were recorded there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.distributions import Distribution

from metarl.advantages import learned
from metarl.control import Sampled, Sampling
from metarl.seeding import stream
from metarl.speed import float32, usual_modes
from metarl.trained.deploy import exporting, saved
from metarl.trained.deploy.card import Card
from metarl.trained.deploy.likely import warn_if_unlikely
from metarl.trained.deploy.native import Native, native, of_family, read, scale_of
from metarl.trained.deploy.playing import AnyEnv, OwnTask, rollout_of
from metarl.trained.policies import TaskPolicy, before_any_task, check_policies
from metarl.types import Algorithm, Learner, Params, Rollout, State, each_tensor, held_by, outputs_at, policy_of


@dataclass(frozen=True, eq=False)
class AdaptedPolicy:
    """A policy adapted to one environment, in the environment's own observations and actions.

    ``metarl.Trained.adapt_to`` makes it, and ``metarl.load_model`` reads it from a file.
    """

    algorithm: Algorithm = field(repr=False)
    learner: Learner = field(repr=False)
    params: Params = field(repr=False)
    device: torch.device
    native: Native = field(repr=False)
    """The environment's own spaces."""
    card: Card = field(repr=False)
    """Where it comes from."""
    state: State = field(repr=False)
    learnt_from: tuple[Rollout, ...] = field(default=(), repr=False)
    """The episodes ``[1, episode, time, ...]`` that each step learned from."""
    returns: tuple[Tensor, ...] = ()
    """``[episode]`` undiscounted returns after 0, 1, ... steps, as far as episodes were played."""

    def act(self, observations: Any, deterministic: bool = True, seed: int | None = None) -> Any:
        """Return the environment's own action for one observation, or for a batch with one more axis, as an array.

        Deterministic actions are the most likely ones; others are drawn, by ``seed`` where one is given. Raises
        ValueError for observations of another shape, and for those that are not finite.
        """
        rows = read(self.native, self.learner.spec, observations)
        lead = rows.shape[: rows.ndim - len(self.native.shape)]
        if not rows.isfinite().all():
            raise ValueError("observations are not finite")
        rows = rows.reshape(-1, *self.native.shape)
        outputs = self._outputs(rows)
        distribution = self.learner.spec.distribution
        if deterministic:
            actions = distribution.mode(outputs)
        else:
            generator = torch.Generator()
            generator.manual_seed(seed) if seed is not None else generator.seed()
            actions = distribution.sample(outputs, generator)
        return self.native.act(actions).reshape((*lead, *self.native.acted)).numpy()

    def distribution(self, observations: Any) -> Distribution:
        """Return the distribution of the policy's own actions at observations, before they are scaled and clipped."""
        rows = read(self.native, self.learner.spec, observations)
        return TaskPolicy(self.learner, self.state, self.device)(rows)

    @usual_modes()
    def _outputs(self, rows: Tensor) -> Tensor:
        with torch.no_grad(), float32(self.device):
            return outputs_at(self.learner, self.state, rows.to(self.device)).cpu()

    def summary(self) -> str:
        """Return the returns before and after each step as text, a line each."""
        lines = []
        for step, found in enumerate(self.returns):
            error = float(found.std(correction=1) / len(found) ** 0.5) if len(found) > 1 else 0.0
            mean = float(found.mean())
            lines.append(
                f"return/step_{step}  {mean:.4g} +- {error:.2g}  (mean and standard error, {len(found)} episodes)"
            )
        return "\n".join(lines)

    def save(self, path: Path | str) -> Path:
        """Write the policy into a file that ``metarl.load_model`` reads, data only, and its card beside it.

        The file holds the episodes that it learned from. Raises ValueError where the algorithm cannot be recorded.
        """
        contents = {
            "kind": saved.POLICY,
            "native": self.native._asdict(),
            "steps": len(self.learnt_from),
            "returns": [found.tolist() for found in self.returns],
            "reader": None,
        }
        told = saved.Told(self.algorithm, replace(self.learner.spec, policy=None), self.card, contents)
        tensors = {
            f"{step}.{name}": value
            for step, rollout in enumerate(self.learnt_from)
            for name, value in vars(rollout).items()
            if isinstance(value, Tensor)
        }
        return saved.save(path, told, self.params, held_by(self.learner), tensors, self._outputs(self._probes()))

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        """Pickle by value: a learner's functions are closures."""
        return _again, (cloudpickle.dumps(vars(self)),)

    def export(self, path: Path | str) -> Path:
        """Write a program that needs no metarl: of ``torch.export`` (.pt2) or ONNX (.onnx), and the card beside it.

        It takes the environment's own observations ``[item, ...]`` (of a Dict or a Tuple, the vector of their parts)
        and returns its own actions ``[item, ...]``, those without noise. It was compared with this policy before it was
        written.

        Raises:
            ValueError: another type of file, ONNX is not installed, or the policy cannot be exported.
        """
        given = torch.rand(4, *self.native.given, generator=torch.Generator().manual_seed(0)) * self.native.divisor
        if self.native.observed == "discrete":
            given = torch.arange(self.native.first, self.native.first + 2).repeat(2)
        details = {"output": "action", "action_shape": list(self.native.acted)}
        actor = exporting.Actor(self.learner, self.state, self.native)
        return exporting.export(actor, given, path, self.card, details)

    def _probes(self) -> Tensor:
        """Return inputs ``[item, *input_shape]`` at which a file's outputs are compared."""
        if self.learnt_from:
            return self.learnt_from[0].observations[0, 0, :16].cpu()
        return torch.rand(16, *self.learner.spec.input_shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, eq=False)
class Source:
    """What a policy is adapted from: a run."""

    algorithm: Algorithm
    learner: Learner
    params: Params
    device: torch.device
    family: Any
    card: Card


@usual_modes()
def adapt_to_env(
    source: Source,
    env: AnyEnv,
    episodes: int = 20,
    steps: int = 1,
    after: int | None = None,
    horizon: int | None = None,
    seed: int = 0,
    progress: Callable[[float], object] = lambda share: None,
) -> AdaptedPolicy:
    """Adapt to an environment by playing there; see ``metarl.Trained.adapt_to``."""
    after = episodes if after is None else after
    if episodes < 1 or steps < 0 or after < 0:
        raise ValueError(f"episodes={episodes}, steps={steps}, after={after}: expected at least 1, 0 and 0")
    learner, device = source.learner, source.device
    state = _before(source)
    task = _task(source, env, horizon)
    task.check()
    played: list[Rollout] = []
    with torch.no_grad(), float32(device):
        for step in range(steps + 1):
            state = learned(learner, state, played[-1]) if played else state
            number = episodes if step < steps else after
            if number:
                generator = stream(seed, "deployment", step, device=device)
                share = partial(_share, progress, step, steps + bool(after))
                played.append(task.play(policy_of(learner, state), number, generator, share))
    returns = tuple(rollout.rewards.sum(-1)[0].cpu() for rollout in played)
    scores = {f"return/step_{step}": float(found.mean()) for step, found in enumerate(returns)}
    made = replace(source.card, scores=scores)
    parts = source.algorithm, learner, source.params, device, task.own, made, state
    return AdaptedPolicy(*parts, tuple(played[:steps]), returns)


def _share(progress: Callable[[float], object], step: int, parts: int, done: float) -> None:
    progress((step + done) / parts)


@usual_modes()
def adapt_to_episodes(source: Source, batches: Sequence[Sequence[Any] | Rollout]) -> AdaptedPolicy:
    """Adapt to recorded episodes, a step for each batch of them; see ``metarl.Trained.adapt_to``."""
    learner, state = source.learner, _before(source)
    own, horizon = of_family(source.family, learner.spec), _horizon(source.family)
    rollouts: list[Rollout] = []
    with torch.no_grad(), float32(source.device):
        for episodes in batches:
            if isinstance(episodes, Rollout):
                rollouts.append(_own_rollout(episodes, learner, source.device))
            else:
                rollouts.append(rollout_of(episodes, learner, state, own, source.device, horizon))
            warn_if_unlikely(learner, state, rollouts[-1], own)
            state = learned(learner, state, rollouts[-1])
    returns = tuple(rollout.rewards.sum(-1)[0].cpu() for rollout in rollouts)
    scores = {f"return/step_{step}": float(found.mean()) for step, found in enumerate(returns)}
    made = replace(source.card, scores=scores)
    parts = source.algorithm, learner, source.params, source.device, own, made, state
    return AdaptedPolicy(*parts, tuple(rollouts), returns)


def _own_rollout(rollout: Rollout, learner: Learner, device: torch.device) -> Rollout:
    """Return a rollout of one task on a device. Raises ValueError for another one."""
    shape, wanted = tuple(rollout.observations.shape), tuple(learner.spec.input_shape)
    if shape[0] != 1 or shape[3:] != wanted:
        raise ValueError(f"the rollout's observations have shape {shape}: expected [1, episode, time, *{wanted}]")
    for name, values in vars(rollout).items():
        if isinstance(values, Tensor) and not values.isfinite().all():
            raise ValueError(f"the rollout's {name} contain numbers that are not finite")
    return each_tensor(lambda values: values.to(device), rollout)


def _task(source: Source, env: AnyEnv, horizon: int | None) -> OwnTask:
    """Return an environment as a task. Raises ValueError where its spaces do not match."""
    if isinstance(env, VectorEnv):
        sees, acts = env.single_observation_space, env.single_action_space
    else:
        sees, acts = env.observation_space, env.action_space
    spec = source.learner.spec
    own = native(sees, acts, spec, scale_of(source.family))
    return OwnTask(env, spec, own, horizon or _horizon(source.family), int(getattr(source.family, "frame_skip", 1)))


def _horizon(family: Any) -> int:
    return (family.sampling if isinstance(family, Sampled) else Sampling()).horizon


def _before(source: Source) -> State:
    check_policies(source.learner)
    return before_any_task(source.learner, source.params, source.device)


def is_env(given: Any) -> bool:
    """Return whether something is an environment: single, or a vector of them."""
    return isinstance(given, gymnasium.Env | VectorEnv)


def replayed(learner: Learner, params: Params, device: torch.device, tensors: dict[str, Tensor], steps: int) -> Any:
    """Return the rollouts of a file, and the state after them."""
    state, rollouts = before_any_task(learner, params, device), list[Rollout]()
    with usual_modes(), torch.no_grad(), float32(device):
        for step in range(steps):
            fields: dict[str, Any] = {
                name.partition(".")[2]: value.to(device)
                for name, value in tensors.items()
                if name.partition(".")[0] == str(step)
            }
            rollouts.append(Rollout(**fields))
            state = learned(learner, state, rollouts[-1])
    return tuple(rollouts), state


def as_native(told: dict[str, Any]) -> Native:
    """Rebuild the spaces of a file."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    return Native(**fields)


def as_tensors(returns: Sequence[Sequence[float]]) -> tuple[Tensor, ...]:
    """Return the returns of a file."""
    return tuple(torch.from_numpy(np.array(found, dtype=np.float32)) for found in returns)


def _again(pickled: bytes) -> AdaptedPolicy:
    return AdaptedPolicy(**cloudpickle.loads(pickled))
