"""SNAIL (Mishra et al., 2018, arXiv 1707.03141): temporal convolutions and causal attention over a task's examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl import objectives
from metarl.algorithms.shared.feeding import fed
from metarl.algorithms.shared.metric import embeddings
from metarl.algorithms.shared.recurrent import checked, glorot, label_size, labels
from metarl.networks import Model, Network, NetworkOptions
from metarl.types import Batch, Examples, Experience, Learner, Params, Shared, Spec, pooled

FirstWeights = Literal["similarity", "glorot"]
EMBEDDER = "embedding."
"""Prefix of the embedding network's parameters."""


class Seen(NamedTuple):
    """SNAIL's state: all support items so far."""

    params: Shared
    supports: tuple[Examples, ...]  # support batches, in order


@dataclass(frozen=True)
class SNAIL:
    """SNAIL: predict a label from the sequence of labelled support items, with attention and temporal convolutions.

    Each query item ends a separate sequence. So it sees the support items but no other query (except through
    transductive batch norm). The paper's embedding network for Omniglot is ``--algorithm.architecture conv4
    --algorithm.downsample pool``.
    """

    length: int = 26
    """Longest sequence that the temporal convolutions cover: ways * shots + 1. Attention covers any length."""
    channels: int = 128
    """Filters of each dense block in the temporal convolutions."""
    keys: tuple[int, ...] = (64, 256, 512)
    """Key sizes of the attention blocks. Temporal convolutions stand between these blocks."""
    values: tuple[int, ...] = (32, 128, 256)
    """Value sizes of the attention blocks."""
    embedding: int = 64
    """Width of an item's embedding."""
    first_weights: FirstWeights = "similarity"
    """How attention begins. similarity: queries begin as keys, so that it looks for items that are alike, and in what
    it reads, a label counts as much as an embedding. glorot: all weights are of one size, and labels, one number of
    many, are drowned: training finds them late, of 20 ways after thousands of tasks."""
    network: NetworkOptions = Network()
    """The embedding network."""

    def __post_init__(self) -> None:
        if self.first_weights not in get_args(FirstWeights):
            raise ValueError(f"first_weights={self.first_weights!r}: expected {' or '.join(get_args(FirstWeights))}")
        if len(self.keys) != len(self.values) or not self.keys:
            raise ValueError(f"keys={self.keys} and values={self.values}: expected the same number of each, at least 1")
        sizes = (*self.keys, *self.values, self.channels, self.embedding)
        if min(sizes) < 1 or self.length < 2:
            raise ValueError(
                f"length={self.length}, sizes {sizes}: expected a length of at least 2 and sizes of at least 1"
            )

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec. Raises ValueError for control, and where the network does not fit."""
        if spec.control:
            raise ValueError("SNAIL learns from labelled examples here; for control, use rl2, which also has a memory")
        embeds = Spec(spec.input_shape, self.embedding, "regression", ragged=spec.ragged)
        fold = _Fold(self, spec, self.network.build(embeds))
        functions = fold.init, fold.begin, fold.adapt, fold.predict, fold.meta_loss
        return fed(Learner(spec, 1, *functions, batch_norm=fold.embedder.batch_norm), honours_masks=True)


@dataclass(frozen=True)
class _Fold:
    """The functions of SNAIL's Learner."""

    options: SNAIL
    spec: Spec
    embedder: Model

    @property
    def dilations(self) -> list[int]:
        """Dilations of a temporal convolution's dense blocks: 1, 2, 4, ... until they cover the sequence."""
        return [2**block for block in range((self.options.length - 1).bit_length())]

    def init(self, generator: Generator) -> Params:
        options = self.options
        params = {EMBEDDER + name: value for name, value in self.embedder.init(generator).items()}
        channels = options.embedding + label_size(self.spec)
        own_label = slice(options.embedding, channels)
        for index, (keys, values) in enumerate(zip(options.keys, options.values, strict=True)):
            if index > 0:
                for block in range(len(self.dilations)):
                    name = f"convolution_{index}.{block}"
                    params[f"{name}.weight"] = glorot(generator, 2 * options.channels, 2 * channels)
                    params[f"{name}.bias"] = torch.zeros(2 * options.channels)
                    channels += options.channels
            for part, width in (("key", keys), ("query", keys), ("value", values)):
                params[f"attention_{index}.{part}.weight"] = glorot(generator, width, channels)
                params[f"attention_{index}.{part}.bias"] = torch.zeros(width)
            if options.first_weights == "similarity":
                params[f"attention_{index}.query.weight"] = params[f"attention_{index}.key.weight"].clone()
                # An embedding is about as long as the square root of its width, a label of one 1 as long as 1.
                params[f"attention_{index}.value.weight"][:, own_label] *= sqrt(options.embedding)
            channels += values
        params["output.weight"] = glorot(generator, self.spec.output_size, channels)
        params["output.bias"] = torch.zeros(self.spec.output_size)
        return params

    def begin(self, params: Params, descriptors: Tensor) -> Seen:
        return Seen(Shared(params), ())

    def adapt(self, state: Seen, batch: Batch) -> Seen:
        """Remember the batch."""
        return Seen(state.params, (*state.supports, checked(batch)))

    def predict(self, state: Seen, inputs: Tensor) -> tuple[Tensor, Seen]:
        """Predict each item as if it came next. Items do not see each other, and the state does not change."""
        lead = inputs.shape[: inputs.ndim - len(self.spec.input_shape)]
        queries = inputs.reshape(lead[0], prod(lead[1:]), *self.spec.input_shape)
        supports, places = _in_order(state.supports)
        sequence = torch.cat([*(support.inputs for support in supports), queries], dim=1)
        known = sequence.shape[1] - queries.shape[1]
        own = {name.removeprefix(EMBEDDER): value for name, value in state.params.items() if name.startswith(EMBEDDER)}
        items = embeddings(self.embedder, own, sequence, known)
        support_labels = [labels(self.spec, support.targets, items.dtype) for support in supports]
        no_labels = items.new_zeros(*queries.shape[:2], label_size(self.spec))
        items = torch.cat([items, torch.cat([*support_labels, no_labels], dim=1)], dim=2)
        outputs = self.outputs(state.params, items, known, places)
        return outputs[:, known:].reshape(*lead, self.spec.output_size), state

    def outputs(self, params: Params, items: Tensor, seen: int, counts: Tensor | None = None) -> Tensor:
        """Run the blocks on ``[task, item, channel]``: ``seen`` items in order, then alternatives for the next place.

        Where the first items of a task end with padding, it has ``counts`` ``[task]`` of them without. The output of an
        item, ``[task, item, output_size]``, depends on this item and on the seen items before it.
        """
        for index in range(len(self.options.keys)):
            if index > 0:
                for block, dilation in enumerate(self.dilations):
                    items = dense(params, f"convolution_{index}.{block}", items, seen, dilation, counts)
            items = attend(params, f"attention_{index}", items, seen, counts)
        return functional.linear(items, params["output.weight"], params["output.bias"])

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses on the query items, and metrics."""
        state, query = self.begin(params, experience.descriptors), checked(experience.query)
        for support in experience.supports:
            state = self.adapt(state, support)
        outputs, _ = self.predict(state, query.inputs)
        return objectives.query_losses(self.spec, outputs, query, step=len(experience.supports))


def _in_order(supports: Sequence[Examples]) -> tuple[Sequence[Examples], Tensor | None]:
    """Return batches in which a task's padding, if any, follows all its items, and how many these are, ``[task]``."""
    if all(support.mask is None for support in supports):
        return supports, None
    together = pooled(supports)
    return (together,), together.counts


