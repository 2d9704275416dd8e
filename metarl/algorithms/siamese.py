"""Siamese networks (Koch et al., 2015, "Siamese neural networks for one-shot image recognition")."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl import objectives
from metarl.algorithms.shared import metric
from metarl.algorithms.shared.metric import Embedded, Metric
from metarl.networks import Network, NetworkOptions
from metarl.types import Experience, Learner, Params, Spec, valid

WEIGHT, BIAS = "pair:weight", "pair:bias"
"""Names of the parameters that weight the distance of two items."""


@dataclass(frozen=True)
class Siamese:
    """Siamese networks: learn to tell if two items share a class, and classify an item by its best match."""

    embedding: int = 64
    """Width of the embedding. A sigmoid is applied to its entries."""
    network: NetworkOptions = Network()
    """The embedding network."""

    def __post_init__(self) -> None:
        metric.check_width(self.embedding)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a classification spec. Raises ValueError for other specs, and for an unfit network."""
        fold = metric.build("siamese", self.network, self.embedding, spec, _classify)

        def init(generator: Generator) -> Params:
            params = fold.model.init(generator)
            # Negative weights: a large distance means different classes from the start.
            return params | {WEIGHT: -torch.rand(self.embedding, generator=generator), BIAS: torch.zeros(())}

        def meta_loss(params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
            return _verification_loss(fold, params, experience)

        return fold.learner(init)._replace(meta_loss=meta_loss)


def _verification_loss(fold: Metric, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the binary cross-entropy of each task, in nats, over all pairs of a query and a support item, and metrics.

    Pairs of the same class together have the same weight as all other pairs. This equals drawing as many pairs of each
    kind, as in the paper.
    """
    embedded, query = fold.embed_experience(params, experience)
    logits = _similarities(params, embedded)
    same = functional.one_hot(query.targets, fold.spec.output_size).to(logits.dtype) @ embedded.classes.mT
    pairs = valid(query).to(logits.dtype).unsqueeze(-1) * embedded.classes.sum(-1).unsqueeze(1)
    same = same * pairs
    weights = (_shares(same) + _shares(pairs - same)) / 2
    losses = functional.binary_cross_entropy_with_logits(logits, same, weights, reduction="none").sum((1, 2))
    with torch.no_grad():
        outputs = _nearest(logits, embedded)
    return losses, objectives.step_scores(fold.spec.kind, query, outputs, step=1)


def _shares(pairs: Tensor) -> Tensor:
    return pairs / pairs.sum((1, 2), keepdim=True).clamp_min(1)


def _similarities(params: Params, embedded: Embedded) -> Tensor:
    """Return logits that two items share a class, ``[task, query, support]``: a weighted L1 distance."""
    query, support = embedded.query.sigmoid(), embedded.support.sigmoid()
    return (query.unsqueeze(2) - support.unsqueeze(1)).abs() @ params[WEIGHT] + params[BIAS]


def _classify(params: Params, embedded: Embedded) -> Tensor:
    return _nearest(_similarities(params, embedded), embedded)


def _nearest(similarities: Tensor, embedded: Embedded) -> Tensor:
    """Return log-probabilities of classes: a softmax over each class's most similar support item."""
    if embedded.padding is not None:
        similarities = similarities.masked_fill(embedded.padding.unsqueeze(1), -torch.inf)
    positions = embedded.classes.argmax(-1).unsqueeze(1).expand_as(similarities)
    lowest = similarities.new_full((*similarities.shape[:2], embedded.classes.shape[-1]), -torch.inf)
    return metric.log_probabilities(lowest.scatter_reduce(2, positions, similarities, "amax"), embedded.classes)
