"""What policies earn that know nothing: those that do nothing, and those that act at random."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.control import ControlTasks, action_bounds, scripted
from metarl.evaluation.adaptation import Watch
from metarl.evaluation.scores import sample_tasks
from metarl.evaluation.summaries import summary
from metarl.seeding import stream
from metarl.speed import usual_modes
from metarl.types import Environments, Family, Spec, Split, environments_of

EPISODES = 5
"""Episodes of a task, at most: a mean over tasks needs no more, and evaluation stays cheap."""
Bounds = tuple[Tensor, Tensor] | None


@usual_modes()
def references(
    family: Family,
    tasks: int = 40,
    split: Split = "test",
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Watch | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the returns of zero actions and of random ones, as summaries by name, on the tasks of an evaluation.

    ``return/zero_actions``, for continuous actions, is that of a policy whose action is 0 all the time, which for
    scaled actions is the middle of their range. ``return/random_actions`` is that of actions that are uniform between
    their ends, standard normal where they have none, or equally likely choices. A policy that earns less than these has
    learned nothing, or something wrong. Each task has the family's episodes, at most five. ``progress`` is called with
    the share that is done.

    Raises ValueError for a family of labelled examples.
    """
    sampled = sample_tasks(family, tasks, split, seed)
    environments, device = environments_of(sampled), torch.device(device)
    if isinstance(environments, ControlTasks):
        few = min(EPISODES, environments.sampling.episodes)
        environments = replace(environments, sampling=replace(environments.sampling, episodes=few))
    found: dict[str, dict[str, Any]] = {}
    if family.spec.kind == "continuous":
        found["return/zero_actions"] = _earned(environments, family.spec, _zeros(family.spec), seed, device)
        if progress is not None:
            progress(0.5)
    draws = stream(seed, "random actions", device=device)
    act = _random(family.spec, action_bounds(sampled), draws)
    found["return/random_actions"] = _earned(environments, family.spec, act, seed, device)
    return found


def _earned(
    environments: Environments, spec: Spec, act: Callable[[Tensor], Tensor], seed: int, device: torch.device
) -> dict[str, Any]:
    rollout = environments.rollout(scripted(_unbounded(spec), act), stream(seed, "references", device=device))
    return summary(objectives.scores(spec.kind, rollout)["return"].tolist())


def _unbounded(spec: Spec) -> Spec:
    """Return a spec whose policies take any action, whatever the distribution that a family prefers."""
    return replace(spec, policy=None)


def _zeros(spec: Spec) -> Callable[[Tensor], Tensor]:
    return lambda observations: observations.new_zeros(*observations.shape[:2], spec.output_size)


def _random(spec: Spec, bounds: Bounds, generator: Generator) -> Callable[[Tensor], Tensor]:
    """Return a function of observations ``[task, episode, ...]`` that draws actions, whatever the observations."""

    def act(observations: Tensor) -> Tensor:
        lead = observations.shape[:2]
        if spec.kind == "discrete":
            sizes = spec.distribution.sizes
            chosen = [torch.randint(size, lead, generator=generator, device=generator.device) for size in sizes]
            return torch.stack(chosen, dim=-1) if spec.choices else chosen[0]
        shape = *lead, spec.output_size
        if bounds is None:
            return torch.randn(shape, generator=generator, device=generator.device)
        low, high = (end.to(observations) for end in bounds)
        return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)

    return act
