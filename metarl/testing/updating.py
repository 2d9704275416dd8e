"""An outer update under test: a learner that has something to learn, and copies of all inputs."""

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
"""Algorithms with unusual learners: adaptation without derivatives, memory (of two kinds), no adaptation steps."""


class Inputs(NamedTuple):
    """The inputs of an update, apart from the learner."""

    params: Params
    state: dict[str, Any]
    experience: Experience

    def copied(self) -> "Inputs":
        """Return a copy of all tensors and dictionaries."""
        given = self.experience
        *supports, query = (each_tensor(Tensor.clone, batch) for batch in (*given.supports, given.query))
        experience = dataclasses.replace(
            given, descriptors=given.descriptors.clone(), supports=tuple(supports), query=query
        )
        return Inputs(_copied(self.params), _copied(self.state), experience)

    def at(self, progress: float) -> "Inputs":
        """Return the inputs at another fraction of the training."""
        return self._replace(experience=dataclasses.replace(self.experience, progress=progress))

    def after(self, update: Update) -> "Inputs":
        """Return the inputs of the next update, with the same experience."""
        return self._replace(params=update.params, state=update.state)

    def poisoned(self, poison: float) -> "Inputs":
        """Return the inputs with all data that a learner may use replaced by one value, such as nan."""
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
        """The learner whose meta-parameters are updated."""
        return self.learning.learner

    @property
    def inputs(self) -> Inputs:
        """The inputs of a first update. Each read returns a copy, so that one check cannot spoil another."""
        return self._inputs.copied()

    @cached_property
    def _inputs(self) -> Inputs:
        return self.gathered(torch.device("cpu"))

    def gathered(self, device: torch.device) -> Inputs:
        """Return the inputs of a first update on a device."""
        params = {name: value.to(device) for name, value in self.learning.params.items()}
        return Inputs(params, self.outer.init(_copied(params)), self.learning.gathered(device))

    def update(self, inputs: Inputs) -> Update:
        """Take one step, on the device of the parameters."""
        device = next(iter(inputs.params.values())).device
        return self.outer.update(self.learning.on(device), *inputs)

    def afresh(self, **options: Any) -> "OuterSubject":
        """Return the subject with other options and new experience, in torch's current default dtype."""
        outer: Any = self.outer
        changed = dataclasses.replace(outer, **options) if options else outer
        return OuterSubject(changed, dataclasses.replace(self.learning))

    def learners(self) -> Iterator[Learner]:
        """Yield the learner, and others for the same family that the outer update may refuse."""
        yield self.learner
        for algorithm in OTHERS:
            try:
                yield algorithm.build(self.learner.spec)
            except ValueError:
                continue


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two dictionaries have the same names in the same order, and equal tensors and numbers."""
    return list(one) == list(other) and all(_equal(value, other[name]) for name, value in one.items())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def all_finite(state: Mapping[str, Any]) -> bool:
    """Return whether all tensors and numbers of a state are finite."""
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    numbers = [value for value in state.values() if isinstance(value, float)]
    return all(values.isfinite().all() for values in tensors) and all(map(math.isfinite, numbers))
