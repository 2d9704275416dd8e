"""Multilayer perceptrons over stacked parameters ``[task, *shape]``, with first and second derivatives by hand.

A meta-gradient differentiates the inner loop's gradients, and conjugate gradients do so ten times over. The time goes
into passes over the activations: autograd takes some fifty for one product with these second derivatives. By hand
(Pearlmutter, Fast exact multiplication by the Hessian, 1994) it takes sixteen.

Everything here can be differentiated to any order: what the inner loop needs by hand, the rest by plain operations.
Parameters are sequences: weight ``[task, out, in]`` and bias ``[task, out]``, layer by layer.

Names: the Jacobian is that of the outputs in the parameters. ``_pull`` multiplies by its transpose (a vjp, backwards),
``_push`` by the Jacobian itself (a jvp, forwards), and ``_bend`` by the Hessian of the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

Activation = Literal["tanh", "relu"]
Loss = Callable[..., Tensor]
"""``(outputs [task, row, out], *extras) -> [task]``; whatever else it uses is constant."""
Tensors = tuple[Tensor, ...]
NARROW = 8
"""Largest input width for which products with a Hessian share intermediate results (see _Narrow)."""


def outputs(activation: Activation, params: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Run a perceptron: constant inputs ``[task, row, in]`` to outputs ``[task, row, out]``."""
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

    ``extras``, ``[task, ...]``, are parameters that the loss reads besides the outputs, such as a policy's log-std.
    """
    point, gradient = _evaluate(activation, params, extras, inputs, loss, differentiable)
    if not differentiable:
        return gradient
    result: Tensors = _Gradient.apply(point, gradient, *params, *extras)  # type: ignore[no-untyped-call]
    return result


class _Pass(NamedTuple):
    """The results of a forward pass, without a graph."""

    activation: Activation
    weights: list[Tensor]
    hidden: list[Tensor]  # the inputs, then the hidden layers: [task, row, width]


def _forward(activation: Activation, params: Sequence[Tensor], inputs: Tensor) -> tuple[_Pass, Tensor]:
    weights, biases = [value.detach() for value in params[::2]], [value.detach() for value in params[1::2]]
    hidden: list[Tensor] = []
    values = inputs
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        hidden.append(values)
        values = torch.baddbmm(bias.unsqueeze(1), values, weight.mT)
        if layer + 1 < len(weights):
            values = values.tanh_() if activation == "tanh" else values.relu_()
    return _Pass(activation, weights, hidden), values


def _slope_(run: _Pass, layer: int, values: Tensor) -> Tensor:
    """Multiply by the derivative of the activation of hidden layer ``layer``, in place.

    PyTorch's kernels compute it from the activation's output h: 1 - h^2 for tanh, and h > 0 for ReLU.
    """
    if run.activation == "tanh":
        torch.ops.aten.tanh_backward.grad_input(values, run.hidden[layer], grad_input=values)
    else:
        torch.ops.aten.threshold_backward.grad_input(values, run.hidden[layer], 0, grad_input=values)
    return values


def _pull(run: _Pass, cotangent: Tensor, twice: bool = False) -> tuple[Tensors, list[Tensor], list[Tensor]]:
    """Multiply by the transposed Jacobian: backpropagation.

    Returns the gradient, every layer's cotangents before its activation, and, with ``twice``, the bends of the tanh
    layers. A bend is the cotangent after the activation times tanh'' / tanh' = -2 h, with h the activation's output:
    times the tangent of h, it is the layer's second-derivative term.
    """
    gradient: list[Tensor] = []
    before = [cotangent]
    bends: list[Tensor] = []
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
    # The narrower factor first: in the other order, a product with few columns takes a CPU as long as one with sixty.
    narrow = hidden.shape[-1] < before.shape[-1]
    return torch.bmm(hidden.mT, before).mT if narrow else torch.bmm(before.mT, hidden)


def _push(run: _Pass, tangents: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Multiply by the Jacobian; also return the tangents of the hidden layers.

    For parameter tangents V and c of a layer with weights W: t_out = h V' + c + t_in W', then times the slope.
    """
    moved: list[Tensor] = []
    for layer, hidden in enumerate(run.hidden):
        weight, bias = tangents[2 * layer : 2 * layer + 2]
        tangent = torch.baddbmm(bias.unsqueeze(1), hidden, weight.mT)
        if moved:  # the inputs are constant: the first layer has no tangent from below
            tangent = tangent.baddbmm_(moved[-1], run.weights[layer].mT)
        if layer + 1 == len(run.hidden):
            return tangent, moved
        moved.append(_slope_(run, layer + 1, tangent))
    raise ValueError("a perceptron has at least one layer")


