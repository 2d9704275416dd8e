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


ROUNDINGS = 2
"""Below so many units of rounding of the solution's product, a residual is noise. For Hessians of low rank it fell to
at most 0.4 of them once nothing was left to solve, and was at 7 or more before."""


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Solve ``product(x) = target`` for a symmetric positive definite product, starting from zero.

    Products are taken in the target's precision, all else is float64. Each residual is made orthogonal to those before
    it: rounding takes that from them as soon as the largest eigenvalues are solved for, and magnifies itself from there
    on (Golub and Van Loan, Matrix computations, section 10.3).

    The iterates stay where they are before a step to a solution whose product would be rounded by as much as the
    residual that is left (Higham, Accuracy and stability of numerical algorithms, section 17.5), or is not finite: the
    equations tell no more of it. A matrix of low rank, whose residual vanishes early, would send it anywhere.

    Returns x and the residual ``target - product(x)``.
    """
    wide, tiny = target.double(), torch.finfo(torch.float64).tiny
    rounding = ROUNDINGS * torch.finfo(target.dtype).eps
    solution, residual = torch.zeros_like(wide), wide
    fresh = direction = wide
    norm = start = wide.norm()
    largest, going, basis = torch.zeros_like(norm), norm > 0, wide.new_zeros(iterations, len(wide))
    for index in range(iterations):
        image = product(direction.to(target.dtype)).double()
        # A norm of exactly zero (no gradient, or solved already) must stay zero, not become 0 / 0.
        length = norm.square() / (direction @ image).clamp_min(tiny)
        further = solution + length * direction
        largest = torch.maximum(largest, image.norm() / direction.norm().clamp_min(tiny))
        going = going & (norm > rounding * (start + largest * further.norm()))
        solution = torch.where(going, further, solution)
        residual = torch.where(going, residual - length * image, residual)
        basis[index] = fresh / norm.clamp_min(tiny)
        fresh = residual - residual @ basis[: index + 1].T @ basis[: index + 1]
        norm, previous = fresh.norm(), norm
        direction = fresh + (norm / previous.clamp_min(tiny)).square() * direction
    return solution.to(target.dtype), residual.to(target.dtype)


def adam_state(params: Params) -> dict[str, Any]:
    """Adam's step count and its two moments, as flat vectors."""
    zeros = torch.zeros_like(flatten(params.values()))
    return {"count": 0, "first": zeros, "second": zeros.clone()}


def adam_step(
    params: Params, state: dict[str, Any], gradient: Tensor, learning_rate: float
) -> tuple[Params, dict[str, Any]]:
    """One step of Adam with its usual constants (arXiv 1412.6980, algorithm 1)."""
    direction, moments = adam_direction(state, gradient)
    return unflatten(flatten(params.values()) - learning_rate * direction, params), moments


def adam_direction(
    state: dict[str, Any], gradient: Tensor, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> tuple[Tensor, dict[str, Any]]:
    """Adam's step for a step size of -1 (arXiv 1412.6980, algorithm 1), and its next state."""
    count = state["count"] + 1
    first = torch.lerp(gradient, state["first"], beta1)
    second = torch.lerp(gradient.square(), state["second"], beta2)
    direction = first / (1 - beta1**count) / ((second / (1 - beta2**count)).sqrt() + epsilon)
    return direction, {"count": count, "first": first, "second": second}
