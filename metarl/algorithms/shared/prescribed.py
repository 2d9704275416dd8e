"""Losses whose gradient is not that of their value, for learners that know their meta-gradient in another way."""

import torch
from torch import Tensor

from metarl.types import Params


def prescribed(losses: Tensor, params: Params, gradients: Params) -> Tensor:
    """Return losses ``[task]`` whose gradients in ``params`` ``[*shape]`` are those given, ``[task, *shape]``."""
    total = losses.detach()
    for name, gradient in gradients.items():
        value = params[name]
        # The difference is zero; only its derivative counts.
        total = total + ((value - value.detach()) * gradient.detach()).flatten(1).sum(1)
    return total


def grounded(params: Params) -> Params:
    """Return the parameters without a graph, for inner loops that nothing is differentiated through."""
    return {name: value.detach() for name, value in params.items()}


def differentiates(params: Params) -> bool:
    """Return whether gradients in some of the parameters are asked for."""
    return torch.is_grad_enabled() and any(value.requires_grad for value in params.values())
