"""Meta-gradients, and finite differences of them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarl.types import Experience, Learner, Params


def gradient_of(loss: Callable[[Params], Tensor], params: Params) -> Params:
    """The gradient of a number in each parameter; zeros where it does not depend on one."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def meta_gradient(learner: Learner, params: Params, experience: Experience) -> Params:
    return gradient_of(lambda leaves: learner.meta_loss(leaves, experience)[0].mean(), params)


def assert_finite_differences(
    loss: Callable[[Params], Tensor],
    params: Params,
    found: Params,
    entries: int = 4,
    width: float = 1e-5,
    rel: float = 1e-5,
    atol: float = 1e-8,
) -> None:
    """Hold some entries of each parameter's gradient to central differences of the loss."""

    def at(name: str, index: int, by: float) -> float:
        moved = {key: value.clone() for key, value in params.items()}
        moved[name].view(-1)[index] += by
        with torch.no_grad():
            return float(loss(moved))

    for name, value in params.items():
        for index in torch.linspace(0, value.numel() - 1, min(entries, value.numel())).long().unique().tolist():
            expected = (at(name, index, width) - at(name, index, -width)) / (2 * width)
            assert float(found[name].view(-1)[index]) == pytest.approx(expected, rel=rel, abs=atol), (name, index)
