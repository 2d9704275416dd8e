"""Siamese networks (Koch et al., 2015, "Siamese neural networks for one-shot image recognition")."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl import objectives
from metarl.algorithms.shared import metric
from metarl.algorithms.shared.metric import Embedded, Metric
from metarl.networks import Network, NetworkOptions
from metarl.types import Experience, Learner, Params, Spec

WEIGHT, BIAS = "pair:weight", "pair:bias"
"""Names of the parameters that weigh the distance of two items."""


@dataclass(frozen=True)
class Siamese:
    """Siamese networks: learn whether two items are of one class; an item is of its most similar support item's."""

    embedding: int = 64
    """Width of the embedding, whose entries pass through a sigmoid."""
    network: NetworkOptions = Network()
    """The network that embeds."""

    def __post_init__(self) -> None:
        metric.check_width(self.embedding)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec. Raises ValueError unless it asks for classes and the network fits."""
        fold = metric.build("siamese", self.network, self.embedding, spec, _classify)

        def init(generator: Generator) -> Params:
            params = fold.model.init(generator)
            # Items that are far apart are of different classes, to begin with.
            return params | {WEIGHT: -torch.rand(self.embedding, generator=generator), BIAS: torch.zeros(())}

        def meta_loss(params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
            return _verification_loss(fold, params, experience)

        return fold.learner(init)._replace(meta_loss=meta_loss)


def _verification_loss(fold: Metric, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean binary cross-entropy, in nats, of all pairs of a query and a support item.

    The pairs of one class weigh as much as all others together: as if as many of both were drawn, as in the paper.
    """
    embedded, query = fold.embed_experience(params, experience)
    logits = _similarities(params, embedded)
    same = functional.one_hot(query.targets, fold.spec.output_size).to(logits.dtype) @ embedded.classes.mT
    weights = (_shares(same) + _shares(1 - same)) / 2
    losses = functional.binary_cross_entropy_with_logits(logits, same, weights, reduction="none").sum((1, 2))
    with torch.no_grad():
        outputs = _nearest(logits, embedded)
    return losses.mean(), objectives.mean_scores(fold.spec.kind, query, outputs, step=1)


def _shares(pairs: Tensor) -> Tensor:
    return pairs / pairs.sum((1, 2), keepdim=True).clamp_min(1)


def _similarities(params: Params, embedded: Embedded) -> Tensor:
    """Logit of the probability that two items are of one class, ``[task, query, support]``: a weighted L1 distance."""
    query, support = embedded.query.sigmoid(), embedded.support.sigmoid()
    return (query.unsqueeze(2) - support.unsqueeze(1)).abs() @ params[WEIGHT] + params[BIAS]


def _classify(params: Params, embedded: Embedded) -> Tensor:
    return _nearest(_similarities(params, embedded), embedded)


def _nearest(similarities: Tensor, embedded: Embedded) -> Tensor:
    """Softmax over the classes' most similar items."""
    positions = embedded.classes.argmax(-1).unsqueeze(1).expand_as(similarities)
    lowest = similarities.new_full((*similarities.shape[:2], embedded.classes.shape[-1]), -torch.inf)
    return metric.log_probabilities(lowest.scatter_reduce(2, positions, similarities, "amax"), embedded.classes)
