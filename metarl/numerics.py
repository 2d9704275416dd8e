"""Vector arithmetic of the outer updates: parameters as one flat vector, conjugate gradients, Adam."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metarl.types import Params


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Join tensors into one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, params: Params) -> Params:
    """Cut a vector into tensors with the names and shapes of params."""
    pieces = torch.split(vector, [value.numel() for value in params.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(params.items(), pieces, strict=True)}


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of one or more tensors of one shape."""
    iterator = iter(tensors)
    total = next(iterator)
    for tensor in iterator:
        total = total + tensor
    return total


def near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether a tensor is what was expected, within a tolerance relative to its norm; never where one is nan."""
    return bool((found.double() - expected.double()).norm() <= tolerance * expected.double().norm())


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Solve ``product(x) = target`` for a symmetric positive definite product, starting from zero.

    Returns x and the residual ``target - product(x)``.
    """
    solution, residual, direction = torch.zeros_like(target), target, target
    tiny = torch.finfo(target.dtype).tiny
    norm = residual @ residual
    for _ in range(iterations):
        image = product(direction)
        # A residual of exactly zero (no gradient, or solved already) must stay zero, not become 0 / 0.
        length = norm / (direction @ image).clamp_min(tiny)
        solution, residual = solution + length * direction, residual - length * image
        norm, previous = residual @ residual, norm
        direction = residual + norm / previous.clamp_min(tiny) * direction
    return solution, residual


def adam_state(params: Params) -> dict[str, Any]:
    """Adam's step count and its two moments, as flat vectors."""
    zeros = torch.zeros_like(flatten(params.values()))
    return {"count": 0, "first": zeros, "second": zeros.clone()}


def adam_step(
    params: Params, state: dict[str, Any], gradient: Tensor, learning_rate: float
) -> tuple[Params, dict[str, Any]]:
    """One step of Adam with its usual constants (arXiv 1412.6980, algorithm 1)."""
    count = state["count"] + 1
    first = torch.lerp(gradient, state["first"], 0.9)
    second = torch.lerp(gradient.square(), state["second"], 0.999)
    step = first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
    moved = unflatten(flatten(params.values()) - learning_rate * step, params)
    return moved, {"count": count, "first": first, "second": second}