class _Narrow(NamedTuple):
    """Sums over rows that all products with one Hessian share, for narrow inputs.

    A tangent of the first hidden layer is the sum over the inputs i of slope * x_i * V[:, i], with V the direction's
    weights. Only V changes between products, so products of the arrays slope * x_i with other fixed arrays can be
    computed once. The bias counts as one more input, which is always 1.
    """

    outer: Tensor  # [task, in + 1, second width, first width]: the second layer's cotangents times slope and input
    bends: Tensor | None  # [task, in + 1, in + 1, first width]: bends times slope and both inputs; None for relu


@dataclass
class _Point:
    """The point at which a loss was differentiated, with all that products with its Hessian need."""

    run: _Pass
    loss: Loss
    inputs: Tensor
    variables: Tensors  # outputs and extras
    slopes: Tensors  # the loss's gradient in the variables, with its graph
    before: list[Tensor]  # cotangents of every layer before its activation
    bends: list[Tensor]  # see _pull; none for relu
    narrow: _Narrow | None = None
    products: int = 0  # how many have been computed


def _evaluate(
    activation: Activation,
    params: Sequence[Tensor],
    extras: Sequence[Tensor],
    inputs: Tensor,
    loss: Loss,
    twice: bool,
) -> tuple[_Point, Tensors]:
    """Return the loss's gradient in params and extras, and, with ``twice``, what its second derivatives need.

    Autograd sees only the loss, as a function of the outputs and extras. The network is differentiated by hand.
    """
    with torch.no_grad():
        run, values = _forward(activation, params, inputs)
    variables = (values.requires_grad_(), *(value.detach().requires_grad_() for value in extras))
    with torch.enable_grad():
        losses = loss(*variables)
        slopes = torch.autograd.grad(losses.sum(), variables, create_graph=twice, materialize_grads=True)
    with torch.no_grad():
        gradient, before, bends = _pull(run, slopes[0].detach(), twice)
    point = _Point(run, loss, inputs, variables, slopes, before, bends)
    return point, (*gradient, *(slope.detach() for slope in slopes[1:]))


def _bend(point: _Point, tangents: Sequence[Tensor]) -> Tensors:
    """Multiply by the loss's Hessian in params and extras (Pearlmutter 1994).

    Push the tangents forwards, multiply by the loss's Hessian in outputs and extras, then run the derivative of
    backpropagation: with b a layer's cotangents before its activation and h its inputs, the gradient of its weights is
    b' h, so its tangent is (tangent of b)' h + b' (tangent of h).
    """
    run = point.run
    layers = len(run.hidden)
    narrow = _narrow(point)
    pushed, moved = _push(run, tangents[: 2 * layers])
    # The Hessian of the loss in its variables is symmetric, so a vjp multiplies by it. Then tangent is that of b.
    tangent, *rest = _vjp(point.slopes, point.variables, (pushed, *tangents[2 * layers :]), keep=True)
    products: list[Tensor] = []
    for layer in reversed(range(layers)):
        weight = _weights(tangent, run.hidden[layer])
        products += [tangent.sum(1), weight]
        if layer == 1 and narrow is not None:  # the terms with moved[0] and tangents[2] are added by _add_
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
    """Return the shared sums from the second product on: a single product is faster without them."""
    inputs, first = point.run.hidden[0], point.run.weights[0]
    point.products += 1
    if point.products == 2 and len(point.run.hidden) > 1 and inputs.shape[-1] <= NARROW:
        inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], dim=2)  # the bias's input
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
    """Add the terms with the first layer's tangents to the products of the first two layers, in place."""
    second, bias, weight = products[-3:]  # weights of the second layer; bias and weights of the first
    first = torch.cat([tangents[0], tangents[1].unsqueeze(2)], dim=2).mT
    second.add_((narrow.outer * first.unsqueeze(2)).sum(1))
    rest = (narrow.outer * tangents[2].unsqueeze(1)).sum(2)
    if narrow.bends is not None:
        rest.add_((narrow.bends * first.unsqueeze(1)).sum(2))
    bias.add_(rest[:, -1])
    weight.add_(rest[:, :-1].mT)


