"""Matrix products of linear layers over stacked parameters, with derivatives in a fast form.

The product X W' of rows and weights has the derivatives C W and C' X for cotangents C. All further derivatives are
these three products again, each with weights in their own memory layout. Autograd's derivatives multiply transposed
matrices instead, which takes up to ten times as long for few rows and large weights (measured on a CPU). Sums over the
transposed gradients are slow, too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows ``[task, row, in]`` by weights ``[task, out, in]`` to ``[task, row, out]``."""
    result: Tensor = _Forward.apply(rows, weight)  # type: ignore[no-untyped-call]
    return result


class _Forward(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return torch.bmm(rows, weight.mT)

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        return (
            _Backward.apply(cotangents, weight) if ctx.needs_input_grad[0] else None,  # type: ignore[no-untyped-call]
            _Outer.apply(cotangents, rows) if ctx.needs_input_grad[1] else None,  # type: ignore[no-untyped-call]
        )


class _Backward(Function):
    """Cotangents ``[task, row, out]`` and weights ``[task, out, in]`` to cotangents of rows, ``[task, row, in]``."""

    @staticmethod
    def forward(ctx: Any, cotangents: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(cotangents, weight)
        return torch.bmm(cotangents, weight)

    @staticmethod
    def backward(ctx: Any, tangents: Tensor) -> Any:
        cotangents, weight = ctx.saved_tensors
        return (
            _Forward.apply(tangents, weight) if ctx.needs_input_grad[0] else None,  # type: ignore[no-untyped-call]
            _Outer.apply(cotangents, tangents) if ctx.needs_input_grad[1] else None,  # type: ignore[no-untyped-call]
        )


class _Outer(Function):
    """Cotangents ``[task, row, out]`` and rows ``[task, row, in]`` to cotangents of weights, ``[task, out, in]``."""

    @staticmethod
    def forward(ctx: Any, cotangents: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(cotangents, rows)
        return torch.bmm(cotangents.mT, rows)

    @staticmethod
    def backward(ctx: Any, tangents: Tensor) -> Any:
        cotangents, rows = ctx.saved_tensors
        return (
            _Forward.apply(rows, tangents) if ctx.needs_input_grad[0] else None,  # type: ignore[no-untyped-call]
            _Backward.apply(cotangents, tangents) if ctx.needs_input_grad[1] else None,  # type: ignore[no-untyped-call]
        )
