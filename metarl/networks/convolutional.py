"""Convolutional networks of the few-shot literature, as modules whose last layer is called ``head``.

Batch norm keeps no running statistics, because tasks would share them. Policies have layer norm instead, which
normalises each observation by itself: the action must not depend on the other observations in the batch.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from metarl.networks.layers import Residual
from metarl.types import Spec

Downsample = Literal["stride", "pool", "flat"]
Norm = Literal["batch", "layer"]


def conv4(spec: Spec, filters: int = 64, downsample: Downsample = "stride", norm: Norm = "batch") -> nn.Sequential:
    """Four blocks of a 3x3 convolution, batch norm (policies: layer norm) and ReLU, each of which halves the image.

    ``stride`` uses strided convolutions (sides rounded up) and averages over the remaining positions: the MAML paper's
    network for Omniglot (arXiv 1703.03400). ``pool`` uses max-pooling (sides rounded down) and flattens the remaining
    positions: the MAML paper's network for mini-ImageNet, and that of matching networks (arXiv 1606.04080). ``flat``
    uses strided convolutions and flattens: cheap, and it keeps where things are, which the average forgets.

    Initialisation follows the MAML paper's code: convolutions are Xavier-uniform, biases zero, the head standard normal
    (stride) or Xavier-uniform (pool, flat). Batch norm's epsilon is 0.001, as there. ``norm`` layer is for examples
    what policies always have.

    Raises:
        ValueError: inputs are not images ``[channel, height, width]``, or are too small for the pooling.
    """
    return _blocks("conv4", spec, [filters] * 4, (3,), nn.ReLU, downsample, norm)


def convnet(
    spec: Spec,
    widths: Sequence[int],
    kernels: Sequence[int] = (3,),
    activation: Callable[[], nn.Module] = nn.ReLU,
    downsample: Downsample = "stride",
    norm: Norm = "batch",
) -> nn.Sequential:
    """Like ``conv4``, with as many blocks as there are widths, which are their filters.

    ``kernels`` are the sides of their convolutions, odd numbers; the last one is used for all later blocks.

    Raises:
        ValueError: inputs are not images ``[channel, height, width]``, or are too small for the pooling; there are
            more kernels than blocks.
    """
    if not widths or len(kernels) > len(widths):
        raise ValueError(f"convnet has {len(widths)} blocks and {len(kernels)} kernels: expected a kernel for a block")
    return _blocks("convnet", spec, widths, kernels, activation, downsample, norm)


def _blocks(
    name: str,
    spec: Spec,
    widths: Sequence[int],
    kernels: Sequence[int],
    activation: Callable[[], nn.Module],
    downsample: Downsample,
    norm: Norm,
) -> nn.Sequential:
    pooled = downsample == "pool"
    height, width = _sides(name, spec, least=2 ** len(widths) if pooled else 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, (channels, features) in enumerate(pairwise((spec.input_shape[0], *widths))):
        side = kernels[min(block, len(kernels) - 1)]
        convolution = nn.Conv2d(channels, features, side, stride=1 if pooled else 2, padding=side // 2)
        nn.init.xavier_uniform_(convolution.weight)
        convolution.bias = nn.Parameter(torch.zeros(features))
        layers[f"conv_{block}"] = convolution
        layers[f"norm_{block}"] = _norm(spec, features, norm, eps=1e-3)
        layers[f"activation_{block}"] = activation()
        if pooled:
            layers[f"pool_{block}"] = nn.MaxPool2d(2)
    if downsample == "stride":
        layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    positions = _positions(downsample, height, len(widths)) * _positions(downsample, width, len(widths))
    layers["head"] = head(widths[-1] * positions, spec.head_size, standard_normal=downsample == "stride")
    return nn.Sequential(layers)


def _positions(downsample: Downsample, side: int, blocks: int) -> int:
    """Return what blocks leave of a side: halves rounded down by pooling, up by strides."""
    if downsample == "stride":
        return 1
    return side >> blocks if downsample == "pool" else -(-side >> blocks)


def resnet12(spec: Spec, widths: Sequence[int] = (64, 128, 256, 512), norm: Norm = "batch") -> nn.Sequential:
    """Residual blocks of three 3x3 convolutions, each of which halves the image, then the mean over all positions.

    The default widths are those of TADAM (arXiv 1805.10123). The rest follows MetaOptNet (arXiv 1904.03758, whose
    widths are 64, 160, 320, 640) without dropout: leaky ReLU of slope 0.1, 1x1 convolutions as shortcuts, max-pooling
    after the sum, Kaiming-normal weights without biases. The head is Xavier-uniform. Policies have layer norm instead
    of batch norm.

    Raises:
        ValueError: inputs are not images ``[channel, height, width]``, or are too small for the pooling.
    """
    _sides("resnet12", spec, least=2 ** len(widths))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, (channels, features) in enumerate(pairwise((spec.input_shape[0], *widths))):
        body: OrderedDict[str, nn.Module] = OrderedDict()
        for layer, inputs in enumerate((channels, features, features)):
            body[f"conv_{layer}"] = _unbiased(inputs, features, 3)
            body[f"norm_{layer}"] = _norm(spec, features, norm)
            if layer < 2:
                body[f"activation_{layer}"] = nn.LeakyReLU(0.1)
        shortcut = nn.Sequential(OrderedDict(conv=_unbiased(channels, features, 1), norm=_norm(spec, features, norm)))
        layers[f"block_{block}"] = Residual(nn.Sequential(body), shortcut)
        layers[f"activation_{block}"] = nn.LeakyReLU(0.1)
        layers[f"pool_{block}"] = nn.MaxPool2d(2)
    layers |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": head(widths[-1], spec.head_size)}
    return nn.Sequential(layers)


def _sides(name: str, spec: Spec, least: int) -> tuple[int, int]:
    if len(spec.input_shape) != 3:
        raise ValueError(f"{name} reads images [channel, height, width], not inputs of shape {spec.input_shape}")
    height, width = spec.input_shape[1:]
    if min(height, width) < least:
        raise ValueError(f"{name} halves images until nothing is left of {height}x{width}: expected {least}x{least}")
    return height, width


def _norm(spec: Spec, features: int, norm: Norm, eps: float = 1e-5) -> nn.Module:
    if spec.control or norm == "layer":  # with one group, this is layer norm over channels and positions
        return nn.GroupNorm(1, features, eps)
    return nn.BatchNorm2d(features, eps, track_running_stats=False)


def _unbiased(channels: int, features: int, size: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, features, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="leaky_relu")
    return convolution


def head(features: int, outputs: int, standard_normal: bool = False) -> nn.Linear:
    """A last layer without bias at first, its weights Xavier-uniform or standard normal."""
    layer = nn.Linear(features, outputs)
    if standard_normal:
        nn.init.normal_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
