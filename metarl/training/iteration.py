"""One meta-iteration: sample tasks, gather experience, update the meta-parameters."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.advantages import practised
from metarl.control import action_bounds
from metarl.numerics import sum_of
from metarl.safety import limited
from metarl.seeding import stream
from metarl.signs import Ends, signs
from metarl.speed import send
from metarl.types import (
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


Iterate = Callable[[Params, dict[str, Any], float, Iterator[Generator]], Outcome]
"""``(params, outer state, progress, streams) -> outcome``, a pure function except for the measured time. ``progress``
is the completed fraction of training; ``streams`` comes from the function ``streams``."""


def streams(seed: int, number: int, device: torch.device) -> Iterator[Generator]:
    """Yield the generators of iteration ``number``: first for its tasks (CPU), then one for each draw (``device``)."""
    yield stream(seed, "tasks/train", number)
    for draw in itertools.count():
        yield stream(seed, "draw", number, draw, device=device)


def action_ends(family: Family, device: torch.device) -> Ends | None:
    """Return the ends of a family's continuous actions, on ``device``; None where there are none."""
    if family.spec.kind != "continuous":
        return None
    found = action_bounds(family.sample(1, "train", stream(0, "check")))
    return found and Ends(*(send(end.to(torch.get_default_dtype()), device) for end in found))


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
    with limited("sampling tasks"):
        tasks = family.sample(number_of_tasks, "train", next(streams))
    experience, scores = gather(learner, params, tasks, streams, progress)
    seconds = time.perf_counter() - began
    update, moved = outer.update(learner, params, state, experience), buffers
    if buffers and update.finite:
        with torch.no_grad():
            moved = moved_buffers(learner, buffers, experience)
    told = signs(learner, params, experience, ends) if learner.spec.control else {}
    return Outcome(update, scores, seconds, _steps(experience), moved, told)


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
        named = objectives.step_scores(learner.spec.kind, rollout, None, step)
        scores |= {name: values.mean() for name, values in named.items()}
    return experience, scores
