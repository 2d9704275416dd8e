"""Multilayer perceptrons over stacked parameters ``[task, *shape]``, with first and second derivatives by hand.

A meta-gradient differentiates the inner loop's gradients, and conjugate gradients do so ten times over. Autograd passes
over a perceptron's activations some fifty times for one product with these second derivatives, which is what takes the
time. By hand (Pearlmutter, Fast exact multiplication by the Hessian, 1994) it takes sixteen passes.

Everything here can be differentiated to any order: what the inner loop needs by hand, the rest by plain operations.
Parameters are tuples: weight ``[task, out, in]`` and bias ``[task, out]``, layer by layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

Activation = Literal["tanh", "relu"]
Loss = Callable[..., Tensor]
"""``(outputs [task, row, out], *extras) -> [task]``, of constants beside them."""
Tensors = tuple[Tensor, ...]
NARROW = 8
"""Inputs up to which products with a Hessian share what they have in common (see _Narrow)."""


def outputs(activation: Activation, params: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Run a perceptron: inputs ``[task, row, in]``, which are constant, to outputs ``[task, row, out]``."""
    if torch.is_grad_enabled() and any(value.requires_grad for value in params):
        result: Tensor = _Outputs.apply(activation, inputs, *params)  # type: ignore[no-untyped-call]
        return result
    return _forward(activation, params, inputs)[1]


def loss_gradient(
    activation: Activation,
    params: Sequence[Tensor],
    extras: Sequence[Tensor],
    inputs: Tensor,
    loss: Loss,
    differentiable: bool,
) -> Tensors:
    """Return the gradient of the summed losses in params and extras.

    ``extras``, ``[task, ...]``, are what the loss depends on beside the outputs, such as a policy's log-std.
    """
    point, gradient = _evaluate(activation, params, extras, inputs, loss, differentiable)
    if not differentiable:
        return gradient
    result: Tensors = _Gradient.apply(point, gradient, *params, *extras)  # type: ignore[no-untyped-call]
    return result


class _Pass(NamedTuple):
    """A perceptron run forwards; nothing here has a graph."""

    activation: Activation
    weights: list[Tensor]
    hidden: list[Tensor]  # the inputs, then the hidden layers: [task, row, width]


def _forward(activation: Activation, params: Sequence[Tensor], inputs: Tensor) -> tuple[_Pass, Tensor]:
    weights, biases = [value.detach() for value in params[::2]], [value.detach() for value in params[1::2]]
    hidden, reached = list[Tensor](), inputs
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        hidden.append(reached)
        reached = torch.baddbmm(bias.unsqueeze(1), reached, weight.mT)
        if layer + 1 < len(weights):
            reached = reached.tanh_() if activation == "tanh" else reached.relu_()
    return _Pass(activation, weights, hidden), reached


def _slope_(run: _Pass, layer: int, values: Tensor) -> Tensor:
    """Multiply by the slope of the activation that gave hidden layer ``layer``, in place."""
    if run.activation == "tanh":
        torch.ops.aten.tanh_backward.grad_input(values, run.hidden[layer], grad_input=values)
    else:
        torch.ops.aten.threshold_backward.grad_input(values, run.hidden[layer], 0, grad_input=values)
    return values


def _pull(run: _Pass, cotangent: Tensor, twice: bool = False) -> tuple[Tensors, list[Tensor], list[Tensor]]:
    """Product with the transposed Jacobian; every layer's cotangents before its activation; and, for ``twice``, bends.

    The bends of a tanh layer are its cotangents times its second derivative over its first, -2 times its output.
    """
    gradient, before, bends = list[Tensor](), [cotangent], list[Tensor]()
    for layer in reversed(range(len(run.hidden))):
        gradient += [before[-1].sum(1), _weights(before[-1], run.hidden[layer])]
        if layer:
            after = torch.bmm(before[-1], run.weights[layer])
            if twice and run.activation == "tanh":
                bends.append((after * run.hidden[layer]).mul_(-2))
            before.append(_slope_(run, layer, after))
    return tuple(gradient[::-1]), before[::-1], bends[::-1]


def _weights(before: Tensor, hidden: Tensor) -> Tensor:
    """Gradient of a layer's weights ``[task, out, in]`` from its cotangents ``[task, row, out]`` and inputs."""
    # The narrower factor first: the other way round, a few columns take a CPU as long as sixty.
    narrow = hidden.shape[-1] < before.shape[-1]
    return torch.bmm(hidden.mT, before).mT if narrow else torch.bmm(before.mT, hidden)


