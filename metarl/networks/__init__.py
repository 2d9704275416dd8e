"""Networks over stacked parameters, ``[task, *shape]``, as pure functions, and the gradients of tasks' losses.

Only the vocabulary, plugins and ``speed`` may come in: no learner and no family. Start reading in ``models``;
``options`` are what users choose, ``layers`` the products behind them, ``derivatives`` second derivatives by hand.
"""

from metarl.networks.layers import MINIMUM_STD, log_std
from metarl.networks.models import Layout, Model, loss_gradient, stack
from metarl.networks.options import ACTIVATIONS, Activation, Architecture, Network, NetworkOptions

__all__ = [
    "ACTIVATIONS",
    "MINIMUM_STD",
    "Activation",
    "Architecture",
    "Layout",
    "Model",
    "Network",
    "NetworkOptions",
    "conditioning",
    "log_std",
    "loss_gradient",
    "models",
    "stack",
]
