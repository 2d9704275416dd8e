"""Metric learning: one network embeds all items, and query items are compared with remembered support items."""

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
from metarl.types import Batch, Examples, Experience, Learner, Params, Shared, Spec, pooled, valid


class Seen(NamedTuple):
    """The state of a metric learner: all support items so far."""

    params: Shared
    supports: tuple[Examples, ...]  # different batches; their items are pooled


class Embedded(NamedTuple):
    """Embedded support and query items of each task."""

    support: Tensor  # [task, item, width]
    classes: Tensor  # [task, item, way] one-hot; zeros for padding
    query: Tensor  # [task, item, width]
    padding: Tensor | None = None  # [task, item] bool: which support items are none; None: all are some


@dataclass(frozen=True)
class Metric:
    """The functions of a metric learner: start empty, remember support items, compare query items with them."""

    spec: Spec
    model: Model
    """Embeds an item."""
    width: int
    """Width of the embedding."""
    classify: Callable[[Params, Embedded], Tensor]
    """``(params, embedded) -> log-probabilities [task, item, way]``."""

    def learner(self, init: Callable[[Generator], Params]) -> Learner:
        """Return a learner with one adaptation. Adapting to the same support set again changes nothing."""
        functions = init, self.begin, self.adapt, self.predict, self.meta_loss
        return fed(Learner(self.spec, 1, *functions, batch_norm=self.model.batch_norm), honours_masks=True)

    def begin(self, params: Params, descriptors: Tensor) -> Seen:
        """Return the state without any support items."""
        return Seen(Shared(params), ())

    def adapt(self, state: Seen, batch: Batch) -> Seen:
        """Remember a batch, unless it is remembered already.

        Raises:
            ValueError: the batch does not hold labelled items.
        """
        examples = _checked(batch)
        if any(_same(examples, support) for support in state.supports):
            return state
        return Seen(state.params, (*state.supports, examples))

    def predict(self, state: Seen, inputs: Tensor) -> tuple[Tensor, Seen]:
        """Return log-probabilities of the classes, or equal scores for all before any support item was seen."""
        lead = inputs.shape[: inputs.ndim - len(self.spec.input_shape)]
        if not state.supports:
            return inputs.new_zeros(*lead, self.spec.output_size), state
        items = inputs.reshape(lead[0], -1, *self.spec.input_shape)
        outputs = self.classify(state.params, self.embed(state, items))
        return outputs.reshape(*lead, self.spec.output_size), state

    def embed(self, state: Seen, inputs: Tensor) -> Embedded:
        """Embed the support items together with ``inputs`` ``[task, item, *input_shape]``."""
        support = pooled(state.supports)
        classes = functional.one_hot(support.targets, self.spec.output_size).to(inputs.dtype)
        padding = None
        if support.mask is not None:
            classes, padding = classes * support.mask.to(inputs.dtype).unsqueeze(-1), support.mask == 0
        known = support.targets.shape[1]
        embedded = embeddings(self.model, state.params, torch.cat([support.inputs, inputs], dim=1), known)
        return Embedded(embedded[:, :known], classes, embedded[:, known:], padding)

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropies of the query items, in nats, and metrics."""
        embedded, query = self.embed_experience(params, experience)
        outputs = self.classify(params, embedded)
        return objectives.query_losses(self.spec, outputs, query, step=1)

    def embed_experience(self, params: Params, experience: Experience) -> tuple[Embedded, Examples]:
        """Embed the support and the query items of an experience. Also return the query items."""
        state, query = self.begin(params, experience.descriptors), _checked(experience.query)
        for support in experience.supports:
            state = self.adapt(state, support)
        return self.embed(state, query.inputs), query


def embeddings(model: Model, params: Params, items: Tensor, known: int) -> Tensor:
    """Embed items ``[task, item, *input_shape]`` as ``[task, item, width]``; the first ``known`` are support items.

    Transductive batch norm takes its statistics from all items of a task, as prototypical networks do in training;
    inductive batch norm takes them from the support items only.
    """
    if model.layout is not None:  # a plain MLP embeds rows independently: use one matrix product for all tasks
        shared = {name: value.unsqueeze(0) for name, value in params.items()}
        return model.apply(shared, items.flatten(0, 1).unsqueeze(0)).reshape(*items.shape[:2], -1)
    return model.apply(stack(params, len(items)), items, known if model.batch_norm == "inductive" else None)


def build(
    title: str, network: Network, embedding: int | None, spec: Spec, classify: Callable[[Params, Embedded], Tensor]
) -> Metric:
    """Build a metric learner. Raises ValueError for a spec without classes, or if the network does not fit."""
    if spec.kind != "classification":
        nearest = "rl2 or maml" if spec.control else "snail, which also compares items, or maml"
        nearest = "multitask, which takes each task's own loss" if spec.targets else nearest
        served = f"{title} tells classes apart: it serves classification, not {spec.kind}"
        raise ValueError(f"{served}; for that, use {nearest}")
    if embedding is None:
        return Metric(spec, *network.build_features(spec), classify)
    embeds = Spec(spec.input_shape, embedding, "regression", ragged=spec.ragged)
    return Metric(spec, network.build(embeds), embedding, classify)


def check_width(embedding: int | None) -> None:
    """Raise ValueError for a width below 1."""
    if embedding is not None and embedding < 1:
        raise ValueError(f"embedding={embedding}: expected a width of at least 1")


def cosines(items: Tensor, others: Tensor) -> Tensor:
    """Return ``[task, item, other]``: cosines of all pairs of ``[task, item, width]``, ``[task, other, width]``."""
    return functional.normalize(items, dim=-1) @ functional.normalize(others, dim=-1).mT


def log_probabilities(scores: Tensor, classes: Tensor) -> Tensor:
    """Return the log-softmax of ``scores`` ``[task, item, way]`` over the classes that have support items.

    ``classes`` ``[task, item, way]`` are the support items' one-hot classes. A class without support items gets the log
    of the smallest positive number instead of -inf, so that the loss stays finite.
    """
    absent = classes.sum(1, keepdim=True) == 0
    log_softmax = functional.log_softmax(scores.masked_fill(absent, -torch.inf), dim=-1)
    return log_softmax.masked_fill(absent, math.log(torch.finfo(scores.dtype).tiny))


def _checked(batch: Batch) -> Examples:
    if not isinstance(batch, Examples):
        raise ValueError(f"metric learners need labelled examples, but got a {type(batch).__name__}")
    if batch.targets.is_floating_point() or batch.targets.shape != batch.inputs.shape[:2]:
        given = f"{batch.targets.dtype} of shape {tuple(batch.targets.shape)}"
        raise ValueError(
            f"targets are {given}: expected the class of each item, integers {tuple(batch.inputs.shape[:2])}"
        )
    return batch


def _same(one: Examples, other: Examples) -> bool:
    return one is other or all(
        torch.equal(ours, theirs)
        for ours, theirs in ((one.targets, other.targets), (one.inputs, other.inputs), (valid(one), valid(other)))
    )
