"""Derivatives by hand, to any order, against plain autograd through ``torch.nn.functional``, one task after another."""

from itertools import pairwise

import pytest
import torch
from support.synthetic import by_hand
from torch.func import functional_call
from torch.nn import functional

from metarl import objectives
from metarl.networks import models, options
from metarl.networks.derivatives import perceptron
from metarl.networks.options import Network
from metarl.types import Examples, Spec

pytestmark = pytest.mark.usefixtures("float64")

TASKS, ROWS = 3, 7
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}
DEPTHS = {"no hidden layer": (3, 2), "one hidden layer": (3, 5, 2), "two hidden layers": (3, 5, 4, 2)}
DEEP = DEPTHS["two hidden layers"]
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_depth = pytest.mark.parametrize("depth", DEPTHS)


def random(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(widths, tasks=TASKS):
    """Weight and bias of each layer, of which gradients are asked."""
    shapes = [shape for inputs, outputs in pairwise(widths) for shape in ((outputs, inputs), (outputs,))]
    return [random(tasks, *shape, seed=seed, scale=0.7).requires_grad_() for seed, shape in enumerate(shapes)]


def rows(width=3):
    return random(TASKS, ROWS, width, seed=50)


def plain(activation, params, inputs):
    """The plain reading: one task after another, layer after layer."""
    outputs = []
    for task, reached in enumerate(inputs):
        for layer in range(0, len(params), 2):
            reached = functional.linear(reached, params[layer][task], params[layer + 1][task])
            if layer + 2 < len(params):
                reached = ACTIVATIONS[activation](reached)
        outputs.append(reached)
    return torch.stack(outputs)


def derivatives(values, leaves, order, keep=True):
    """Gradients of a random sum of values, of a random sum of these gradients, and so on; ``keep`` the last's graph."""
    rng, found = torch.Generator().manual_seed(100), []
    for step in range(1, order + 1):
        summed = sum((value * torch.randn(value.shape, generator=rng)).sum() for value in values)
        if summed.requires_grad:
            values = torch.autograd.grad(summed, leaves, create_graph=keep or step < order, materialize_grads=True)
        else:  # constant from here on
            values = [torch.zeros_like(leaf) for leaf in leaves]
        found.append(values)
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@each_activation
@each_depth
def test_outputs_and_four_derivatives(activation, depth):
    params, inputs = layers(DEPTHS[depth]), rows()
    found, expected = perceptron.outputs(activation, params, inputs), plain(activation, params, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert_same(derivatives([found], params, 4), derivatives([expected], params, 4))


@each_activation
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_last_derivative_needs_no_graph(activation, order):
    params, inputs = layers(DEEP), rows()
    found = derivatives([perceptron.outputs(activation, params, inputs)], params, order, keep=False)
    assert not any(value.requires_grad for value in found[-1])
    assert_same(found, derivatives([plain(activation, params, inputs)], params, order))


def gaussian(outputs, log_std):
    """Outputs and log-std meet in it, and no derivative of it is constant."""
    deviation = (random(TASKS, ROWS, 2, seed=60) - outputs) * (-log_std.unsqueeze(1)).exp()
    return (0.1 * deviation.square().sum(-1) + log_std.sum(-1, keepdim=True)).mean(1).exp()


def cross_entropy(outputs, log_std):
    """Depends on the outputs alone, although there is a log-std."""
    targets = torch.arange(TASKS * ROWS).reshape(TASKS, ROWS) % 2
    return functional.cross_entropy(outputs.mT, targets, reduction="none").mean(1)


def apart(outputs, log_std):
    """Straight in the outputs, and curved in the log-std, which they do not meet."""
    return (outputs * random(TASKS, ROWS, 2, seed=61)).sum((1, 2)) + log_std.pow(3).sum(1)


def straight(outputs, log_std):
    """Without second derivatives."""
    return (outputs * random(TASKS, ROWS, 2, seed=61)).sum((1, 2)) + log_std.sum(1)


each_loss = pytest.mark.parametrize("loss", [gaussian, cross_entropy, apart, straight])


def log_std(tasks=TASKS):
    return random(tasks, 2, seed=40, scale=0.1).requires_grad_()


def plain_gradient(activation, params, extra, inputs, loss):
    leaves = [*params, extra]
    losses = loss(plain(activation, params, inputs), extra)
    return torch.autograd.grad(losses.sum(), leaves, create_graph=True, materialize_grads=True)


@each_activation
@each_depth
@each_loss
def test_loss_gradients_and_three_derivatives(activation, depth, loss):
    params, extra, inputs = layers(DEPTHS[depth]), log_std(), rows()
    found = perceptron.loss_gradient(activation, params, [extra], inputs, loss, differentiable=True)
    expected = plain_gradient(activation, params, extra, inputs, loss)
    assert_same([found], [expected])
    leaves = [*params, extra]
    assert_same(derivatives(found, leaves, 3), derivatives(expected, leaves, 3))


@each_activation
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_last_derivative_of_a_loss_gradient_needs_no_graph(activation, order):
    params, extra, inputs = layers(DEEP), log_std(), rows()
    leaves = [*params, extra]
    gradient = perceptron.loss_gradient(activation, params, [extra], inputs, gaussian, differentiable=True)
    found = derivatives(gradient, leaves, order, keep=False)
    assert not any(value.requires_grad for value in found[-1])
    assert_same(found, derivatives(plain_gradient(activation, params, extra, inputs, gaussian), leaves, order))


@each_activation
@pytest.mark.parametrize("inputs", [1, 3, perceptron.NARROW + 1])
@each_depth
def test_products_with_the_hessian_again_and_again(activation, inputs, depth):
    """As conjugate gradients take them: from the second on, those of few inputs share what they have in common."""
    params, extra, data = layers((inputs, *DEPTHS[depth][1:])), log_std(), rows(inputs)
    leaves = [*params, extra]
    found = perceptron.loss_gradient(activation, params, [extra], data, gaussian, differentiable=True)
    expected = plain_gradient(activation, params, extra, data, gaussian)
    for seed in range(4):
        vector = [random(*leaf.shape, seed=200 + 10 * seed + index) for index, leaf in enumerate(leaves)]
        ours, theirs = (torch.autograd.grad(values, leaves, vector, retain_graph=True) for values in (found, expected))
        assert_same([ours], [theirs])


@each_activation
def test_a_gradient_without_a_graph(activation):
    params, extra, inputs = layers(DEEP), log_std(), rows()
    expected = plain_gradient(activation, params, extra, inputs, gaussian)
    found = perceptron.loss_gradient(activation, params, [extra], inputs, gaussian, differentiable=False)
    assert not any(value.requires_grad for value in found)
    assert_same([found], [expected])
    with torch.no_grad():
        assert_same([perceptron.loss_gradient(activation, params, [extra], inputs, gaussian, False)], [expected])
        assert not perceptron.outputs(activation, params, inputs).requires_grad


@each_activation
def test_products_with_the_jacobian_and_its_transpose(activation):
    """As conjugate gradients take them: linear in a vector that stands for the cotangents, again and again."""
    params, inputs, vector = layers(DEEP), rows(), random(TASKS, ROWS, 2, seed=70)
    tangents = [random(*value.shape, seed=80 + index) for index, value in enumerate(params)]

    def products(outputs):
        cotangents = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, params, cotangents, create_graph=True)
        pushed = [torch.autograd.grad(pulled, cotangents, tangents, retain_graph=True)[0] for _ in range(2)]
        assert torch.equal(*pushed)
        return [pushed[0], *torch.autograd.grad(outputs, params, vector)]

    found, expected = (run(activation, params, inputs) for run in (perceptron.outputs, plain))
    assert_same([products(found)], [products(expected)])


@each_activation
def test_two_steps_of_descent_and_the_meta_gradient(activation):
    """The inner loop's use: gradients by hand at parameters that gradients by hand have moved."""
    start, extra, inputs = layers(DEEP), log_std(), rows()

    def meta_gradient(gradient_of, run):
        reached = [*start, extra]
        for _ in range(2):
            gradients = gradient_of(reached[:-1], reached[-1])
            reached = [value - 0.3 * gradient for value, gradient in zip(reached, gradients, strict=True)]
        return torch.autograd.grad(gaussian(run(activation, reached[:-1], inputs), reached[-1]).sum(), [*start, extra])

    found = meta_gradient(
        lambda params, own: perceptron.loss_gradient(activation, params, [own], inputs, gaussian, True),
        perceptron.outputs,
    )
    expected = meta_gradient(
        lambda params, own: plain_gradient(activation, params, own, inputs, gaussian),
        plain,
    )
    assert_same([found], [expected])


@each_activation
def test_parameters_that_all_tasks_share(activation):
    """Expanded, not copied: their gradients are sums over the tasks."""
    shared, extra, inputs = layers(DEEP, tasks=1), log_std(tasks=1), rows()
    leaves = [*shared, extra]
    views, own = [value.expand(TASKS, *value.shape[1:]) for value in shared], extra.expand(TASKS, 2)
    found = derivatives([perceptron.outputs(activation, views, inputs)], leaves[:-1], 3)
    assert_same(found, derivatives([plain(activation, views, inputs)], leaves[:-1], 3))
    gradient = perceptron.loss_gradient(activation, views, [own], inputs, gaussian, differentiable=True)
    expected = plain_gradient(activation, views, own, inputs, gaussian)
    assert_same([gradient], [expected])
    assert_same(derivatives(gradient, leaves, 2), derivatives(expected, leaves, 2))


@each_activation
@pytest.mark.parametrize("held", [(0, 1), (2, 3, 5), (4, 5), (0, 1, 2, 3, 4, 5)], ids=str)
def test_some_parameters_held_constant(activation, held):
    params, extra, inputs = layers(DEEP), log_std(), rows()
    for index in held:
        params[index].requires_grad_(False)
    leaves = [value for value in (*params, extra) if value.requires_grad]
    gradient = perceptron.loss_gradient(activation, params, [extra], inputs, gaussian, differentiable=True)
    everything = [value.detach().requires_grad_() for value in (*params, extra)]
    expected = plain_gradient(activation, everything[:-1], everything[-1], inputs, gaussian)
    assert_same([gradient], [expected])
    kept = [value for value, own in zip(everything, (*params, extra), strict=True) if own.requires_grad]
    assert_same(derivatives(gradient, leaves, 3), derivatives(expected, kept, 3))
    if len(held) < 6:
        found = derivatives([perceptron.outputs(activation, params, inputs)], leaves[:-1], 3)
        assert_same(found, derivatives([plain(activation, everything[:-1], inputs)], kept[:-1], 3))


@each_activation
def test_tasks_do_not_see_each_other(activation):
    params, extra, inputs = layers(DEEP), log_std(), rows()
    changed = inputs.clone()
    changed[1] += 1
    before, after = (perceptron.outputs(activation, params, given) for given in (inputs, changed))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    one, other = (
        perceptron.loss_gradient(activation, params, [extra], given, gaussian, True) for given in (inputs, changed)
    )
    assert all(torch.equal(value[[0, 2]], moved[[0, 2]]) for value, moved in zip(one, other, strict=True))
    assert not any(torch.equal(value[1], moved[1]) for value, moved in zip(one, other, strict=True))


def test_nothing_that_was_given_is_written_on():
    """The passes work in place: on tensors of their own."""
    params, extra, inputs = layers(DEEP), log_std(), rows()
    given = [*params, extra, inputs]
    kept = [value.detach().clone() for value in given]
    outputs = perceptron.outputs("relu", params, inputs)
    said = outputs.detach().clone()
    gradient = perceptron.loss_gradient("relu", params, [extra], inputs, gaussian, differentiable=True)
    told = [value.detach().clone() for value in gradient]
    derivatives(gradient, [*params, extra], 3)
    derivatives([outputs], params, 3)
    assert all(torch.equal(value, before) for value, before in zip(given, kept, strict=True))
    assert torch.equal(outputs, said)
    assert all(torch.equal(value, before) for value, before in zip(gradient, told, strict=True))


# Through a Model: any axes, a log-std, and some of the parameters adapted


def network(spec, activation):
    options = Network(hidden=(5, 4), activation=activation)
    model = options.build(spec)
    assert model.layout is not None
    single = [model.init(torch.Generator().manual_seed(task)) for task in range(TASKS)]
    params = {name: torch.stack([own[name] for own in single]) for name in single[0]}
    moved = {name: value + random(*value.shape, seed=90, scale=0.1) for name, value in params.items()}
    return model, {name: value.requires_grad_() for name, value in moved.items()}


def loop(spec, activation, params, inputs):
    """The same network as PyTorch's own module, one task after another."""
    module, lead = options.mlp(spec, (5, 4), activation), inputs.ndim - len(spec.input_shape)
    outputs = [
        functional_call(module, {name: value[task] for name, value in params.items()}, (own.flatten(0, lead - 2),))
        for task, own in enumerate(inputs)
    ]
    return torch.stack(outputs).reshape(*inputs.shape[:lead], -1)


def regression():
    spec = Spec((3,), 2, "regression")
    batch = Examples(inputs=random(TASKS, 6, 3, seed=1), targets=random(TASKS, 6, 2, seed=2))
    return spec, batch.inputs, lambda outputs: objectives.loss(spec.kind, outputs, batch)


def images():
    spec = Spec((2, 3, 3), 4, "classification")
    batch = Examples(inputs=random(TASKS, 6, 2, 3, 3, seed=1), targets=torch.arange(TASKS * 6).reshape(TASKS, 6) % 4)
    return spec, batch.inputs, lambda outputs: objectives.loss(spec.kind, outputs, batch)


def policy():
    spec, shape = Spec((3,), 2, "continuous"), (TASKS, 4, 5)
    values = [random(*shape, seed=seed) for seed in range(3)]
    batch = by_hand(random(*shape, 3, seed=5), random(*shape, 2, seed=6), *values[:2], torch.ones(shape), values[2])
    return (
        spec,
        batch.observations,
        lambda outputs: objectives.surrogate("likelihood_ratio", spec.distribution, outputs, batch),
    )


each_kind = pytest.mark.parametrize("kind", [regression, images, policy])


@each_activation
@each_kind
@pytest.mark.parametrize(
    "prefixes", [("",), ("head",), ("hidden_1", "head.bias"), ("policy", "hidden_0.weight")], ids=str
)
def test_gradients_in_some_of_the_parameters(kind, activation, prefixes):
    """What ANIL asks for; the meta-gradient still reaches all parameters."""
    spec, inputs, loss = kind()
    model, params = network(spec, activation)
    names = [name for name in params if name.startswith(prefixes)]
    found = models.loss_gradient(model, params, names, inputs, loss, second_order=True)
    assert list(found) == names
    losses = loss(loop(spec, activation, params, inputs))
    expected = torch.autograd.grad(losses.sum(), [params[name] for name in names], create_graph=True)
    leaves = list(params.values())
    assert_same([list(found.values())], [expected])
    assert_same(derivatives(list(found.values()), leaves, 2), derivatives(expected, leaves, 2))
    first = models.loss_gradient(model, params, names, inputs, loss)
    assert not any(value.requires_grad for value in first.values())
    assert_same([list(first.values())], [expected])


@each_activation
@each_kind
def test_outputs_of_any_number_of_axes(kind, activation):
    spec, inputs, _ = kind()
    model, params = network(spec, activation)
    leaves = list(params.values())
    folded = inputs.flatten(1, inputs.ndim - len(spec.input_shape) - 1)
    for given in (inputs, folded, folded.unflatten(1, (2, 1, -1))):
        found, expected = model.apply(params, given), loop(spec, activation, params, given)
        assert found.shape == (*given.shape[: given.ndim - len(spec.input_shape)], spec.model_outputs)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        assert_same(derivatives([found], leaves, 2), derivatives([expected], leaves, 2))


@each_activation
def test_gradients_in_the_inputs(activation):
    """Inputs are constants to the passes by hand: where their gradient is asked for, plain autograd runs."""
    spec, inputs, loss = regression()
    model, params = network(spec, activation)
    inputs.requires_grad_()
    leaves = [inputs, *params.values()]
    found, expected = model.apply(params, inputs), loop(spec, activation, params, inputs)
    assert_same(derivatives([found], leaves, 2), derivatives([expected], leaves, 2))
    gradient = list(models.loss_gradient(model, params, list(params), inputs, loss, second_order=True).values())
    wanted = torch.autograd.grad(loss(expected).sum(), list(params.values()), create_graph=True)
    assert_same(derivatives(gradient, leaves, 2), derivatives(wanted, leaves, 2))