def dense(params: Params, name: str, items: Tensor, seen: int, dilation: int, counts: Tensor | None = None) -> Tensor:
    """Append a gated, dilated, causal convolution of width 2 to ``[task, item, channel]`` (the paper's DenseBlock)."""
    # All items after the seen ones stand at position ``seen``: each is an alternative next item.
    place = torch.arange(items.shape[1], device=items.device)
    if counts is None:
        before = place.clamp_max(seen) - dilation
        past = items.index_select(1, before.clamp_min(0)) * (before >= 0).unsqueeze(-1)
    else:
        before = torch.where(place < seen, place, counts.unsqueeze(1)) - dilation  # [task, item]
        past = items.gather(1, before.clamp_min(0).unsqueeze(-1).expand_as(items)) * (before >= 0).unsqueeze(-1)
    both = functional.linear(torch.cat([past, items], dim=2), params[f"{name}.weight"], params[f"{name}.bias"])
    value, gate = both.chunk(2, dim=2)
    return torch.cat([items, value.tanh() * gate.sigmoid()], dim=2)


def attend(params: Params, name: str, items: Tensor, seen: int, counts: Tensor | None = None) -> Tensor:
    """Append to ``[task, item, channel]`` each item's attention to earlier items and itself (AttentionBlock)."""
    key, query, value = (
        functional.linear(items, params[f"{name}.{part}.weight"], params[f"{name}.{part}.bias"])
        for part in ("key", "query", "value")
    )
    place = torch.arange(items.shape[1], device=items.device)
    earlier, itself = place < place.unsqueeze(1), place == place.unsqueeze(1)
    shown = place < seen if counts is None else place < counts.reshape(-1, 1, 1)
    visible = (earlier & shown) | itself  # [(task, )item, item]: query items do not see each other
    read = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return torch.cat([items, read], dim=2)
