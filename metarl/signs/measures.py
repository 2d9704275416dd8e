"""What the episodes of a meta-iteration tell of whether policies can learn. All of it costs next to nothing."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl.advantages import judged
from metarl.speed import ranks, send
from metarl.types import (
    Experience,
    Learner,
    Params,
    Rollout,
    Shared,
    Spec,
    State,
    each_tensor,
    rollout_of,
)

MOST_TASKS = 4
"""Tasks whose inner step is taken again in halves, at most."""
SHARE_OF_TASKS = 5
"""One in so many tasks is one of them: halves cost little beside what all tasks cost anyway."""


class Ends(NamedTuple):
    """The ends of continuous actions, ``[output_size]`` each: what is beyond them is clipped."""

    low: Tensor
    high: Tensor


def signs(
    learner: Learner, params: Params, experience: Experience, ends: Ends | None, tasks: int | None = None
) -> dict[str, Tensor]:
    """Return the signs of a meta-iteration for control, by their names in progress.csv; those that there are.

    ``signs/clipped_actions``, ``signs/action_std``, ``signs/explained_variance`` and ``signs/inner_signal``: see the
    functions of these names. ``params`` are those that acted, and ``ends`` those of the environments' actions, None
    where there are none. No gradients are recorded. In a run of several processes, the experience is that of this
    rank's tasks, of all the ``tasks`` of the meta-batch; signs are those of all.
    """
    ends = ends and Ends(*(send(end, experience.descriptors.device) for end in ends))
    number = len(experience.descriptors)
    first = _halved_tasks(tasks or number) - ranks.share(tasks or number).start
    with torch.no_grad():
        parts = [
            _means(learner, params, part, ends, first - place) for place, part in enumerate(ranks.terms(experience))
        ]
        if not parts[0]:
            return {}
        total, _ = ranks.sums((tuple(itertools.chain(*means.values())) for means in parts), number, "the signs")
        found = {name: Mean(*total[2 * place : 2 * place + 2]).value for place, name in enumerate(parts[0])}
    if (entropy := found.get("action_std")) is not None and ends is not None:
        found["action_std"] = _std_of(learner.spec, entropy, ends)
    return {f"signs/{name}": value for name, value in found.items()}


class Mean(NamedTuple):
    """A mean over whatever is counted, as what can be added up over tasks."""

    total: Tensor
    number: Tensor

    @property
    def value(self) -> Tensor:
        """The mean; nan where nothing was counted."""
        return self.total / self.number


def _means(learner: Learner, params: Params, part: Experience, ends: Ends | None, first: int) -> dict[str, Mean]:
    """Return the means that signs are made of, by name. ``first`` is how many of the tasks are taken in halves."""
    rollouts = [rollout_of(batch) for batch in (*part.supports, part.query)]
    found = {
        "clipped_actions": _clipped(learner.spec, rollouts, ends),
        "action_std": _entropy(learner.spec, rollouts, ends),
        "explained_variance": _explained(rollouts),
        "inner_signal": _signal(learner, params, part, first),
    }
    return {name: mean for name, mean in found.items() if mean is not None}


def clipped_actions(spec: Spec, rollouts: Sequence[Rollout], ends: Ends | None) -> Tensor | None:
    """Return the share of the numbers in all actions that lie outside the ends, where environments clip them.

    An action of six numbers, two of which are outside, counts as a third. Steps after an episode's end do not count. A
    Gaussian around 0 that is as wide as the ends are far has 0.32. None for choices, for distributions that keep within
    their bounds, and where actions have no ends.
    """
    mean = _clipped(spec, rollouts, ends)
    return mean and mean.value


def _clipped(spec: Spec, rollouts: Sequence[Rollout], ends: Ends | None) -> Mean | None:
    if ends is None or not _gaussian_like(spec):
        return None
    outside = [
        (((part.actions < ends.low) | (part.actions > ends.high)).to(part.mask.dtype).mean(-1) * part.mask).sum()
        for part in rollouts
    ]
    return Mean(torch.stack(outside).sum(), _steps(rollouts))


def action_std(spec: Spec, rollouts: Sequence[Rollout], ends: Ends | None) -> Tensor | None:
    """Return the policies' standard deviation in units of half the range of actions, for Gaussian policies.

    It is the geometric mean over steps and dimensions, read from the log-probabilities of the actions that were taken:
    the entropy of a Gaussian of d dimensions is the sum of its log standard deviations, plus d (1 + log 2 pi) / 2. None
    for other distributions, where actions have no ends, and where they were not drawn but scripted.
    """
    mean = _entropy(spec, rollouts, ends)
    return None if mean is None or ends is None else _std_of(spec, mean.value, ends)


def _entropy(spec: Spec, rollouts: Sequence[Rollout], ends: Ends | None) -> Mean | None:
    if ends is None or spec.distribution.name != "gaussian":
        return None
    return Mean(-torch.stack([(part.log_probs * part.mask).sum() for part in rollouts]).sum(), _steps(rollouts))


def _std_of(spec: Spec, entropy: Tensor, ends: Ends) -> Tensor:
    log_std = entropy / spec.output_size - (1 + math.log(2 * math.pi)) / 2
    return (log_std - ((ends.high - ends.low) / 2).log().mean()).exp()


def explained_variance(rollouts: Sequence[Rollout]) -> Tensor | None:
    """Return the share of the returns' variance that the learner's baseline explains, as a mean over tasks and steps.

    See ``Rollout.explained_variance``. Tasks whose returns do not vary are left out; nan if there are no others. None
    where no baseline has judged the episodes.
    """
    mean = _explained(rollouts)
    return mean and mean.value


def _explained(rollouts: Sequence[Rollout]) -> Mean | None:
    told = [part.explained_variance for part in rollouts if part.explained_variance is not None]
    return _without_nan(torch.cat(told)) if told else None


def _without_nan(values: Tensor) -> Mean:
    return Mean(values.nansum(), (~values.isnan()).sum().to(values.dtype))


def inner_signal(learner: Learner, params: Params, experience: Experience) -> Tensor | None:
    """Return the cosine between the first inner steps on two halves of a task's episodes, as a mean over a few tasks.

    A step is the change of everything that ``Learner.adapt`` changes in a task's parameters; for a plain gradient step,
    the cosine is that of the two gradients. The first half of the episodes and the second are judged each by itself, so
    that they are independent: where episodes say nothing of the task, the cosine is 0 on average, and it is 1 where
    noise plays no part. If c is the cosine on average, the step on all the episodes has a cosine of about
    sqrt(2 c / (1 + c)) with the step on infinitely many.

    The tasks are the first of the meta-batch, one in five of them, at least one and four at most. Tasks that a half
    does not move are left out; nan if there are no others. None for learners with memory, which take no steps, for
    those that do not adapt in training, and where a task has a single episode.
    """
    mean = _signal(learner, params, experience, _halved_tasks(len(experience.descriptors)))
    return mean and mean.value


def _halved_tasks(tasks: int) -> int:
    """Return how many of so many tasks are taken in halves."""
    return max(1, min(MOST_TASKS, tasks // SHARE_OF_TASKS))


def _signal(learner: Learner, params: Params, experience: Experience, first: int) -> Mean | None:
    """Return the cosines of the first tasks; of none, which may be a rank's, whether there would be some."""
    if learner.memory is not None or not experience.supports:
        return None
    support = rollout_of(experience.supports[0])
    half = support.rewards.shape[1] // 2
    if half == 0:
        return None
    count = max(1, min(first, len(support.rewards)))
    # The halves of a task are two tasks here, so that one adaptation serves both.
    episodes = _halves(support.select(slice(0, count)), half)
    before = learner.begin(params, experience.descriptors[:count].repeat(2, 1))
    after = learner.adapt(before, judged(learner, before, [episodes])[0])
    moved = [(new - old).flatten(1) for old, new in _moved(before, after)]
    if not moved:
        return None
    steps = torch.cat(moved, dim=1)
    one, other = torch.nn.functional.normalize(steps, eps=0.0).chunk(2)  # 0 / 0 is nan
    return _without_nan((one * other).sum(1)[: max(first, 0)])


