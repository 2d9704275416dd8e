"""Matching networks (Vinyals et al., 2016, arXiv 1606.04080), with and without full-context embeddings."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl.algorithms.shared import metric, recurrent
from metarl.algorithms.shared.metric import Embedded
from metarl.networks import Network, NetworkOptions
from metarl.types import Learner, Params, Spec

FORWARD, BACKWARD, ATTENDING = "lstm:forward", "lstm:backward", "lstm:attending"
"""Prefixes of the parameters of full-context embeddings."""


@dataclass(frozen=True)
class Matching:
    """Matching networks: an item's class is voted by the support items, each as far as it attends to it."""

    full_context: bool = False
    """Embed support items in the light of each other, by a bidirectional LSTM that reads them in their order, and
    query items in the light of the support set, by an LSTM that attends to it."""
    reads: int = 5
    """How often the latter LSTM reads the support set (the paper's K)."""
    embedding: int | None = None
    """Width of the embedding; by default that of the network's features, whose last layer, the head, is left out."""
    network: NetworkOptions = Network()
    """The network that embeds; the paper's is conv4 with --algorithm.downsample pool."""

    def __post_init__(self) -> None:
        if self.reads < 1:
            raise ValueError(f"reads={self.reads}: the support set is read at least once")
        metric.check_width(self.embedding)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec. Raises ValueError unless it asks for classes and the network fits."""
        fold = metric.build("matching", self.network, self.embedding, spec, self._classify)

        def init(generator: Generator) -> Params:
            params = fold.model.init(generator)
            return params | _lstms(fold.width, generator) if self.full_context else params

        return fold.learner(init)

    def _classify(self, params: Params, embedded: Embedded) -> Tensor:
        """Softmax of the cosines over the support items, summed by class (the paper's eq. 1)."""
        support, query = embedded.support, embedded.query
        if self.full_context:
            support = embed_support(params, support)
            query = embed_query(params, query, support, self.reads)
        votes = functional.softmax(metric.cosines(query, support), dim=-1) @ embedded.classes
        # A class without items has no votes: all but impossible, so that the loss stays finite.
        return votes.clamp_min(torch.finfo(votes.dtype).tiny).log()


def embed_support(params: Params, items: Tensor) -> Tensor:
    """The paper's g: ``[task, item, width]`` of its g' plus both states of a bidirectional LSTM (appendix A.2)."""
    return items + _read_in_order(params, FORWARD, items) + _read_in_order(params, BACKWARD, items.flip(1)).flip(1)


def _read_in_order(params: Params, name: str, items: Tensor) -> Tensor:
    hidden = cell = torch.zeros_like(items[:, 0])
    states = []
    for item in items.unbind(1):
        hidden, cell = _lstm(params, name, item, hidden, cell)
        states.append(hidden)
    return torch.stack(states, dim=1)


def embed_query(params: Params, items: Tensor, support: Tensor, reads: int) -> Tensor:
    """The paper's f: ``[task, item, width]`` of its f' after ``reads`` reads of g's support (appendix A.1, eq. 3-6)."""
    hidden = cell = torch.zeros_like(items)
    for _ in range(reads):
        read = functional.softmax(hidden @ support.mT, dim=-1) @ support
        hidden, cell = _lstm(params, ATTENDING, items, torch.cat([hidden, read], dim=-1), cell)
        hidden = hidden + items
    return hidden


def _lstm(params: Params, name: str, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    gates = functional.linear(torch.cat([inputs, hidden], -1), params[f"{name}.weight"], params[f"{name}.bias"])
    return recurrent.lstm(gates, cell)


def _lstms(width: int, generator: Generator) -> Params:
    """Weights as PyTorch draws them, biases zero; the attending LSTM is told what it read beside what it was."""
    params: Params = {}
    for name, inputs in {FORWARD: 2 * width, BACKWARD: 2 * width, ATTENDING: 3 * width}.items():
        uniform = 2 * torch.rand(4 * width, inputs, generator=generator) - 1
        params |= {f"{name}.weight": uniform / width**0.5, f"{name}.bias": torch.zeros(4 * width)}
    return params
