"""Layers on parameters stacked over tasks, ``[task, *shape]``, and inputs ``[task, item, *shape]``.

Images of all tasks run through one grouped convolution, with the channels of all tasks side by side. Measured on a CPU,
this is as fast as a loop over tasks or unfolding into matrix products, even when differentiated twice. In memory, the
tasks' channels stay side by side from layer to layer, so only the first layer pays for the folding.
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
    """Appends a learned log standard deviation, the same in every state, to a Gaussian policy's means."""

    def __init__(self, size: int, std: float = 1.0) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((size,), math.log(std)))

    def forward(self, means: Tensor) -> Tensor:
        """``[..., size]`` means to ``[..., 2 * size]`` outputs."""
        return torch.cat([means, self.log_std.clamp_min(math.log(MINIMUM_STD)).expand_as(means)], dim=-1)


class Residual(nn.Module):
    """The sum of a body and a shortcut."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        """``body(inputs) + shortcut(inputs)``."""
        outputs: Tensor = self.body(inputs) + self.shortcut(inputs)
        return outputs


Own = Mapping[str, Tensor]
"""A layer's own stacked parameters, by their names in the layer, such as ``weight``."""
Layer = Callable[[Any, Own, Tensor, int | None], Tensor]
"""``(module, own, inputs [task, item, *shape], reference) -> outputs``; see ``batch_norm`` for the reference."""


def find(module: nn.Module) -> Layer | None:
    """Return the function that runs a module on stacked parameters, or None if it is not a common layer.

    The types must match exactly: a subclass may compute something else.
    """
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return None
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return None
    return _LAYERS.get(type(module))


def linear(layer: nn.Linear, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Apply each task's linear layer."""
    outputs = product(inputs.flatten(1, -2), own["weight"])
    if "bias" in own:
        outputs = outputs + own["bias"].unsqueeze(1)
    return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


def convolution(layer: nn.Conv2d, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Apply all tasks' convolutions as one, with a group of channels per task."""
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

    None: over all items, whose outputs then depend on each other. 0: each item by its own positions only.
    """
    if reference is None and own:
        outputs = normalise(_fold(inputs), own["weight"].flatten(), own["bias"].flatten(), layer.eps)
        return _unfold(outputs, len(inputs))
    reference = inputs.shape[1] if reference is None else reference
    # [task, 1, reference item, feature, ...], or with reference 0: [task, item, 1, feature, ...].
    seen = inputs.unsqueeze(2) if reference == 0 else inputs[:, None, :reference]
    axes = (2, *range(4, seen.ndim))
    variance, mean = torch.var_mean(seen, axes, correction=0, keepdim=True)
    variance, mean = variance.squeeze(2), mean.squeeze(2)
    normalised = (inputs - mean) * (variance + layer.eps).rsqrt()
    if not own:
        return normalised
    scale, shift = (_beside(own[name], inputs) for name in ("weight", "bias"))
    return torch.addcmul(shift, normalised, scale)


def group_norm(layer: nn.GroupNorm, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Normalise each group of an item's channels over its positions."""
    rows = functional.group_norm(inputs.flatten(0, 1), layer.num_groups, eps=layer.eps)
    normalised = rows.reshape(inputs.shape)
    if not own:
        return normalised
    scale, shift = (_beside(own[name], inputs) for name in ("weight", "bias"))
    return torch.addcmul(shift, normalised, scale)


def _beside(values: Tensor, inputs: Tensor) -> Tensor:
    """Reshape one number per channel, ``[task, channel]``, to broadcast with ``[task, item, channel, ...]``."""
    return values.reshape(len(inputs), 1, -1, *[1] * (inputs.ndim - 3))


def pool(layer: nn.Module, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Pool every channel of every task."""
    return _unfold(layer(_fold(inputs)), len(inputs))


def elementwise(layer: nn.Module, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Apply an activation, for which the axes do not matter."""
    outputs: Tensor = layer(inputs)
    return outputs


def flatten(layer: nn.Flatten, own: Own, inputs: Tensor, reference: int | None) -> Tensor:
    """Flatten each item to a vector."""
    return inputs.flatten(2)


def log_std(values: Tensor, means: Tensor) -> Tensor:
    """Append log standard deviations ``[task, size]`` to means ``[task, ..., size]``."""
    values = values.clamp_min(math.log(MINIMUM_STD))
    values = values.reshape(len(values), *[1] * (means.ndim - 2), values.shape[-1])
    return torch.cat([means, values.expand_as(means)], dim=-1)


def _fold(inputs: Tensor) -> Tensor:
    """``[task, item, channel, height, width]`` to ``[item, task * channel, height, width]``."""
    return inputs.transpose(0, 1).flatten(1, 2)


def _unfold(outputs: Tensor, tasks: int) -> Tensor:
    # shape, not len: len would fix the number of items in exported programs.
    return outputs.reshape(outputs.shape[0], tasks, -1, *outputs.shape[2:]).transpose(0, 1)


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
