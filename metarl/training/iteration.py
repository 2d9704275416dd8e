"""One meta-iteration: sample tasks, gather what is learned from, move the meta-parameters."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from metarl.experience import gather
from metarl.numerics import sum_of
from metarl.seeding import stream
from metarl.types import Experience, Family, Learner, Outer, Params, Rollout, Update


class Outcome(NamedTuple):
    """What a meta-iteration came to."""

    update: Update
    scores: Mapping[str, Tensor | float]
    """Mean returns on the way (control only: the update tells those of labelled examples)."""
    sampling_seconds: float | None = None
    environment_steps: Tensor | None = None


Iterate = Callable[[Params, dict[str, Any], float, Iterator[Generator]], Outcome]
"""``(params, outer state, progress, streams) -> outcome``, a pure function but for its times; ``progress`` is the share
of the training that lies behind, and ``streams`` are those of ``streams``."""


def streams(seed: int, number: int, device: torch.device) -> Iterator[Generator]:
    """Open what iteration ``number`` draws from: its tasks, on the CPU; then, on the device, each draw from them."""
    yield stream(seed, "tasks/train", number)
    for draw in itertools.count():
        yield stream(seed, "draw", number, draw, device=device)


def iterate(
    learner: Learner,
    family: Family,
    outer: Outer,
    number_of_tasks: int,
    params: Params,
    state: dict[str, Any],
    progress: float,
    streams: Iterator[Generator],
) -> Outcome:
    """Take one outer step on a meta-batch of tasks; see ``Iterate``."""
    began = time.perf_counter()
    tasks = family.sample(number_of_tasks, "train", next(streams))
    experience, scores = gather(learner, params, tasks, streams, progress)
    seconds = time.perf_counter() - began
    return Outcome(outer.update(learner, params, state, experience), scores, seconds, _steps(experience))


def _steps(experience: Experience) -> Tensor | None:
    rollouts = [batch for batch in (*experience.supports, experience.query) if isinstance(batch, Rollout)]
    return sum_of(rollout.mask.sum() for rollout in rollouts) if rollouts else None
