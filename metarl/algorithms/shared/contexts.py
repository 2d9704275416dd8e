"""Context parameters: a few numbers for each task that modulate a network which all tasks share.

The network's own function never sees them. They move each task's copy of some biases and weights, which is the same
thing: a context that is concatenated to the inputs is a linear map of it, added to the first layer's bias. A feature
that is scaled and shifted (FiLM, Perez et al., arXiv 1709.07871) is a row of weights and a bias that are.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor

from metarl.networks import Model, Network, stack
from metarl.numerics import sum_of
from metarl.types import Params, Spec

ContextIn = Literal["input", "film"]
SHIFT, SCALE = "context_shift:", "context_scale:"
"""Prefixes of the names of a layer's maps among the meta-parameters, ``[feature, context]``."""


@dataclass(frozen=True)
class Contexts:
    """A network that context parameters modulate."""

    spec: Spec
    options: Network
    model: Model
    size: int
    layers: tuple[str, ...]
    """Layers that are modulated."""
    scaled: bool
    """Whether their features are scaled, too."""

    @property
    def modulated(self) -> list[str]:
        """Names of the parameters that the context moves."""
        kinds = ("weight", "bias") if self.scaled else ("bias",)
        return [f"{layer}.{kind}" for layer in self.layers for kind in kinds]

    def init(self, generator: Generator) -> Params:
        """Draw the network and its maps.

        A map of the inputs' context has the same distribution as the other columns of the first layer's weights; one of
        FiLM is uniform, as PyTorch's linear layers. (A map of zeros would stay so: the context would never move.)
        """
        if not self.scaled:
            return self._split(_wider(self.options, self.spec, self.size).init(generator))
        params = self.model.init(generator)
        for layer in self.layers:
            for prefix in (SCALE, SHIFT):
                uniform = 2 * torch.rand(len(params[f"{layer}.bias"]), self.size, generator=generator) - 1
                params[prefix + layer] = uniform / self.size**0.5
        return params

    def _split(self, wide: Params) -> Params:
        """Cut the columns of the context off the first layer of a network that reads inputs and context."""
        name, layer = f"{self.layers[0]}.weight", self.layers[0]
        inputs = wide[name].shape[1] - self.size
        params = wide | {name: wide[name][:, :inputs].clone()}
        return params | {SHIFT + layer: wide[name][:, inputs:].clone()}

    def networks(self, params: Params, context: Tensor) -> Params:
        """Return each task's own network ``[task, *shape]`` for a context ``[task, size]``."""
        own = {name: value for name, value in params.items() if not name.startswith((SHIFT, SCALE))}
        networks = stack(own, len(context))
        for layer in self.layers:
            shift = context @ params[SHIFT + layer].mT  # [task, feature]
            if self.scaled:
                scale = 1 + context @ params[SCALE + layer].mT
                for name in (f"{layer}.weight", f"{layer}.bias"):
                    networks[name] = networks[name] * scale.reshape(*scale.shape, *[1] * (networks[name].ndim - 2))
            networks[f"{layer}.bias"] = networks[f"{layer}.bias"] + shift
        return networks

    def gradient(self, params: Params, gradients: Params) -> Tensor:
        """Return the gradient in the context ``[task, size]``, given that in what it modulates ``[task, *shape]``."""
        parts = []
        for layer in self.layers:
            parts.append(gradients[f"{layer}.bias"] @ params[SHIFT + layer])
            if self.scaled:  # the features' scales multiply a row of the weight, and its bias
                slopes = [
                    (gradients[name] * params[name]).reshape(*gradients[name].shape[:2], -1).sum(2)
                    for name in (f"{layer}.weight", f"{layer}.bias")
                ]
                parts.append(sum_of(slopes) @ params[SCALE + layer])
        return sum_of(parts)


def build(context_in: ContextIn, network: Network, spec: Spec, size: int, film_layers: tuple[str, ...]) -> Contexts:
    """Return a network that ``size`` context parameters modulate, by its first layer or by FiLM.

    Raises:
        ValueError: the network does not fit spec, or has no layers that can be modulated in this way.
    """
    model = network.build(spec)
    shapes = {name: value.shape for name, value in model.init(Generator().manual_seed(0)).items()}
    if context_in == "film":
        return Contexts(spec, network, model, size, _film_layers(shapes, film_layers), scaled=True)
    if model.layout is None:
        raise ValueError(
            "context_in=input needs an mlp of plain linear layers: the first layer of another network, or batch norm "
            "behind it, would not let the context through; use context_in=film"
        )
    first = model.layout.layers[0].removesuffix(".weight")
    wide = {name: value.shape for name, value in _wider(network, spec, size).init(Generator().manual_seed(0)).items()}
    if wide | {f"{first}.weight": ()} != shapes | {f"{first}.weight": ()}:
        raise ValueError(
            f"context_in=input: with inputs that are {size} numbers wider, the network has other layers; use "
            "context_in=film"
        )
    return Contexts(spec, network, model, size, (first,), scaled=False)


def _wider(network: Network, spec: Spec, size: int) -> Model:
    """Return the network that reads the flattened inputs and the context beside them."""
    return network.build(replace(spec, input_shape=(math.prod(spec.input_shape) + size,)))


def _film_layers(shapes: dict[str, torch.Size], prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the hidden layers with a weight and a bias for each feature, but none that is normalised behind it."""
    layers = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
    following = dict(pairwise(layers))

    def normalised(layer: str) -> bool:  # what a layer scales and shifts, a norm behind it undoes
        return layer in following and len(shapes[f"{following[layer]}.weight"]) == 1

    fit = [
        layer
        for layer in layers
        if layer != "head" and shapes.get(f"{layer}.bias") == shapes[f"{layer}.weight"][:1] and not normalised(layer)
    ]
    unmatched = [prefix for prefix in prefixes if not any(layer.startswith(prefix) for layer in fit)]
    if unmatched:
        raise ValueError(f"film_layers={unmatched} names no layer that FiLM fits; there are {', '.join(fit) or 'none'}")
    chosen = tuple(layer for layer in fit if not prefixes or layer.startswith(prefixes))
    if not chosen:
        raise ValueError("context_in=film needs a network with hidden layers that have weights and biases")
    return chosen
