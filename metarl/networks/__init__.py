"""Networks over stacked parameters, ``[task, *shape]``, as pure functions, and the gradients of tasks' losses.

This package knows no learner and no family; it imports only the vocabulary, ``plugins`` and ``speed``. Start reading in
``models``. ``options`` holds the user's options, ``layers`` the batched layers, ``derivatives`` the second derivatives
written by hand.
"""

from metarl.networks.layers import MINIMUM_STD, log_std
from metarl.networks.models import Layout, Model, loss_gradient, stack
from metarl.networks.options import ACTIVATIONS, NETWORKS, Activation, Architecture, Network, NetworkOptions

__all__ = [
    "ACTIVATIONS",
    "MINIMUM_STD",
    "NETWORKS",
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
