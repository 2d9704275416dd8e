"""Prototypical networks (Snell et al., 2017, arXiv 1703.05175)."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from metarl.algorithms.shared import metric
from metarl.algorithms.shared.metric import Embedded
from metarl.networks import Network, NetworkOptions
from metarl.types import Learner, Params, Spec

Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class ProtoNet:
    """Prototypical networks: classify an item by the nearest class mean of embeddings."""

    distance: Distance = "euclidean"
    """Distance to class means: squared Euclidean distance, or cosine similarity."""
    embedding: int | None = None
    """Width of the embedding. By default, the network's last layer (the head) is left out, and its features are the
    embedding."""
    network: NetworkOptions = Network()
    """The embedding network; the paper's is conv4 with --algorithm.downsample pool."""

    def __post_init__(self) -> None:
        if self.distance not in get_args(Distance):
            raise ValueError(f"distance={self.distance!r}: expected one of {', '.join(get_args(Distance))}")
        metric.check_width(self.embedding)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a classification spec. Raises ValueError for other specs, and for an unfit network."""
        fold = metric.build("protonet", self.network, self.embedding, spec, self._classify)
        return fold.learner(fold.model.init)

    def _classify(self, params: Params, embedded: Embedded) -> Tensor:
        """Return log-probabilities: a softmax over negative distances to class means (the paper's eq. 1 and 2)."""
        counts = embedded.classes.sum(1).unsqueeze(-1)
        prototypes = embedded.classes.mT @ embedded.support / counts.clamp_min(1)
        nearness = metric.cosines if self.distance == "cosine" else _minus_squared_distances
        return metric.log_probabilities(nearness(embedded.query, prototypes), embedded.classes)


def _minus_squared_distances(items: Tensor, others: Tensor) -> Tensor:
    # -|x - y|^2 = 2 x.y - |x|^2 - |y|^2: one matrix product, without a [task, item, other, width] tensor.
    lengths = items.square().sum(-1).unsqueeze(-1) + others.square().sum(-1).unsqueeze(-2)
    return 2 * items @ others.mT - lengths
