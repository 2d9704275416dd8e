"""Networks conditioned on the task's descriptor through their inputs, hidden features or heads.

Parameters are stacked over tasks, ``[task, *shape]``. So the descriptor can set each task's own biases, scales or head,
and any network can be conditioned without a change to it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from metarl.networks.models import Model, stack
from metarl.networks.options import Network
from metarl.types import Params, Spec

Condition = Literal["none", "concatenate", "add", "multiply", "heads"]
CONDITION = "condition:"
"""Prefix of the names of the descriptor's linear maps among the meta-parameters."""
HEAD = ("head.weight", "head.bias")


class Conditioned(NamedTuple):
    """A network whose function depends on the task's descriptor."""

    init: Callable[[Generator], Params]
    """``(CPU generator) -> params``"""
    networks: Callable[[Params, Tensor], Params]
    """``(params, descriptors [task, d]) -> stacked params``: each task's own network."""
    model: Model
    """The network itself, which runs with each task's own parameters."""
    inputs: Callable[[Tensor, Tensor], Tensor] = lambda inputs, descriptors: inputs
    """``(inputs [task, ..., *input_shape], descriptors [task, d]) -> what the model reads``"""


def build(condition: Condition, network: Network, spec: Spec) -> Conditioned:
    """Return a network that is conditioned on the descriptor.

    ``concatenate`` appends the descriptor to the inputs. ``add`` adds a linear map of it to the features of every
    hidden layer. ``multiply`` scales the features by 1 plus such a map. (FiLM, arXiv 1709.07871, calls these shift and
    scale.) The maps start at 0. ``heads`` has one head per number of the descriptor, and mixes the heads by these
    numbers.

    Raises:
        ValueError: the family has no descriptors; ``concatenate`` with inputs that are not vectors; another condition
            with a network that lacks the layers it needs; or a network that does not fit spec.
    """
    if condition == "none":
        model = network.build(spec)
        return Conditioned(model.init, _stacked, model)
    if spec.descriptor_size == 0:
        raise ValueError(f"condition={condition}: nothing describes the tasks of this family; condition on none")
    if condition == "concatenate":
        model = _wider(network, spec)
        return Conditioned(model.init, _stacked, model, _joined)
    model = network.build(spec)
    return _mixed_heads(model, spec) if condition == "heads" else _modulated(condition, model, spec)


def _stacked(params: Params, descriptors: Tensor) -> Params:
    return stack(params, len(descriptors))


def _wider(network: Network, spec: Spec) -> Model:
    if len(spec.input_shape) != 1:
        raise ValueError(
            f"condition=concatenate needs inputs that are vectors, not of shape {spec.input_shape}; "
            "try add, multiply or heads"
        )
    return network.build(replace(spec, input_shape=(spec.input_shape[0] + spec.descriptor_size,)))


def _joined(inputs: Tensor, descriptors: Tensor) -> Tensor:
    broadcast = descriptors.reshape(len(descriptors), *[1] * (inputs.ndim - 2), -1)
    return torch.cat([inputs, broadcast.expand(*inputs.shape[:-1], -1)], dim=-1)


def _modulated(condition: Condition, model: Model, spec: Spec) -> Conditioned:
    shapes = {name: value.shape for name, value in model.init(Generator().manual_seed(0)).items()}
    layers = [name.removesuffix(".bias") for name in shapes if name.endswith(".bias") and name not in HEAD]
    # Scaling a layer's features is the same as scaling the rows of its weight and its bias.
    if condition == "multiply":
        layers = [name for name in layers if shapes.get(f"{name}.weight", ())[:1] == shapes[f"{name}.bias"]]
    if not layers:
        raise ValueError(f"condition={condition} needs a network with hidden layers that have weights and biases")

    def init(generator: Generator) -> Params:
        params = model.init(generator)
        for name in layers:
            params[CONDITION + name] = torch.zeros(*shapes[f"{name}.bias"], spec.descriptor_size)
        return params

    def networks(params: Params, descriptors: Tensor) -> Params:
        stacked = stack({name: params[name] for name in shapes}, len(descriptors))
        for name in layers:
            modulation = descriptors @ params[CONDITION + name].mT  # [task, feature]
            if condition == "add":
                stacked[f"{name}.bias"] = stacked[f"{name}.bias"] + modulation
                continue
            for part in (f"{name}.weight", f"{name}.bias"):
                scale = (1 + modulation).reshape(*modulation.shape, *[1] * (stacked[part].ndim - 2))
                stacked[part] = stacked[part] * scale
        return stacked

    return Conditioned(init, networks, model)


def _mixed_heads(model: Model, spec: Spec) -> Conditioned:
    parts = [name for name in HEAD if name in model.init(Generator().manual_seed(0))]
    if not parts:
        raise ValueError("condition=heads needs a network whose last layer is called 'head'")

    def init(generator: Generator) -> Params:
        drawn = [model.init(generator) for _ in range(spec.descriptor_size)]
        return drawn[0] | {name: torch.stack([params[name] for params in drawn]) for name in parts}

    def networks(params: Params, descriptors: Tensor) -> Params:
        shared = stack({name: value for name, value in params.items() if name not in parts}, len(descriptors))
        # Each task's head is the sum of the heads h, weighted by the descriptor.
        mixed = {name: torch.einsum("th,h...->t...", descriptors, params[name]) for name in parts}
        return {name: mixed[name] if name in mixed else shared[name] for name in params}

    return Conditioned(init, networks, model)
