"""The networks that algorithms offer by name, and their options."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, get_args

from torch import nn
from tyro.conf import arg

from metarl import models, plugins
from metarl.models import LogStd, Model
from metarl.types import Spec

Architecture = str | Callable[[Spec], nn.Module]
"""A network's name; or 'module:attribute' of a function from a Spec to any nn.Module; or that function."""
Activation = Literal["tanh", "relu"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


@dataclass(frozen=True)
class Network:
    """A network's options; those of other architectures than the chosen one are ignored."""

    architecture: Architecture = "mlp"
    """'mlp', or 'module:attribute' of a function from a Spec to any nn.Module."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the multilayer perceptron's hidden layers."""
    activation: Activation = "relu"
    """Its activation."""
    std: float = 1.0
    """Initial standard deviation of a Gaussian policy, in units of the policy's action."""

    def __post_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation={self.activation!r}: expected one of {', '.join(get_args(Activation))}")
        if not self.std > 0:
            raise ValueError(f"std={self.std} must be positive")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden={self.hidden}: widths are at least 1")

    def build(self, spec: Spec) -> Model:
        """Return the network for spec. Raises ValueError when it does not fit."""
        return models.build(self._make, spec)

    def _make(self, spec: Spec) -> nn.Module:
        if self.architecture == "mlp":
            return mlp(spec, self.hidden, self.activation, self.std)
        chosen = self.architecture
        module: nn.Module = (plugins.import_attribute(chosen) if isinstance(chosen, str) else chosen)(spec)
        return module


NetworkOptions = Annotated[Network, arg(name="")]
"""The type of an algorithm's field ``network``: on the command line its options stand among the algorithm's own."""


def mlp(
    spec: Spec, hidden: tuple[int, ...] = (100, 100), activation: Activation = "relu", std: float = 1.0
) -> nn.Module:
    """A multilayer perceptron with layers ``hidden_0``, ..., ``head`` (and ``policy`` with the log-std, if Gaussian).

    Weights are Xavier-uniform, biases zero, as in the MAML paper's code; ``std`` is the initial action standard
    deviation. The input is flattened. Draws from the global generator, as any ``nn.Module`` does.
    """
    widths = (math.prod(spec.input_shape), *hidden)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        layers[f"hidden_{index}"] = linear(inputs, outputs)
        layers[f"activation_{index}"] = ACTIVATIONS[activation]()
    layers["head"] = linear(widths[-1], spec.output_size)
    if spec.kind == "continuous":
        layers["policy"] = LogStd(spec.output_size, std)
    if len(spec.input_shape) != 1:
        layers["flatten"] = nn.Flatten(-len(spec.input_shape))
        layers.move_to_end("flatten", last=False)
    return nn.Sequential(layers)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and no bias yet."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