class _Outputs(Function):
    """The outputs. Their derivative is the product with the transposed Jacobian."""

    @staticmethod
    def forward(ctx: Any, activation: Activation, inputs: Tensor, *params: Tensor) -> Tensor:
        ctx.run, result = _forward(activation, params, inputs)
        ctx.save_for_backward(*params)
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return None, None, *_pulled(ctx.run, ctx.saved_tensors, cotangent)


class _Pulled(Function):
    """The product with the transposed Jacobian as a function of the cotangent only."""

    @staticmethod
    def forward(ctx: Any, run: _Pass, params: Tensors, cotangent: Tensor) -> Tensors:
        ctx.run, ctx.params = run, params
        return _pull(run, cotangent)[0]

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> Any:
        return None, None, _pushed(ctx.run, ctx.params, tangents)


class _Pushed(Function):
    """The product with the Jacobian as a function of the tangents only."""

    @staticmethod
    def forward(ctx: Any, run: _Pass, params: Tensors, *tangents: Tensor) -> Tensor:
        ctx.run, ctx.params = run, params
        return _push(run, tangents)[0]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return None, None, *_pulled(ctx.run, ctx.params, cotangent)


class _Gradient(Function):
    """The gradient of a loss. Its derivative is the product with the loss's Hessian."""

    @staticmethod
    def forward(ctx: Any, point: _Point, gradient: Tensors, *params: Tensor) -> Tensors:
        ctx.point = point
        ctx.save_for_backward(*params)
        return gradient

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> Any:
        return None, None, *_bent(ctx.point, ctx.saved_tensors, tangents)


class _Bent(Function):
    """The product with a loss's Hessian as a function of the vector only; its derivative is itself, by symmetry."""

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
        # A jvp by two vjps: the vjp is linear in its cotangent, and its derivative in it is the jvp.
        result = _plain(run, values)
        cotangent = torch.zeros_like(result, requires_grad=True)
        pulled = torch.autograd.grad(result, values, cotangent, create_graph=True)
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
    """Multiply by the transposed Jacobian of values in inputs; values that do not depend on the inputs count 0."""
    pairs = [pair for pair in zip(values, cotangents, strict=True) if pair[0].requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(value) for value in inputs)
    dependent, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(
        dependent, inputs, weights, retain_graph=keep or again, create_graph=again, materialize_grads=True
    )


def _plain(run: _Pass, params: Sequence[Tensor]) -> Tensor:
    """Run the perceptron by plain operations, which autograd can differentiate to any order."""
    values = run.hidden[0]
    for layer in range(0, len(params), 2):
        values = torch.baddbmm(params[layer + 1].unsqueeze(1), values, params[layer].mT)
        if layer + 2 < len(params):
            values = torch.tanh(values) if run.activation == "tanh" else torch.relu(values)
    return values


def _and_rest(values: Tensors, params: Tensors, compute: Callable[..., Tensors]) -> Tensors:
    """Make values depend on the parameters too: add zeros whose derivatives are those of ``compute(*params)``.

    This is a node of its own, because autograd runs whole nodes. When only the derivative in the vector is needed, as
    in conjugate gradients, autograd skips this node.
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
            # Views are new nodes: tangents may depend on the parameters too, but that is not this node's derivative.
            params = tuple(
                value.view_as(value) if again and value.requires_grad else value.detach().requires_grad_()
                for value in ctx.saved_tensors
            )
            values = ctx.compute(*params)
            return None, None, *_vjp(values, params, cotangents, again)