def _push(run: _Pass, tangents: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Product with the Jacobian; and the tangents of the hidden layers."""
    moved, reached = list[Tensor](), None
    for layer, hidden in enumerate(run.hidden):
        weight, bias = tangents[2 * layer : 2 * layer + 2]
        tangent = torch.baddbmm(bias.unsqueeze(1), hidden, weight.mT)
        if reached is not None:
            tangent = tangent.baddbmm_(reached, run.weights[layer].mT)
        if layer + 1 == len(run.hidden):
            return tangent, moved
        reached = _slope_(run, layer + 1, tangent)
        moved.append(reached)
    raise ValueError("a perceptron has at least one layer")


class _Narrow(NamedTuple):
    """What products with a Hessian have in common where the inputs are few: sums over rows.

    The first hidden layer's tangents are then a few fixed arrays, slope times input, each scaled by a direction's
    weights: products of these arrays with whatever else is fixed serve all directions. An input of 1 is the bias's.
    """

    outer: Tensor  # [task, in + 1, second width, first width]: the second layer's cotangents times slope and input
    bends: Tensor | None  # [task, in + 1, in + 1, first width]: bends times slope and both inputs; None for relu


@dataclass
class _Point:
    """Where a loss was differentiated: what products with its Hessian need."""

    run: _Pass
    loss: Loss
    inputs: Tensor
    variables: Tensors  # outputs and extras
    slopes: Tensors  # the loss's gradient in them, with its graph
    before: list[Tensor]  # cotangents of every layer before its activation
    bends: list[Tensor]  # see _pull; none for relu
    narrow: _Narrow | None = None
    products: int = 0  # how many were asked for


def _evaluate(
    activation: Activation,
    params: Sequence[Tensor],
    extras: Sequence[Tensor],
    inputs: Tensor,
    loss: Loss,
    twice: bool,
) -> tuple[_Point, Tensors]:
    with torch.no_grad():
        run, reached = _forward(activation, params, inputs)
    variables = (reached.requires_grad_(), *(value.detach().requires_grad_() for value in extras))
    with torch.enable_grad():
        losses = loss(*variables)
        slopes = torch.autograd.grad(losses.sum(), variables, create_graph=twice, materialize_grads=True)
    with torch.no_grad():
        gradient, before, bends = _pull(run, slopes[0].detach(), twice)
    point = _Point(run, loss, inputs, variables, slopes, before, bends)
    return point, (*gradient, *(slope.detach() for slope in slopes[1:]))


def _bend(point: _Point, tangents: Sequence[Tensor]) -> Tensors:
    """Multiply by the loss's Hessian in params and extras."""
    run, layers, narrow = point.run, len(point.run.hidden), _narrow(point)
    pushed, moved = _push(run, tangents[: 2 * layers])
    tangent, *rest = _vjp(point.slopes, point.variables, (pushed, *tangents[2 * layers :]), keep=True)
    products: list[Tensor] = []
    for layer in reversed(range(layers)):
        weight = _weights(tangent, run.hidden[layer])
        products += [tangent.sum(1), weight]
        if layer == 1 and narrow is not None:
            tangent = _slope_(run, layer, torch.bmm(tangent, run.weights[layer]))
        elif layer:
            weight.baddbmm_(point.before[layer].mT, moved[layer - 1])
            spread = torch.bmm(tangent, run.weights[layer]).baddbmm_(point.before[layer], tangents[2 * layer])
            tangent = _slope_(run, layer, spread)
            if point.bends:
                tangent.addcmul_(point.bends[layer - 1], moved[layer - 1])
    if narrow is not None:
        _add_(narrow, tangents, products)
    return (*products[::-1], *rest)


def _narrow(point: _Point) -> _Narrow | None:
    """Return what products have in common, from the second one on: a single product is faster without."""
    inputs, first = point.run.hidden[0], point.run.weights[0]
    point.products += 1
    if point.products == 2 and len(point.run.hidden) > 1 and inputs.shape[-1] <= NARROW:
        inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], dim=2)
        spread = [column.unsqueeze(2).repeat(1, 1, first.shape[1]) for column in inputs.unbind(2)]
        outer = [torch.bmm(point.before[1].mT, _slope_(point.run, 1, values)) for values in spread]
        bends = None
        if point.bends:
            squares = (inputs.unsqueeze(3) * inputs.unsqueeze(2)).flatten(2)
            bends = torch.bmm(squares.mT, _slope_(point.run, 1, point.bends[0].clone()))
            bends = bends.view(len(bends), inputs.shape[2], inputs.shape[2], -1)
        point.narrow = _Narrow(torch.stack(outer, dim=1), bends)
    return point.narrow


def _add_(narrow: _Narrow, tangents: Sequence[Tensor], products: list[Tensor]) -> None:
    """Add to the products of the first two layers what comes from the first layer's tangents in every row, in place."""
    second, bias, weight = products[-3:]
    first = torch.cat([tangents[0], tangents[1].unsqueeze(2)], dim=2).mT
    second.add_((narrow.outer * first.unsqueeze(2)).sum(1))
    rest = (narrow.outer * tangents[2].unsqueeze(1)).sum(2)
    if narrow.bends is not None:
        rest.add_((narrow.bends * first.unsqueeze(1)).sum(2))
    bias.add_(rest[:, -1])
    weight.add_(rest[:, :-1].mT)


class _Outputs(Function):
    """The outputs, whose derivative is the product with the transposed Jacobian."""

    @staticmethod
    def forward(ctx: Any, activation: Activation, inputs: Tensor, *params: Tensor) -> Tensor:
        ctx.run, result = _forward(activation, params, inputs)
        ctx.save_for_backward(*params)
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return None, None, *_pulled(ctx.run, ctx.saved_tensors, cotangent)


