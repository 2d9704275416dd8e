"""An outer update as the checks look at it: a learner that has something to learn, and copies of all that goes in."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl.algorithms import MANN, RL2, ProtoNet, Reptile
from metarl.testing.algorithms import AlgorithmSubject
from metarl.testing.batches import tensors
from metarl.types import Batch, Examples, Experience, Learner, Outer, Params, Update, each_tensor

OTHERS = (Reptile(), RL2(), MANN(), ProtoNet())
"""Algorithms whose learners are unlike most: running averages, adaptation without derivatives, memory, none of it."""


class Inputs(NamedTuple):
    """What an update is made from, besides the learner."""

    params: Params
    state: dict[str, Any]
    experience: Experience

    def copied(self) -> "Inputs":
        """Return a copy, into which may be written."""
        given = self.experience
        *supports, query = (each_tensor(Tensor.clone, batch) for batch in (*given.supports, given.query))
        experience = dataclasses.replace(
            given, descriptors=given.descriptors.clone(), supports=tuple(supports), query=query
        )
        return Inputs(_copied(self.params), _copied(self.state), experience)

    def at(self, progress: float) -> "Inputs":
        """Return them at another share of the training."""
        return self._replace(experience=dataclasses.replace(self.experience, progress=progress))

    def after(self, update: Update) -> "Inputs":
        """Return those of the next update, which learns from the same experience."""
        return self._replace(params=update.params, state=update.state)

    def poisoned(self, poison: float) -> "Inputs":
        """Return them with data from which nothing can be learned, whichever of them a learner looks at."""
        supports = tuple(_filled(batch, poison) for batch in self.experience.supports)
        query = _filled(self.experience.query, poison)
        return self._replace(experience=dataclasses.replace(self.experience, supports=supports, query=query))

    @property
    def data(self) -> list[Tensor]:
        """The tensors of the experience."""
        batches = (*self.experience.supports, self.experience.query)
        return [self.experience.descriptors, *(values for batch in batches for values in tensors(batch))]


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}


def _filled(batch: Batch, poison: float) -> Batch:
    if isinstance(batch, Examples):
        return dataclasses.replace(batch, inputs=torch.full_like(batch.inputs, poison))
    poisoned = torch.full_like(batch.rewards, poison)
    return dataclasses.replace(batch, rewards=poisoned, advantages=poisoned)


@dataclasses.dataclass(frozen=True)
class OuterSubject:
    """An outer update, and a learner with experience."""

    outer: Outer
    learning: AlgorithmSubject

    @property
    def learner(self) -> Learner:
        """The learner whose meta-parameters are moved."""
        return self.learning.learner

    @property
    def inputs(self) -> Inputs:
        """Those of a first update: each time a copy, so that whoever writes into one spoils no other check."""
        return self._inputs.copied()

    @cached_property
    def _inputs(self) -> Inputs:
        return self.gathered(torch.device("cpu"))

    def gathered(self, device: torch.device) -> Inputs:
        """Return those of a first update on a device."""
        params = {name: value.to(device) for name, value in self.learning.params.items()}
        return Inputs(params, self.outer.init(_copied(params)), self.learning.gathered(device))

    def update(self, inputs: Inputs) -> Update:
        """Take one step."""
        return self.outer.update(self.learner, *inputs)

    def afresh(self, **options: Any) -> "OuterSubject":
        """Return it with other options, and with experience gathered anew, in what is torch's default dtype then."""
        outer: Any = self.outer
        changed = dataclasses.replace(outer, **options) if options else outer
        return OuterSubject(changed, dataclasses.replace(self.learning))

    def learners(self) -> Iterator[Learner]:
        """The learner, and others for the same family, that one may not be able to serve."""
        yield self.learner
        for algorithm in OTHERS:
            try:
                yield algorithm.build(self.learner.spec)
            except ValueError:
                continue


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two dictionaries hold the same tensors and numbers by the same names, in the same order."""
    return list(one) == list(other) and all(_equal(value, other[name]) for name, value in one.items())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def all_finite(state: Mapping[str, Any]) -> bool:
    """Return whether no tensor and no number of a state is nan or infinite."""
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    numbers = [value for value in state.values() if isinstance(value, float)]
    return all(values.isfinite().all() for values in tensors) and all(map(math.isfinite, numbers))
