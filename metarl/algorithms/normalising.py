"""Normalised observations: a learner reads them minus their running mean, divided by their standard deviation.

The statistics are buffers of the learner. So they stay as they are within an iteration (the policy that is learned from
is the one that acted), and a checkpoint, an evaluation and an exported policy have them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from metarl.speed import ranks
from metarl.types import Batch, Buffers, Experience, Learner, Memory, Params, Rollout, State

COUNT, MEAN, SQUARES = STATISTICS = "observations.count", "observations.mean", "observations.squares"
"""Names of the buffers: steps counted, their mean, and the sum of their squared distances from it. All are float64."""
SMALLEST = 1e-4
"""A number of an observation whose standard deviation is at most this is centred only: noise is not magnified."""


class Normalised(NamedTuple):
    """The state of a learner that reads normalised observations."""

    learned: State
    mean: Tensor  # [task, *input_shape]
    scale: Tensor  # [task, *input_shape] what observations are divided by

    def reads(self, observations: Tensor) -> Tensor:
        """Return observations ``[task, ..., *input_shape]`` as the network reads them."""
        lead = [1] * (observations.ndim - self.mean.ndim)
        mean, scale = (value.reshape(len(value), *lead, *value.shape[1:]) for value in (self.mean, self.scale))
        return (observations - mean) / scale


def normalise_observations(learner: Learner) -> Learner:
    """Return a learner for control that reads normalised observations, whatever its networks are.

    Pictures in Dict and Tuple observations stay as they are, in [0, 1]: a pixel that is hardly ever lit would glare.
    Means and variances are those of all steps in training so far, of support and query episodes, without those after
    an episode's end. In the first iteration there are none: observations are read as they are. The learner's own
    functions get normalised observations, also to estimate advantages.

    Raises:
        ValueError: the learner is for labelled examples, or normalises its observations already.
    """
    if not learner.spec.control:
        raise ValueError("normalise_observations is for control, and counts steps; scale a family's inputs instead")
    reader, own = _Reader(learner), learner.buffers
    if own is not None and COUNT in own.init():
        raise ValueError(f"{COUNT} is counted twice: this learner normalises its observations already")
    memory = learner.memory and Memory(reader.unroll, learner.memory.observe and reader.observe)
    return learner._replace(
        begin=reader.begin, adapt=reader.adapt, predict=reader.predict, meta_loss=reader.meta_loss,
        estimate=learner.estimate and reader.estimate, memory=memory,
        buffers=Buffers(reader.first, reader.move, own and own.held, by_sums=own is None or own.by_sums),
    )  # fmt: skip


@dataclass(frozen=True)
class _Reader:
    """The functions of the learner, around those of one that reads observations as they come."""

    learner: Learner

    def first(self) -> Params:
        shape = self.learner.spec.input_shape
        zeros = {name: torch.zeros(() if name == COUNT else shape, dtype=torch.float64) for name in STATISTICS}
        return zeros if self.learner.buffers is None else self.learner.buffers.init() | zeros

    def move(self, buffers: Params, experience: Experience) -> Params:
        """Count the steps of an iteration, over all ranks."""
        parts, tasks = [_steps(part) for part in ranks.terms(experience)], len(experience.descriptors)
        seen = ((weights.sum(), (weights * observations).sum(0)) for observations, weights in parts)
        (count, total), _ = ranks.sums(seen, tasks, "the observations' means")
        mean = total / count
        apart = ((weights * (observations - mean).square()).sum(0) for observations, weights in parts)
        (squares,), _ = ranks.sums(((one,) for one in apart), tasks, "the observations' squares")
        return self.learner_moved(buffers, experience) | _merged(buffers, count, mean, squares)

    def learner_moved(self, buffers: Params, experience: Experience) -> Params:
        """Return the learner's own buffers after an iteration."""
        if self.learner.buffers is None:
            return {}
        own = {name: value for name, value in buffers.items() if name not in STATISTICS}
        return self.learner.buffers.move(own, self.normalised(buffers, experience))

    def begin(self, params: Params, descriptors: Tensor) -> Normalised:
        rest, state = self.statistics(params, descriptors)
        return state._replace(learned=self.learner.begin(rest, descriptors))

    def statistics(self, params: Params, descriptors: Tensor) -> tuple[Params, Normalised]:
        """Return the parameters of the learner itself, and a state without what it learned."""
        if not params.keys() >= set(STATISTICS):
            raise ValueError(
                f"this learner normalises observations by buffers ({', '.join(STATISTICS)}) that are not among the "
                "parameters: use metarl.types.holding(learner, buffers)"
            )
        rest = {name: value for name, value in params.items() if name not in STATISTICS}
        mean, scale = mean_and_scale(params)
        for part in self.learner.spec.observations:
            if part.channels:
                place = slice(part.offset, part.offset + part.size)
                mean, scale = (_filled(value, place, number) for value, number in ((mean, 0.0), (scale, 1.0)))
        tasks, dtype = len(descriptors), torch.get_default_dtype()
        each = (value.to(descriptors.device, dtype).expand(tasks, *value.shape) for value in (mean, scale))
        return rest, Normalised(None, *each)

    def adapt(self, state: Normalised, batch: Batch) -> Normalised:
        return state._replace(learned=self.learner.adapt(state.learned, _read(state, batch)))

    def predict(self, state: Normalised, inputs: Tensor) -> tuple[Tensor, Normalised]:
        outputs, learned = self.learner.predict(state.learned, state.reads(inputs))
        return outputs, state._replace(learned=learned)

    def estimate(self, state: Normalised, rollouts: Sequence[Rollout]) -> list[Rollout]:
        assert self.learner.estimate is not None
        judged = self.learner.estimate(state.learned, [_read_rollout(state, rollout) for rollout in rollouts])
        return [
            replace(one, observations=rollout.observations, last_observations=rollout.last_observations)
            for rollout, one in zip(rollouts, judged, strict=True)
        ]

    def unroll(self, state: Normalised, batch: Batch) -> tuple[Tensor, Normalised]:
        assert self.learner.memory is not None
        outputs, learned = self.learner.memory.unroll(state.learned, _read(state, batch))
        return outputs, state._replace(learned=learned)

    def observe(self, state: Normalised, *outcome: Tensor) -> Normalised:
        assert self.learner.memory is not None and self.learner.memory.observe is not None
        return state._replace(learned=self.learner.memory.observe(state.learned, *outcome))

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        rest, _ = self.statistics(params, experience.descriptors)
        return self.learner.meta_loss(rest, self.normalised(params, experience))

    def normalised(self, params: Params, experience: Experience) -> Experience:
        """Return an experience as the learner itself reads it."""
        _, state = self.statistics(params, experience.descriptors)
        *supports, query = (_read(state, batch) for batch in (*experience.supports, experience.query))
        return replace(experience, supports=tuple(supports), query=query)


