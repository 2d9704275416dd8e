"""One meta-iteration: sample tasks, gather experience, update the meta-parameters."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.advantages import practised
from metarl.numerics import sum_of
from metarl.safety import limited
from metarl.seeding import stream
from metarl.selection import drawn_in_whole, select_tasks
from metarl.signs import Ends, signs
from metarl.speed import joined_tasks, on_leaves, ranks, send
from metarl.types import (
    Batch,
    Experience,
    Family,
    Learner,
    Outer,
    Params,
    Policy,
    Rollout,
    Tasks,
    Update,
    environments_of,
    holding,
    labelled_tasks,
    moved_buffers,
)


class Outcome(NamedTuple):
    """The result of one meta-iteration."""

    update: Update
    scores: Mapping[str, Tensor | float]
    """Mean returns before and after each adaptation. For control only: with labelled examples, scores are among the
    update's metrics."""
    sampling_seconds: float | None = None
    environment_steps: Tensor | None = None
    buffers: Params | None = None
    """The learner's buffers after the iteration; None where it has none."""
    signs: Mapping[str, Tensor | float] = {}  # never written to
    """For control: signs of whether policies can learn; see ``metarl.signs``."""
    experience: Experience | None = None
    """What this process learnt from; None where the iteration is compiled as one graph."""


Iterate = Callable[[Params, dict[str, Any], float, Iterator[Generator]], Outcome]
"""``(params, outer state, progress, streams) -> outcome``, a pure function except for the measured time. ``progress``
is the completed fraction of training; ``streams`` comes from the function ``streams``."""


def streams(seed: int, number: int, device: torch.device) -> Iterator[Generator]:
    """Yield the generators of iteration ``number``: first for its tasks (CPU), then one for each draw (``device``)."""
    yield stream(seed, "tasks/train", number)
    for draw in itertools.count():
        yield stream(seed, "draw", number, draw, device=device)


def iterate(  # noqa: PLR0913
    learner: Learner,
    family: Family,
    outer: Outer,
    number_of_tasks: int,
    params: Params,
    state: dict[str, Any],
    progress: float,
    streams: Iterator[Generator],
    buffers: Params | None = None,
    ends: Ends | None = None,
) -> Outcome:
    """Take one outer step on a meta-batch of tasks; see ``Iterate``. Then move the learner's buffers, if it has any.

    ``ends`` are those of the environments' actions, for the signs.
    """
    learner = holding(learner, buffers)
    began = time.perf_counter()
    drawn = list[tuple[Experience, int]]()

    def sample() -> tuple[dict[str, Tensor], Tensor | None]:
        with limited("sampling tasks"):
            tasks = family.sample(number_of_tasks, "train", next(streams))
        experience, scores = _drawn(learner, params, _of_this_rank(tasks), streams, progress)
        drawn.append((experience, len(tasks.descriptors)))
        return _told(scores), _told(_steps(experience))

    of_ranks = ranks.agreed("sampling", sample)
    ((experience, whole),), seconds = drawn, time.perf_counter() - began
    update = outer.update(learner, params, state, experience)
    moved = _moved(learner, buffers, experience) if buffers and update.finite else buffers
    told = signs(learner, params, experience, ends, whole) if learner.spec.control else {}
    scores = _means(ranks.task_values(of_ranks[0][0], _told_by_all([scores for scores, _ in of_ranks])))
    steps = [steps for _, steps in of_ranks if steps is not None]
    return Outcome(update, scores, seconds, sum_of(steps) if steps else None, moved, told, experience)


def _of_this_rank(tasks: Tasks) -> Tasks:
    """Return the tasks that this process learns from; they draw what they draw among all of these."""
    if not ranks.is_shared():
        return tasks
    mine = ranks.share(len(tasks.descriptors))
    # What is computed for several tasks at once may be rounded by their number.
    return drawn_in_whole(tasks, mine) if ranks.is_exact() else select_tasks(tasks, mine)


def _moved(learner: Learner, buffers: Params, experience: Experience) -> Params:
    """Return the buffers after an iteration: any function of the experience of all ranks, unless it goes by sums."""
    assert learner.buffers is not None
    with torch.no_grad():
        if learner.buffers.by_sums:
            return moved_buffers(learner, buffers, experience)
        whole = _of_all_ranks(experience)
        with ranks.apart():
            return moved_buffers(learner, buffers, whole)


