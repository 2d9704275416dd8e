"""Matching networks (Vinyals et al., 2016, arXiv 1606.04080), with and without full-context embeddings."""

import math
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
LOG_SCALE = "scale:log"
"""Name of the parameter whose exponential is the learned scale, which so stays positive."""


@dataclass(frozen=True)
class Matching:
    """Matching networks: classify an item by an attention-weighted vote of the support items."""

    full_context: bool = False
    """Use full-context embeddings: a bidirectional LSTM reads the support items in order, so that each embedding
    depends on all of them, and an LSTM with attention to the support set embeds query items."""
    reads: int = 5
    """Times that the query LSTM reads the support set (the paper's K)."""
    scale: float = 10.0
    """What cosines are multiplied by before the softmax. 1 is the paper's form: over the 20 items of a 20-way task, a
    softmax of cosines alone cannot give the right one more than e^2 / (e^2 + 19), or 28 %."""
    learn_scale: bool = False
    """Meta-learn the scale, from ``scale`` on."""
    embedding: int | None = None
    """Width of the embedding. By default, the network's last layer (the head) is left out, and its features are the
    embedding."""
    network: NetworkOptions = Network()
    """The embedding network; the paper's is conv4 with --algorithm.downsample pool."""

    def __post_init__(self) -> None:
        if self.reads < 1:
            raise ValueError(f"reads={self.reads}: expected at least 1")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale}: expected a positive number (1: cosines alone, as in the paper)")
        metric.check_width(self.embedding)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a classification spec. Raises ValueError for other specs, and for an unfit network."""
        fold = metric.build("matching", self.network, self.embedding, spec, self._classify)

        def init(generator: Generator) -> Params:
            params = fold.model.init(generator)
            if self.full_context:
                params |= _lstms(fold.width, generator)
            return params | {LOG_SCALE: torch.tensor(math.log(self.scale))} if self.learn_scale else params

        return fold.learner(init)

    def _classify(self, params: Params, embedded: Embedded) -> Tensor:
        """Return log-probabilities: attention over support items, summed by class (the paper's eq. 1)."""
        support, query = embedded.support, embedded.query
        if self.full_context:
            support = embed_support(params, support, embedded.padding)
            query = embed_query(params, query, support, self.reads, embedded.padding)
        scale = params[LOG_SCALE].exp() if self.learn_scale else self.scale
        votes = _attention(scale * metric.cosines(query, support), embedded.padding) @ embedded.classes
        # A class without support items has no votes. The smallest probability instead of 0 keeps the loss finite.
        return votes.clamp_min(torch.finfo(votes.dtype).tiny).log()


def _attention(scores: Tensor, padding: Tensor | None) -> Tensor:
    """Return the softmax of scores ``[task, item, support]`` over the support items that are no padding."""
    if padding is not None:
        scores = scores.masked_fill(padding.unsqueeze(1), -torch.inf)
    return functional.softmax(scores, dim=-1)


def embed_support(params: Params, items: Tensor, padding: Tensor | None = None) -> Tensor:
    """Return the paper's g ``[task, item, width]``: g' plus both states of a bidirectional LSTM (appendix A.2).

    ``padding`` ``[task, item]`` tells which items are none, after the last one; they are not read.
    """
    backward = None if padding is None else padding.flip(1)
    behind = _read_in_order(params, BACKWARD, items.flip(1), backward).flip(1)
    return items + _read_in_order(params, FORWARD, items) + behind


def _read_in_order(params: Params, name: str, items: Tensor, padding: Tensor | None = None) -> Tensor:
    hidden = cell = torch.zeros_like(items[:, 0])
    states = []
    for number, item in enumerate(items.unbind(1)):
        hidden, cell = _lstm(params, name, item, hidden, cell)
        if padding is not None:  # comes first, backwards
            hidden, cell = (value.masked_fill(padding[:, number, None], 0) for value in (hidden, cell))
        states.append(hidden)
    return torch.stack(states, dim=1)


def embed_query(params: Params, items: Tensor, support: Tensor, reads: int, padding: Tensor | None = None) -> Tensor:
    """Return the paper's f ``[task, item, width]``: f' after ``reads`` reads of the support (appendix A.1, eq. 3-6)."""
    hidden = cell = torch.zeros_like(items)
    for _ in range(reads):
        read = _attention(hidden @ support.mT, padding) @ support
        hidden, cell = _lstm(params, ATTENDING, items, torch.cat([hidden, read], dim=-1), cell)
        hidden = hidden + items
    return hidden


def _lstm(params: Params, name: str, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    gates = functional.linear(torch.cat([inputs, hidden], -1), params[f"{name}.weight"], params[f"{name}.bias"])
    return recurrent.lstm(gates, cell)


def _lstms(width: int, generator: Generator) -> Params:
    """Draw the LSTMs' weights as PyTorch does; biases are zero."""
    params: Params = {}
    # Each LSTM reads an item and its own state; the attending one also reads the vector that attention returned.
    for name, inputs in {FORWARD: 2 * width, BACKWARD: 2 * width, ATTENDING: 3 * width}.items():
        uniform = 2 * torch.rand(4 * width, inputs, generator=generator) - 1
        params |= {f"{name}.weight": uniform / width**0.5, f"{name}.bias": torch.zeros(4 * width)}
    return params