def _halves(rollout: Rollout, half: int) -> Rollout:
    """Return the first ``half`` episodes of each task, then the next ones, as twice as many tasks."""
    plain = replace(rollout, advantages=None, explained_variance=None)
    return each_tensor(lambda values: torch.cat([values[:, :half], values[:, half : 2 * half]]), plain)


def _moved(before: State, after: State) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors of real numbers ``[task, ...]`` that two states have in common, as pairs.

    A part of a state whose field ``params`` has moved counts by that alone: what else it has are counters and moments
    of an optimiser.
    """
    if before is after:  # also what has no task axis
        return []
    if isinstance(before, Tensor):
        alike = isinstance(after, Tensor) and before.shape == after.shape and before.is_floating_point()
        return [(before, after)] if alike else []
    return [pair for one, other in _parts(before, after) for pair in _moved(one, other)]


def _parts(before: State, after: State) -> list[tuple[Any, Any]]:
    """Return the parts of two states, as pairs."""
    if isinstance(before, dict):
        return [] if isinstance(before, Shared) else [(value, after[name]) for name, value in before.items()]
    if not isinstance(before, tuple | list):
        return []
    own = getattr(before, "params", None)
    if isinstance(own, dict) and not isinstance(own, Shared) and own is not getattr(after, "params", None):
        return [(own, getattr(after, "params", None))]
    return list(zip(before, after, strict=True))


def _gaussian_like(spec: Spec) -> bool:
    """Return whether actions are numbers that may lie anywhere."""
    return spec.kind == "continuous" and not spec.distribution.bounded


def _steps(rollouts: Sequence[Rollout]) -> Tensor:
    return torch.stack([part.mask.sum() for part in rollouts]).sum()