def mean_and_scale(buffers: Params) -> tuple[Tensor, Tensor]:
    """Return the mean of observations and what they are divided by, ``[*input_shape]`` in float64."""
    deviation = (buffers[SQUARES] / buffers[COUNT].clamp_min(1)).sqrt()
    return buffers[MEAN], torch.where(deviation > SMALLEST, deviation, 1.0)


def _filled(values: Tensor, place: slice, number: float) -> Tensor:
    """Return values with a number in some places; buffers stay as they are."""
    filled = values.clone()
    filled[place] = number
    return filled


def _steps(experience: Experience) -> tuple[Tensor, Tensor]:
    """Return the observations of all steps, ``[step, *input_shape]`` in float64, and their weights: 0 after an end."""
    batches = [batch for batch in (*experience.supports, experience.query) if isinstance(batch, Rollout)]
    observations, weights = (
        torch.cat([values.flatten(0, 2).double() for values in parts])
        for parts in ([batch.observations for batch in batches], [batch.mask for batch in batches])
    )
    return observations, weights.reshape(-1, *[1] * (observations.ndim - 1))


def _merged(buffers: Params, count: Tensor, mean: Tensor, squares: Tensor) -> Params:
    """Return the statistics with more steps (Chan, Golub and LeVeque, 1983, eq. 2.1, for the mean and the squares)."""
    total, apart = buffers[COUNT] + count, mean - buffers[MEAN]
    return {
        COUNT: total,
        MEAN: buffers[MEAN] + apart * count / total,
        SQUARES: buffers[SQUARES] + squares + apart.square() * buffers[COUNT] * count / total,
    }


def _read(state: Normalised, batch: Batch) -> Batch:
    return _read_rollout(state, batch) if isinstance(batch, Rollout) else batch


def _read_rollout(state: Normalised, rollout: Rollout) -> Rollout:
    observations, last = state.reads(rollout.observations), state.reads(rollout.last_observations)
    return replace(rollout, observations=observations, last_observations=last)
