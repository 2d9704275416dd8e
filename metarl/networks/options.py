"""The built-in networks by name, and their options."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor, nn
from tyro.conf import arg

from metarl import plugins
from metarl.networks import convolutional, models, policies, routing
from metarl.networks.convolutional import Downsample, Norm
from metarl.networks.layers import LogStd
from metarl.networks.models import BatchNorm, Model
from metarl.types import Spec

Architecture = str | Callable[[Spec], nn.Module]
"""The name of a network, or a function from a Spec to any nn.Module, itself or as 'module:attribute'."""
NETWORKS = ("mlp", "conv4", "convnet", "resnet12")
"""Names of the built-in networks."""
READ = {
    "mlp": ("hidden", "activation", "normalise", "std", "output_scale"),
    "conv4": ("filters", "downsample", "joint", "norm", "std", "output_scale"),
    "convnet": ("hidden", "kernels", "activation", "downsample", "joint", "norm", "std", "output_scale"),
    "resnet12": ("filters", "joint", "norm", "std", "output_scale"),
}
"""Options that each architecture reads, besides batch_norm, which tells what batch norm does where there is any."""
Activation = Literal["tanh", "relu", "elu", "gelu", "leaky_relu", "silu", "softplus"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


@dataclass(frozen=True)
class Network:
    """Options of the network. Options that the chosen architecture does not read are refused if they are set."""

    architecture: Architecture = "mlp"
    """'mlp', 'conv4', 'convnet', 'resnet12', or 'module:attribute' of a function from a Spec to any nn.Module."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the hidden layers of the mlp, or filters of the blocks of convnet."""
    activation: Activation = "relu"
    """Activation of the mlp and of convnet. Second derivatives by hand, which are faster, are for an mlp with tanh or
    relu."""
    normalise: bool = False
    """Use batch norm before each activation of the mlp. With --algorithm.hidden 256 128 64 64 this is the MAML paper's
    fully connected Omniglot network. Not for control, where an action must not depend on other observations."""
    filters: int = 64
    """Filters of each layer of conv4, or of the first block of resnet12, whose filters double with every block."""
    downsample: Downsample = "stride"
    """How conv4 and convnet halve images: stride, as in the MAML paper on Omniglot, or pool, as on mini-ImageNet
    there. stride averages over what is left of the image, and so forgets where things are; flat keeps all of it."""
    joint: tuple[int, ...] = ()
    """Widths of fully connected layers between the convolutions of conv4, convnet or resnet12 and the last layer. Of
    Dict and Tuple observations, each picture has its own convolutions, and all other numbers join behind them."""
    norm: Norm = "batch"
    """What normalises the features of conv4, convnet and resnet12: batch norm (batch), or layer norm, of each item by
    itself (layer). Tasks of unequal size need the latter, as batch norm would count their padding. Control always has
    it."""
    batch_norm: BatchNorm = "transductive"
    """Which statistics batch norm uses. transductive: those of all query items together, as in the MAML paper.
    inductive: those of the support items, so that the prediction for a query item does not depend on other query items.
    In control, conv4, convnet and resnet12 have layer norm instead."""
    std: float = 1.0
    """Initial standard deviation of a Gaussian policy, in units of its action."""
    distribution: str | None = None
    """How a policy's actions are distributed. By default gaussian, for choices categorical. squashed: a Gaussian behind
    tanh, so that actions keep within their bounds and none is clipped; std is then that before tanh."""
    output_scale: float = 1.0
    """Factor of the last layer's initial weights. With 0.01, say, a policy hardly depends on its observations at first:
    Gaussian means are near 0, choices near equally likely."""
    kernels: tuple[int, ...] = (3,)
    """Sides of the kernels of convnet's blocks, odd numbers; the last one is used for all later blocks."""

    def __post_init__(self) -> None:
        for name, known in {
            "activation": Activation,
            "downsample": Downsample,
            "norm": Norm,
            "batch_norm": BatchNorm,
        }.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(known))}")
        if isinstance(self.architecture, str) and ":" not in self.architecture and self.architecture not in NETWORKS:
            raise ValueError(f"architecture={self.architecture!r}: expected {', '.join(NETWORKS)} or module:attribute")
        for name in ("std", "output_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if any(width < 1 for width in (*self.hidden, *self.joint, self.filters)):
            told = f"hidden={self.hidden}, joint={self.joint} and filters={self.filters}"
            raise ValueError(f"{told}: widths are at least 1")
        if not self.kernels or any(side < 1 or side % 2 == 0 for side in self.kernels):
            raise ValueError(f"kernels={self.kernels}: expected odd sides, such as 3 or 5")
        self._refuse_unread()

    def _refuse_unread(self) -> None:
        chosen = self.architecture if self.architecture in NETWORKS else "a network of one's own"
        own = (*READ.get(str(self.architecture), ()), "architecture", "batch_norm", "distribution")
        unread = [
            field.name for field in fields(self) if field.name not in own and getattr(self, field.name) != field.default
        ]
        if unread:
            told = ", ".join(f"{name}={getattr(self, name)!r}" for name in unread)
            known = ", ".join(name for name in own if name != "architecture")
            raise ValueError(f"{told}: {chosen} does not read that; of a network's options it reads {known}")

    def with_architecture(self, architecture: Architecture) -> "Network":
        """Return these options with another architecture; those that it does not read have their defaults.

        Raises ValueError for an unknown architecture.
        """
        read = (*READ.get(str(architecture), ()), "batch_norm", "distribution")
        return Network(architecture=architecture, **{name: getattr(self, name) for name in read})

    def build(self, spec: Spec) -> Model:
        """Return the network for spec. Raises ValueError when it does not fit."""
        return models.build(self._make, self.chosen(spec), self.batch_norm)

    def chosen(self, spec: Spec) -> Spec:
        """Return spec with the chosen distribution of actions.

        Raises:
            ValueError: there is none of this name, or it is not for the actions of spec.
        """
        return spec if self.distribution is None else policies.chosen(spec, self.distribution)

    def build_features(self, spec: Spec) -> tuple[Model, int]:
        """Return the network without its last layer, which is called ``head``, and the width of its outputs.

        Raises:
            ValueError: the network has no head, or does not fit spec; or output_scale is set.
        """
        if self.output_scale != 1.0:
            raise ValueError(f"output_scale={self.output_scale}: there is no last layer here, which it would scale")
        headless = Spec(spec.input_shape, 1, "regression", ragged=spec.ragged)
        with torch.device("meta"):  # shapes only: nothing is computed
            try:
                width = self._make_features(headless)(torch.empty(2, *spec.input_shape)).shape[-1]
            except RuntimeError as error:
                raise ValueError(f"the network cannot run on inputs of shape {spec.input_shape}: {error}") from error
        return models.build(self._make_features, replace(headless, output_size=width), self.batch_norm), width

    def _make_features(self, spec: Spec) -> nn.Module:
        network = self._make(spec)
        if not hasattr(network, "head"):
            raise ValueError("the network has no layer called head that could be left out; give the embedding's width")
        network.head = nn.Identity()
        return network

    def _make(self, spec: Spec) -> nn.Module:
        network = self._made(spec)
        if self.output_scale != 1.0:
            with torch.no_grad():
                network.head.weight.mul_(self.output_scale)  # type: ignore[union-attr, operator]
        return network

    def _made(self, spec: Spec) -> nn.Module:
        if self.architecture == "mlp":
            return mlp(spec, self.hidden, self.activation, self.std, self.normalise)
        if self.architecture == "conv4":
            return self._reading_pictures(
                lambda one: convolutional.conv4(one, self.filters, self.downsample, self.norm), spec
            )
        if self.architecture == "convnet":
            options = self.hidden, self.kernels, ACTIVATIONS[self.activation], self.downsample, self.norm
            return self._reading_pictures(lambda one: convolutional.convnet(one, *options), spec)
        if self.architecture == "resnet12":
            widths = [self.filters * 2**block for block in range(4)]
            return self._reading_pictures(lambda one: convolutional.resnet12(one, widths, self.norm), spec)
        chosen = self.architecture
        make = plugins.import_attribute(chosen) if isinstance(chosen, str) else chosen
        module = make(spec) if callable(make) else make
        if not (callable(make) and isinstance(module, nn.Module)):
            problem = f"returns {type(module).__name__}" if callable(make) else f"is {make!r}"
            raise ValueError(f"architecture={chosen!r} {problem}: expected a function from a Spec to an nn.Module")
        return module

    def _reading_pictures(self, make: Callable[[Spec], nn.Sequential], spec: Spec) -> nn.Sequential:
        """Return a network of pictures: of those in a Dict or a Tuple, or of one that is all there is to see."""
        if not spec.observations and not self.joint:
            return _with_policy(make(spec), spec, self.std)
        if spec.observations:
            network, features = routing.routed(make, spec)
        else:
            network, features = routing.headless(make(spec))
        activation = ACTIVATIONS[self.activation if self.architecture == "convnet" else "relu"]
        for name, layer in routing.joint(features, self.joint, activation, spec.head_size).items():
            network.add_module(name, layer)
        return _with_policy(network, spec, self.std)


NetworkOptions = Annotated[Network, arg(name="")]
"""The type of an algorithm's field ``network``. On the command line, its options appear among the algorithm's own."""


def mlp(
    spec: Spec,
    hidden: tuple[int, ...] = (100, 100),
    activation: Activation = "relu",
    std: float = 1.0,
    normalise: bool = False,
) -> nn.Module:
    """A multilayer perceptron with layers ``hidden_0``, ..., ``head`` (and ``policy`` with the log-std, if Gaussian).

    The input is flattened. Weights are initialised as in the MAML paper's code: Xavier-uniform, as for its policies.
    With ``normalise``, there is batch norm ``norm_0``, ... before the activations, and weights are normal with standard
    deviation 0.01, truncated at two of them, as in its Omniglot network. Biases are zero. ``std`` is the initial
    standard deviation of actions. Draws from the global generator, as any ``nn.Module`` does.
    """
    initialise = _truncated_normal if normalise else nn.init.xavier_uniform_
    widths = (math.prod(spec.input_shape), *hidden)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(spec.input_shape) != 1:
        layers["flatten"] = nn.Flatten()
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        layers[f"hidden_{index}"] = linear(inputs, outputs, initialise)
        if normalise:
            layers[f"norm_{index}"] = nn.BatchNorm1d(outputs, eps=1e-3, track_running_stats=False)
        layers[f"activation_{index}"] = ACTIVATIONS[activation]()
    layers["head"] = linear(widths[-1], spec.head_size, initialise)
    return _with_policy(nn.Sequential(layers), spec, std)


def linear(inputs: int, outputs: int, initialise: Callable[[Tensor], Tensor]) -> nn.Linear:
    """A linear layer with initial weights of one's choice and no bias yet."""
    layer = nn.Linear(inputs, outputs)
    initialise(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _truncated_normal(weight: Tensor) -> Tensor:
    return nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02)


def _with_policy(network: nn.Sequential, spec: Spec, std: float) -> nn.Sequential:
    """Append the log-std of a Gaussian policy to the network."""
    if spec.control and spec.distribution.log_stds:
        network.add_module("policy", LogStd(spec.distribution.log_stds, std))
    return network