def _of_all_ranks(experience: Experience) -> Experience:
    """Return the experience of all ranks."""
    if not ranks.is_shared():
        return experience
    device = experience.descriptors.device
    found = ranks.gathered(on_leaves(_told, experience), "the experience")
    batches = zip(*([*one.supports, one.query] for one in found), strict=True)
    *supports, query = (joined_tasks(_alike(list(of_ranks))) for of_ranks in batches)
    whole = Experience(
        descriptors=torch.cat([one.descriptors for one in found]),
        supports=tuple(supports),
        query=query,
        progress=experience.progress,
    )
    return on_leaves(lambda value: send(value, device) if isinstance(value, Tensor) else value, whole)  # type: ignore[no-any-return]


def _alike(batches: list[Batch]) -> list[Batch]:
    """Return the batches of all ranks; where some report success and others none, those report 0."""
    rollouts = [batch for batch in batches if isinstance(batch, Rollout)]
    if all(rollout.success is None for rollout in rollouts):
        return batches
    return [
        replace(rollout, success=torch.zeros_like(rollout.rewards[:, :, 0])) if rollout.success is None else rollout
        for rollout in rollouts
    ]


def _told(values: Any) -> Any:
    """Return tensors as other ranks can read them, in main memory; what they are in one process where it is alone."""
    if not ranks.is_shared():
        return values
    return on_leaves(lambda value: value.cpu() if isinstance(value, Tensor) else value, values)


def _told_by_all(of_ranks: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Leave out the numbers of infos that some ranks were not told."""
    return [
        {
            name: values
            for name, values in scores.items()
            if not name.startswith(objectives.MEASURES) or all(name in other for other in of_ranks)
        }
        for scores in of_ranks
    ]


def _means(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.mean() for name, values in scores.items()}


def _steps(experience: Experience) -> Tensor | None:
    rollouts = [batch for batch in (*experience.supports, experience.query) if isinstance(batch, Rollout)]
    return sum_of(rollout.mask.sum() for rollout in rollouts) if rollouts else None


def gather(
    learner: Learner, params: Params, tasks: Tasks, draws: Iterator[Generator], progress: float = 0.0
) -> tuple[Experience, dict[str, Tensor]]:
    """Draw the experience of one meta-iteration. Also return mean returns at each step (control only).

    For control, every adaptation gets fresh episodes of the policies before that adaptation. With labelled examples,
    all adaptations use the same support set. Every draw takes the next generator of ``draws``.
    """
    experience, scores = _drawn(learner, params, tasks, draws, progress)
    return experience, _means(scores)


def _drawn(
    learner: Learner, params: Params, tasks: Tasks, draws: Iterator[Generator], progress: float
) -> tuple[Experience, dict[str, Tensor]]:
    with torch.no_grad():
        draw = _rollouts if learner.spec.control else _examples
        return draw(learner, params, tasks, draws, progress)


def _examples(
    learner: Learner, params: Params, tasks: Tasks, draws: Iterator[Generator], progress: float
) -> tuple[Experience, dict[str, Tensor]]:
    # No adaptation here: it does not change what is drawn, and the meta-loss computes the scores.
    labelled = labelled_tasks(tasks)
    first = next(draws)
    with limited("drawing examples"):
        support, query = labelled.draw("support", first), labelled.draw("query", next(draws))
    supports, descriptors = (support,) * learner.adaptations, send(tasks.descriptors, first.device)
    return Experience(descriptors=descriptors, supports=supports, query=query, progress=progress), {}


def _rollouts(
    learner: Learner, params: Params, tasks: Tasks, draws: Iterator[Generator], progress: float
) -> tuple[Experience, dict[str, Tensor]]:
    environments, first = environments_of(tasks), next(draws)
    generators = itertools.chain([first], draws)
    descriptors = send(tasks.descriptors, first.device)

    def act(policy: Policy) -> Rollout:
        return environments.rollout(policy, next(generators))

    experience = practised(learner, params, descriptors, act, progress)
    scores: dict[str, Tensor] = {}
    for step, rollout in enumerate([*experience.supports, experience.query]):
        scores |= objectives.step_scores(learner.spec.kind, rollout, None, step)
    # Names of measures may differ from iteration to iteration, and between ranks: what learns never sees them.
    supports = tuple(_without_measures(support) for support in experience.supports)
    return replace(experience, supports=supports, query=_without_measures(experience.query)), scores


def _without_measures(batch: Batch) -> Batch:
    return replace(batch, measures=None) if isinstance(batch, Rollout) and batch.measures is not None else batch
