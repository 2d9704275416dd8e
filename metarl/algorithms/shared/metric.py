"""What metric learners share: one network embeds the items of all tasks, and support items are remembered."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl import objectives
from metarl.algorithms.shared.feeding import fed
from metarl.networks import Model, Network, stack
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec


class Seen(NamedTuple):
    """What a metric learner knows of each task: the support items that it was shown."""

    params: Params  # [*shape], shared by all tasks
    supports: tuple[Examples, ...]  # different batches, whose items are pooled


class Embedded(NamedTuple):
    """Embedded items of each task: those to tell apart, and those to tell them apart by."""

    support: Tensor  # [task, item, width]
    classes: Tensor  # [task, item, way] one-hot
    query: Tensor  # [task, item, width]


@dataclass(frozen=True)
class Metric:
    """The fold of a metric learner: begin with nothing, remember support items, compare query items with them."""

    spec: Spec
    model: Model
    """Embeds an item."""
    width: int
    """Width of the embedding."""
    classify: Callable[[Params, Embedded], Tensor]
    """``(params, embedded) -> log-probabilities [task, item, way]``."""

    def learner(self, init: Callable[[Generator], Params]) -> Learner:
        """Return the learner that adapts once: adapting to the same support set again changes nothing."""
        functions = init, self.begin, self.adapt, self.predict, self.meta_loss
        return fed(Learner(self.spec, 1, *functions, batch_norm=self.model.batch_norm))

    def begin(self, params: Params, descriptors: Tensor) -> Seen:
        """Know nothing of any task."""
        return Seen(params, ())

    def adapt(self, state: Seen, batch: Batch) -> Seen:
        """Remember further items, unless they are a batch that is remembered already.

        Raises:
            ValueError: the batch is not of labelled items.
        """
        examples = _checked(batch)
        if any(_same(examples, support) for support in state.supports):
            return state
        return Seen(state.params, (*state.supports, examples))

    def predict(self, state: Seen, inputs: Tensor) -> tuple[Tensor, Seen]:
        """Log-probabilities of the classes; every class has the same as long as nothing was seen."""
        lead = inputs.shape[: inputs.ndim - len(self.spec.input_shape)]
        if not state.supports:
            return inputs.new_zeros(*lead, self.spec.output_size), state
        items = inputs.reshape(lead[0], -1, *self.spec.input_shape)
        outputs = self.classify(state.params, self.embed(state, items))
        return outputs.reshape(*lead, self.spec.output_size), state

    def embed(self, state: Seen, inputs: Tensor) -> Embedded:
        """Embed what was seen, and with it ``inputs`` ``[task, item, *input_shape]``."""
        support, targets = (torch.cat(parts, dim=1) for parts in zip(*state.supports, strict=True))
        classes = functional.one_hot(targets, self.spec.output_size).to(inputs.dtype)
        known = support.shape[1]
        embedded = embeddings(self.model, state.params, torch.cat([support, inputs], dim=1), known)
        return Embedded(embedded[:, :known], classes, embedded[:, known:])

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of the query items in nats."""
        embedded, query = self.embed_experience(params, experience)
        outputs = self.classify(params, embedded)
        scores = objectives.mean_scores(self.spec.kind, query, outputs, step=1)
        return objectives.loss(self.spec.kind, outputs, query).mean(), scores

    def embed_experience(self, params: Params, experience: Experience) -> tuple[Embedded, Examples]:
        """Embed the support and the query items of an experience; also return the query items."""
        state, query = self.begin(params, experience.descriptors), _checked(experience.query)
        for support in experience.supports:
            state = self.adapt(state, support)
        return self.embed(state, query.inputs), query


def embeddings(model: Model, params: Params, items: Tensor, known: int) -> Tensor:
    """Embed items ``[task, item, *input_shape]``, the first ``known`` of them support: ``[task, item, width]``.

    Transductive batch norm takes its statistics from all items of a task, as prototypical networks do in training;
    inductive from the support items.
    """
    if model.layout is not None:  # rows are embedded one by one: one matrix product for those of all tasks
        shared = {name: value.unsqueeze(0) for name, value in params.items()}
        return model.apply(shared, items.flatten(0, 1).unsqueeze(0)).reshape(*items.shape[:2], -1)
    return model.apply(stack(params, len(items)), items, known if model.batch_norm == "inductive" else None)


def build(
    title: str, network: Network, embedding: int | None, spec: Spec, classify: Callable[[Params, Embedded], Tensor]
) -> Metric:
    """Build the network that embeds. Raises ValueError where it does not fit, and for a spec without classes."""
    if spec.kind != "classification":
        raise ValueError(f"{title} tells classes apart: it serves classification, not {spec.kind}")
    if embedding is None:
        return Metric(spec, *network.build_features(spec), classify)
    return Metric(spec, network.build(Spec(spec.input_shape, embedding, "regression")), embedding, classify)


def check_width(embedding: int | None) -> None:
    """Raise ValueError for an embedding without entries."""
    if embedding is not None and embedding < 1:
        raise ValueError(f"embedding={embedding}: expected a width of at least 1")


def cosines(items: Tensor, others: Tensor) -> Tensor:
    """Cosine of every pair: ``[task, item, width]`` and ``[task, other, width]`` to ``[task, item, other]``."""
    return functional.normalize(items, dim=-1) @ functional.normalize(others, dim=-1).mT


def log_probabilities(scores: Tensor, classes: Tensor) -> Tensor:
    """Softmax of ``scores`` ``[task, item, way]`` over the classes that ``classes`` ``[task, item, way]`` show.

    A class without any item is all but impossible: its log-probability is that of the smallest number, so that the
    loss stays finite.
    """
    absent = classes.sum(1, keepdim=True) == 0
    told = functional.log_softmax(scores.masked_fill(absent, -torch.inf), dim=-1)
    return told.masked_fill(absent, math.log(torch.finfo(scores.dtype).tiny))


def _checked(batch: Batch) -> Examples:
    if not isinstance(batch, Examples):
        raise ValueError(f"metric learners compare labelled examples, and were given a {type(batch).__name__}")
    if batch.targets.is_floating_point() or batch.targets.shape != batch.inputs.shape[:2]:
        told = f"{batch.targets.dtype} of shape {tuple(batch.targets.shape)}"
        raise ValueError(
            f"targets are {told}: expected the class of each item, integers {tuple(batch.inputs.shape[:2])}"
        )
    return batch


def _same(one: Examples, other: Examples) -> bool:
    return one is other or (torch.equal(one.targets, other.targets) and torch.equal(one.inputs, other.inputs))
