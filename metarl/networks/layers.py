"""Layers on parameters stacked over tasks, ``[task, *shape]``, and inputs ``[task, item, *shape]``.

Images of all tasks run as one grouped convolution, whose channels are those of every task side by side: measured on a
CPU, it is as fast as any other form (a loop over tasks, unfolding into matrix products), also twice differentiated. In
memory the tasks' channels stay side by side from layer to layer: folding is free but for the first layer.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.networks.derivatives.batch_norm import normalise
from metarl.networks.derivatives.linear import product

MINIMUM_STD = 1e-6


class LogStd(nn.Module):
    """Sets a learned log standard deviation, the same in every state, beside a Gaussian policy's means."""

    def __init__(self, size: int, std: float = 1.0) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((size,), math.log(std)))

    def forward(self, means: Tensor) -> Tensor:
        """``[..., size]`` means to ``[..., 2 * size]`` outputs."""
        return torch.cat([means, self.log_std.clamp_min(math.log(MINIMUM_STD)).expand_as(means)], dim=-1)


class Residual(nn.Module):
    """The sum of two ways from the same inputs."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        """``body(inputs) + shortcut(inputs)``."""
        outputs: Tensor = self.body(inputs) + self.shortcut(inputs)
        return outputs


Own = Mapping[str, Tensor]
"""A layer's parameters by their names in it, stacked; without those that it does not have."""
Layer = Callable[[Any, Own, Tensor, int | None], Tensor]
"""``(module, own, inputs [task, item, *shape], reference) -> outputs``; see ``batch_norm`` for the reference."""


def find(module: nn.Module) -> Layer | None:
    """Return how to run a module on stacked parameters, or None where it is not among the common layers.

    Subclasses may compute something else than the common layers, so only these very types are found.
    """
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return None
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return None
    return _LAYERS.get(type(module))


def linear(layer: nn.Linear, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """A matrix product for each task."""
    outputs = product(inputs.flatten(1, -2), own["weight"])
    if "bias" in own:
        outputs = outputs + own["bias"].unsqueeze(1)
    return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


def convolution(layer: nn.Conv2d, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """One convolution of all tasks, each a group of channels."""
    tasks = len(inputs)
    outputs = functional.conv2d(
        _fold(inputs),
        own["weight"].flatten(0, 1),
        own["bias"].flatten() if "bias" in own else None,
        layer.stride,
        layer.padding,
        layer.dilation,
        tasks * layer.groups,
    )
    return _unfold(outputs, tasks)


def batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Normalise each feature by its mean and variance over the first ``reference`` items of the same task.

    None: over all items, which then see each other; 0: each item by its own positions alone.
    """
    if reference is None and own:
        outputs = normalise(_fold(inputs), own["weight"].flatten(), own["bias"].flatten(), layer.eps)
        return _unfold(outputs, len(inputs))
    reference = inputs.shape[1] if reference is None else reference
    seen = inputs.unsqueeze(2) if reference == 0 else inputs[:, None, :reference]  # [task, 1 or item, item, feature...]
    axes = (2, *range(4, seen.ndim))
    variance, mean = (value.squeeze(2) for value in torch.var_mean(seen, axes, correction=0, keepdim=True))
    normalised = (inputs - mean) * (variance + layer.eps).rsqrt()
    if not own:
        return normalised
    scale, shift = (_beside(own[name], inputs) for name in ("weight", "bias"))
    return torch.addcmul(shift, normalised, scale)


def group_norm(layer: nn.GroupNorm, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Normalise each item by itself, over its positions and each group of its channels."""
    rows = functional.group_norm(inputs.flatten(0, 1), layer.num_groups, eps=layer.eps)
    normalised = rows.reshape(inputs.shape)
    if not own:
        return normalised
    scale, shift = (_beside(own[name], inputs) for name in ("weight", "bias"))
    return torch.addcmul(shift, normalised, scale)


def _beside(values: Tensor, inputs: Tensor) -> Tensor:
    """Give a number for each channel, ``[task, channel]``, the axes of ``[task, item, channel, ...]``."""
    return values.reshape(len(inputs), 1, -1, *[1] * (inputs.ndim - 3))


def pool(layer: nn.Module, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Pool every channel of every task by itself."""
    return _unfold(layer(_fold(inputs)), len(inputs))


def elementwise(layer: nn.Module, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Apply an activation, which needs to know nothing of the axes."""
    outputs: Tensor = layer(inputs)
    return outputs


def flatten(layer: nn.Flatten, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Make a vector of each item."""
    return inputs.flatten(2)


def log_std(values: Tensor, means: Tensor) -> Tensor:
    """Set log standard deviations ``[task, size]`` beside means ``[task, ..., size]``."""
    values = values.clamp_min(math.log(MINIMUM_STD))
    values = values.reshape(len(values), *[1] * (means.ndim - 2), values.shape[-1])
    return torch.cat([means, values.expand_as(means)], dim=-1)


def _fold(inputs: Tensor) -> Tensor:
    """``[task, item, channel, height, width]`` to ``[item, task * channel, height, width]``."""
    return inputs.transpose(0, 1).flatten(1, 2)


def _unfold(outputs: Tensor, tasks: int) -> Tensor:
    return outputs.reshape(len(outputs), tasks, -1, *outputs.shape[2:]).transpose(0, 1)


_ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.Softplus, nn.Identity)
_LAYERS: dict[type[nn.Module], Layer] = {
    nn.Linear: linear,
    nn.Conv2d: convolution,
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.GroupNorm: group_norm,
    nn.MaxPool2d: pool,
    nn.AvgPool2d: pool,
    nn.AdaptiveAvgPool2d: pool,
    nn.Flatten: flatten,
    LogStd: lambda layer, own, inputs, reference: log_std(own["log_std"], inputs),
    **dict.fromkeys(_ACTIVATIONS, elementwise),
}
