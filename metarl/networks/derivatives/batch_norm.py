"""Batch norm with its second derivative by hand.

A meta-gradient differentiates the inner loop's gradients. PyTorch's own second derivative of batch norm passes over the
activations some fifty times. By hand it takes two more calls of PyTorch's kernels and seven passes. All arguments of
these kernels should be contiguous: with mixed memory layouts they are up to eighty times slower (measured on a CPU).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

_Three = tuple[Tensor, Tensor, Tensor]


def normalise(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise each channel of ``[item, channel, ...]`` by its mean and variance; weight, bias: ``[channel]``."""
    result: Tensor = _Normalised.apply(inputs.contiguous(), weight, bias, eps)  # type: ignore[no-untyped-call]
    return result


def _pull(cotangent: Tensor, inputs: Tensor, weight: Tensor | None, mean: Tensor, rate: Tensor, eps: float) -> _Three:
    """Multiply by the transposed Jacobian: return the cotangents of inputs, weight and bias."""
    return torch.ops.aten.native_batch_norm_backward(  # type: ignore[no-any-return]
        cotangent.contiguous(), inputs, weight, None, None, mean, rate, True, eps, [True, True, True]
    )


class _Normalised(Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        result, mean, rate = torch.native_batch_norm(inputs, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(inputs, weight)
        ctx.statistics = mean, rate, eps
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return *_Pulled.apply(cotangent, *ctx.saved_tensors, *ctx.statistics), None  # type: ignore[no-untyped-call]


class _Pulled(Function):
    """``_pull`` as a function of cotangent, inputs and weight. Mean and rate (1 / std) are functions of the inputs."""

    @staticmethod
    def forward(
        ctx: Any, cotangent: Tensor, inputs: Tensor, weight: Tensor, mean: Tensor, rate: Tensor, eps: float
    ) -> _Three:
        ctx.save_for_backward(cotangent, inputs, weight)
        ctx.statistics = mean, rate, eps
        return _pull(cotangent, inputs, weight, mean, rate, eps)

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> Any:
        # A third derivative may follow if gradients are enabled: then use plain operations, which have one.
        product = _plain if torch.is_grad_enabled() else _bend
        return *product(ctx.saved_tensors, (v, a, b), *ctx.statistics), None, None, None


def _bend(at: _Three, tangents: _Three, mean: Tensor, rate: Tensor, eps: float) -> _Three:
    """Multiply the tangents ``v, a, b`` of the results of ``_pull`` by its transposed Jacobian.

    With g the cotangent, x the normalised inputs, n values in a channel, and g' = (g - mean(g) - x mean(g x)) rate,
    ``_pull`` returns weight g', sum(g x) and sum(g). With v' defined like g', the results are, for the

    - cotangent: weight v' + a x + b,
    - weight: sum(g v'),
    - inputs: (a - s sum(v x)) g' - s sum(g x) v' - s sum(g v') x, with s = weight rate / n.
    """
    cotangent, inputs, weight = at
    v, a, b = tangents
    count = inputs.numel() / len(weight)
    pulled, product, _ = _pull(cotangent, inputs, None, mean, rate, eps)  # g' and sum(g x)
    bent, overlap, _ = _pull(v, inputs, None, mean, rate, eps)  # v' and sum(v x)
    of_weight = torch.mul(cotangent, bent).sum((0, *range(2, inputs.ndim)))
    spread = weight * rate / count
    of_inputs = pulled.mul_(_channels(a - spread * overlap, inputs))
    of_inputs.addcmul_(bent, _channels(-spread * product, inputs))
    of_inputs.add_(_affine(inputs, -spread * of_weight, torch.zeros_like(b), mean, rate, eps))
    of_cotangent = bent.mul_(_channels(weight, inputs)).add_(_affine(inputs, a, b, mean, rate, eps))
    return of_cotangent, of_inputs, of_weight


def _channels(values: Tensor, inputs: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (inputs.ndim - 2))


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rate: Tensor, eps: float) -> Tensor:
    """Return ``weight x + bias`` for the normalised inputs x."""
    # In evaluation mode, PyTorch's kernel does this in one pass; it wants the variance, rate^-2 - eps.
    return torch.native_batch_norm(inputs, weight, bias, mean, rate.pow(-2) - eps, False, 0.0, eps)[0]


def _plain(at: _Three, tangents: _Three, mean: Tensor, rate: Tensor, eps: float) -> _Three:
    """Compute ``_bend`` by PyTorch's own derivatives, which can be differentiated again."""
    # Views are new nodes: the cotangent may itself depend on the inputs, but only the direct dependence counts here.
    views = (value.view_as(value) if value.requires_grad else value.detach().requires_grad_() for value in at)
    cotangent, inputs, weight = views
    bias = torch.zeros_like(weight, requires_grad=True)
    result = torch.batch_norm(inputs, weight, bias, None, None, True, 0.0, eps, True)
    pulled = torch.autograd.grad(result, (inputs, weight, bias), cotangent, create_graph=True)
    differentiable = [pair for pair in zip(pulled, tangents, strict=True) if pair[0].requires_grad]
    values, weights = zip(*differentiable, strict=True)
    return torch.autograd.grad(  # type: ignore[return-value]
        values, (cotangent, inputs, weight), weights, create_graph=True, materialize_grads=True
    )