class _Pulled(Function):
    """The product with the transposed Jacobian, as a function of the cotangent alone."""

    @staticmethod
    def forward(ctx: Any, run: _Pass, params: Tensors, cotangent: Tensor) -> Tensors:
        ctx.run, ctx.params = run, params
        return _pull(run, cotangent)[0]

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> Any:
        return None, None, _pushed(ctx.run, ctx.params, tangents)


class _Pushed(Function):
    """The product with the Jacobian, as a function of the tangents alone."""

    @staticmethod
    def forward(ctx: Any, run: _Pass, params: Tensors, *tangents: Tensor) -> Tensor:
        ctx.run, ctx.params = run, params
        return _push(run, tangents)[0]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return None, None, *_pulled(ctx.run, ctx.params, cotangent)


class _Gradient(Function):
    """The gradient of a loss, whose derivative is the product with its Hessian."""

    @staticmethod
    def forward(ctx: Any, point: _Point, gradient: Tensors, *params: Tensor) -> Tensors:
        ctx.point = point
        ctx.save_for_backward(*params)
        return gradient

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> Any:
        return None, None, *_bent(ctx.point, ctx.saved_tensors, tangents)


class _Bent(Function):
    """The product with a loss's Hessian, as a function of the vector alone: symmetric."""

    @staticmethod
    def forward(ctx: Any, point: _Point, params: Tensors, *tangents: Tensor) -> Tensors:
        ctx.point, ctx.params = point, params
        return _bend(point, tangents)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> Any:
        return None, None, *_bent(ctx.point, ctx.params, tangents)


def _pulled(run: _Pass, params: Tensors, cotangent: Tensor) -> Tensors:
    def compute(*values: Tensor) -> Tensors:
        return torch.autograd.grad(_plain(run, values), values, cotangent, create_graph=True)

    return _and_rest(_Pulled.apply(run, params, cotangent), params, compute)  # type: ignore[no-untyped-call]


def _pushed(run: _Pass, params: Tensors, tangents: Tensors) -> Tensor:
    def compute(*values: Tensor) -> Tensors:
        reached = _plain(run, values)
        cotangent = torch.zeros_like(reached, requires_grad=True)
        pulled = torch.autograd.grad(reached, values, cotangent, create_graph=True)
        return torch.autograd.grad(pulled, cotangent, tangents, create_graph=True)

    return _and_rest((_Pushed.apply(run, params, *tangents),), params, compute)[0]  # type: ignore[no-untyped-call]


def _bent(point: _Point, params: Tensors, tangents: Tensors) -> Tensors:
    def compute(*values: Tensor) -> Tensors:
        layers = 2 * len(point.run.hidden)
        losses = point.loss(_plain(point.run, values[:layers]), *values[layers:])
        slopes = torch.autograd.grad(losses.sum(), values, create_graph=True, materialize_grads=True)
        return _vjp(slopes, values, tangents, again=True)

    return _and_rest(_Bent.apply(point, params, *tangents), params, compute)  # type: ignore[no-untyped-call]


def _vjp(values: Tensors, inputs: Tensors, cotangents: Tensors, again: bool = False, keep: bool = False) -> Tensors:
    """Product with the transposed Jacobian of values in inputs, some of which may not depend on them."""
    pairs = [pair for pair in zip(values, cotangents, strict=True) if pair[0].requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(value) for value in inputs)
    live, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(
        live, inputs, weights, retain_graph=keep or again, create_graph=again, materialize_grads=True
    )


def _plain(run: _Pass, params: Sequence[Tensor]) -> Tensor:
    reached = run.hidden[0]
    for layer in range(0, len(params), 2):
        reached = torch.baddbmm(params[layer + 1].unsqueeze(1), reached, params[layer].mT)
        if layer + 2 < len(params):
            reached = torch.tanh(reached) if run.activation == "tanh" else torch.relu(reached)
    return reached


def _and_rest(values: Tensors, params: Tensors, compute: Callable[..., Tensors]) -> Tensors:
    """Let values depend on the parameters too: add zeros whose derivatives are those of ``compute(*params)``.

    A node apart, because autograd runs whole nodes: where only the way through the vector is asked for, as it is in
    conjugate gradients, this one is passed over.
    """
    if not (torch.is_grad_enabled() and any(value.requires_grad for value in params)):
        return values
    rest = _Rest.apply(compute, [value.shape for value in values], *params)  # type: ignore[no-untyped-call]
    return tuple(value + zeros for value, zeros in zip(values, rest, strict=True))


class _Rest(Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensors], shapes: list[torch.Size], *params: Tensor) -> Tensors:
        ctx.compute = compute
        ctx.save_for_backward(*params)
        return tuple(params[0].new_zeros(shape) for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views: the tangents may depend on the parameters too, and that way is not to be followed here.
            params = tuple(
                value.view_as(value) if again and value.requires_grad else value.detach().requires_grad_()
                for value in ctx.saved_tensors
            )
            values = ctx.compute(*params)
            return None, None, *_vjp(values, params, cotangents, again)
