"""Networks for observations of several parts: pictures go through convolutions, all other numbers past them.

A Dict or a Tuple is one vector, whose layout ``Spec.observations`` tells. So everything around the network stays as it
is for vectors. Stable-Baselines3's ``MultiInputPolicy`` sorts the parts in the same way.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from metarl.networks.convolutional import head
from metarl.types import Part, Spec


class Routed(nn.Module):
    """Reads each picture in a vector by a network of its own; returns all features, then all other numbers.

    Args:
        pictures: The parts that are pictures.
        networks: For each, from ``[row, channel, height, width]`` to ``[row, feature]``.
        width: Numbers in the vector. Those behind the last part are read as numbers: a descriptor, or a context.
    """

    def __init__(self, pictures: Sequence[Part], networks: Sequence[nn.Module], width: int) -> None:
        super().__init__()
        self.pictures = tuple(pictures)
        ends = [0, *(end for part in pictures for end in (part.offset, part.offset + part.size)), width]
        self.others = tuple((first, last) for first, last in zip(ends[::2], ends[1::2], strict=True) if first < last)
        for number, network in enumerate(networks):
            self.add_module(f"picture_{number}", network)

    def cut(self, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the pictures ``[..., channel, height, width]`` of vectors, and the numbers between them."""
        lead = inputs.ndim - 1
        pictures = []
        for part in self.pictures:
            values = inputs[..., part.offset : part.offset + part.size].reshape(*inputs.shape[:-1], *part.shape)
            ordered = values.permute(*range(lead), *(lead + axis for axis in part.axes))
            pictures.append(ordered.reshape(*inputs.shape[:-1], *part.picture))
        return pictures, [inputs[..., first:last] for first, last in self.others]

    def forward(self, inputs: Tensor) -> Tensor:
        """``[row, number]`` to ``[row, feature]``."""
        pictures, others = self.cut(inputs)
        return torch.cat([*(network(one) for network, one in zip(self.children(), pictures, strict=True)), *others], -1)


def routed(make: Callable[[Spec], nn.Sequential], spec: Spec) -> tuple[nn.Sequential, int]:
    """Return the networks of all pictures without their heads, side by side with all other numbers, and their width.

    ``make`` makes the network of one picture, whose last layer is ``head``.

    Raises:
        ValueError: no part is a picture, or one does not fit the network.
    """
    (width,) = spec.input_shape
    pictures = [part for part in spec.observations if part.channels]
    if not pictures:
        names = ", ".join(_name(part) for part in spec.observations)
        raise ValueError(
            f"none of the observations' parts ({names}) is a picture, a Box of 0 to 255 or floats of 0 to 1 with three "
            "axes, which a convolutional network reads: use the mlp"
        )
    networks, features = [], width - sum(part.size for part in pictures)
    for part in pictures:
        try:
            network = make(replace(spec, input_shape=part.picture, observations=()))
        except ValueError as error:
            raise ValueError(f"the part {_name(part)} of the observations: {error}") from error
        network, more = headless(network)
        features += more
        networks.append(network)
    return nn.Sequential(OrderedDict(parts=Routed(pictures, networks, width))), features


def headless(network: nn.Sequential) -> tuple[nn.Sequential, int]:
    """Take the last layer, ``head``, off a network; return the network and the width of its features."""
    head = network.get_submodule("head")
    assert isinstance(head, nn.Linear)
    del network.head
    return network, head.in_features


def joint(
    features: int, widths: Sequence[int], activation: Callable[[], nn.Module], outputs: int
) -> OrderedDict[str, nn.Module]:
    """Return the layers that read all features together: ``joint_0``, ..., ``head``, Xavier-uniform without biases."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, width) in enumerate(pairwise((features, *widths))):
        layers[f"joint_{number}"] = head(inputs, width)
        layers[f"joint_activation_{number}"] = activation()
    layers["head"] = head((features, *widths)[-1], outputs)
    return layers


def _name(part: Part) -> str:
    return repr("/".join(map(str, part.path)))
