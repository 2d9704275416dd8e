import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.networks import layers, models, options
from metarl.types import Params, Spec

VECTOR = Spec((3,), 2, "continuous")
CHOICE = Spec((3,), 4, "discrete")
IMAGE = Spec((2, 8, 8), 5, "classification")

pytestmark = pytest.mark.usefixtures("float64")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stacked(model: models.Model, tasks: int) -> Params:
    """Different parameters for each task, with its axis in front; none is zero, as biases would be."""
    rows = [model.init(generator(task)) for task in range(tasks)]
    noise = generator(99)
    return {
        name: torch.stack([row[name] for row in rows]) + 0.1 * torch.randn(tasks, *rows[0][name].shape, generator=noise)
        for name in rows[0]
    }


def loop(module: nn.Module, params: Params, inputs: Tensor, lead: int) -> Tensor:
    """The plain reading of what ``apply`` promises: one task after another, through PyTorch's own module."""
    outputs = []
    for task in range(len(inputs)):
        own = {name: value[task] for name, value in params.items()}
        rows = functional_call(module, own, (inputs[task].flatten(0, lead - 2),))
        outputs.append(rows.unflatten(0, inputs.shape[1:lead]))
    return torch.stack(outputs)


class Residual(nn.Module):
    """A layer that no short cut knows: normalisation, a skip, and a parameter of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.gate = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.gate * self.inner(self.norm(inputs))


class Skip(nn.Sequential):
    """A subclass of a common layer that computes something else."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + super().forward(inputs)


class Doubled(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


class Shifted(nn.Tanh):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + self.shift)


def one_activation(spec: Spec) -> nn.Module:
    """One activation object in several places, as is often written."""
    activation = nn.Tanh()
    return nn.Sequential(nn.Linear(3, 6), activation, nn.Linear(6, 6), activation, nn.Linear(6, 4))


def tied(spec: Spec) -> nn.Module:
    """One layer twice, and two layers with one weight."""
    twice, activation = nn.Linear(3, 3), nn.Tanh()
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(twice, activation, twice, activation, first, activation, second, nn.Linear(3, 4))


def constant(spec: Spec) -> nn.Module:
    """Buffers that stay as they are: in a part of the network, and drawn when it was made."""
    frequencies = Scaled()
    frequencies.register_buffer("scale", torch.randn(3))
    return nn.Sequential(Scaled(), nn.Tanh(), nn.Linear(4, 3), frequencies)


def convolutional(spec: Spec) -> nn.Module:
    block = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(block, nn.Flatten(), nn.Linear(36, 5))


def batch_normalised(spec: Spec) -> nn.Module:
    """Two layers of which each lets the rows of one task, and of that alone, see each other."""
    norms = [nn.BatchNorm1d(6, affine=affine, track_running_stats=False) for affine in (True, False)]
    return nn.Sequential(nn.Linear(3, 6), norms[0], nn.ReLU(), nn.Linear(6, 6), norms[1], nn.Linear(6, 4))


NETWORKS: dict[str, tuple[Spec, Callable[[Spec], nn.Module]]] = {
    "gaussian, relu": (VECTOR, options.mlp),
    "gaussian, tanh": (VECTOR, lambda spec: options.mlp(spec, (7, 5), "tanh", 0.3)),
    "discrete, tanh": (CHOICE, lambda spec: options.mlp(spec, (7, 5), "tanh")),
    "linear": (CHOICE, lambda spec: options.mlp(spec, ())),
    "image as a vector": (IMAGE, lambda spec: options.mlp(spec, (6,))),
    "no bias": (CHOICE, lambda spec: nn.Sequential(nn.Linear(3, 6, bias=False), nn.GELU(), nn.Linear(6, 4))),
    "one layer": (CHOICE, lambda spec: nn.Linear(3, 4)),
    "custom": (CHOICE, lambda spec: nn.Sequential(nn.Linear(3, 6), Residual(6), nn.ReLU(), nn.Linear(6, 4))),
    "custom, whole": (Spec((4,), 4, "regression"), lambda spec: Residual(4)),
    "custom, gaussian": (VECTOR, lambda spec: nn.Sequential(Residual(3), nn.Linear(3, 2), layers.LogStd(2, 0.5))),
    "subclasses": (CHOICE, lambda spec: nn.Sequential(Skip(nn.Linear(3, 3), nn.Tanh()), Doubled(3, 4), Shifted(4))),
    "one activation": (CHOICE, one_activation),
    "tied": (CHOICE, tied),
    "convolutional": (IMAGE, convolutional),
    "constant buffers, whole": (CHOICE, lambda spec: Scaled()),
    "batch-normalised": (Spec((3,), 4, "classification"), batch_normalised),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_stacked_networks_equal_a_loop_over_tasks(name: str) -> None:
    spec, make = NETWORKS[name]
    model = models.build(make, spec)
    params = {name: value.requires_grad_() for name, value in stacked(model, 3).items()}
    inputs = torch.randn(3, 2, 3, *spec.input_shape, generator=generator(7))
    kept = inputs.clone()

    found = model.apply(params, inputs)
    assert found.shape == (3, 2, 3, spec.model_outputs)
    assert torch.equal(inputs, kept)
    expected = loop(make(spec), params, inputs, lead=3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    weights = torch.randn(found.shape, generator=generator(8))
    leaves = list(params.values())
    slopes, expected_slopes = (
        torch.autograd.grad((out.square() * weights).sum(), leaves, create_graph=True) for out in (found, expected)
    )
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        torch.testing.assert_close(slope, expected_slope, rtol=1e-9, atol=1e-10)
    curvatures = [
        torch.autograd.grad(sum(one.square().sum() for one in some), leaves, materialize_grads=True)
        for some in (slopes, expected_slopes)
    ]
    for curvature, expected_curvature in zip(*curvatures, strict=True):
        torch.testing.assert_close(curvature, expected_curvature, rtol=1e-8, atol=1e-9)


def test_constant_buffers_are_the_same_for_all_tasks_and_initialisations() -> None:
    model = models.build(constant, CHOICE)
    params, inputs = stacked(model, 3), torch.randn(3, 4, 3, generator=generator())
    assert not any("scale" in name for name in params)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = constant(CHOICE)
    torch.testing.assert_close(model.apply(params, inputs), loop(module, params, inputs, lead=2))


@pytest.mark.parametrize("name", ["gaussian, relu", "custom", "convolutional"])
def test_any_number_of_batch_axes(name: str) -> None:
    spec, make = NETWORKS[name]
    model = models.build(make, spec)
    params = stacked(model, 3)
    inputs = torch.randn(3, 4, *spec.input_shape, generator=generator())
    outputs = model.apply(params, inputs)
    torch.testing.assert_close(model.apply(params, inputs[:, 0]), outputs[:, 0])
    axes = model.apply(params, inputs.reshape(3, 2, 1, 2, *spec.input_shape))
    torch.testing.assert_close(axes, outputs.reshape(3, 2, 1, 2, spec.model_outputs))


def test_tasks_do_not_see_each_other() -> None:
    for spec, make in NETWORKS.values():
        model = models.build(make, spec)
        params, inputs = stacked(model, 3), torch.randn(3, 4, *spec.input_shape, generator=generator())
        changed = inputs.clone()
        changed[1] += 1
        before, after = model.apply(params, inputs), model.apply(params, changed)
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert not torch.equal(before[1], after[1])


def test_expanded_parameters_serve_as_they_are() -> None:
    model = models.build(options.mlp, VECTOR)
    single = model.init(generator())
    views = {name: value.expand(3, *value.shape) for name, value in single.items()}
    inputs = torch.randn(1, 4, 3, generator=generator()).expand(3, 4, 3)
    outputs = model.apply(views, inputs)
    torch.testing.assert_close(outputs[0], functional_call(options.mlp(VECTOR), single, (inputs[0],)))
    assert torch.equal(outputs[0], outputs[2])


def test_names_and_shapes_of_the_perceptron() -> None:
    params = models.build(options.mlp, VECTOR).init(generator())
    assert {name: tuple(value.shape) for name, value in params.items()} == {
        "hidden_0.weight": (100, 3),
        "hidden_0.bias": (100,),
        "hidden_1.weight": (100, 100),
        "hidden_1.bias": (100,),
        "head.weight": (2, 100),
        "head.bias": (2,),
        "policy.log_std": (2,),
    }
    image = models.build(lambda spec: options.mlp(spec, (6,)), IMAGE).init(generator())
    assert {name: tuple(value.shape) for name, value in image.items()} == {
        "hidden_0.weight": (6, 128),
        "hidden_0.bias": (6,),
        "head.weight": (5, 6),
        "head.bias": (5,),
    }


def test_initial_values_of_the_perceptron() -> None:
    params = models.build(lambda spec: options.mlp(spec, (200, 100), std=0.25), VECTOR).init(generator())
    for name, (outputs, inputs) in {"hidden_0": (200, 3), "hidden_1": (100, 200), "head": (2, 100)}.items():
        weight, bound = params[f"{name}.weight"], math.sqrt(6 / (inputs + outputs))
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.2)
        assert (params[f"{name}.bias"] == 0).all()
    assert params["policy.log_std"].tolist() == pytest.approx([math.log(0.25)] * 2)


def test_initialisation_depends_on_the_generator_alone() -> None:
    before = torch.get_rng_state()
    model = models.build(options.mlp, VECTOR)
    first = model.init(generator(1))
    torch.rand(5)
    unmoved = torch.get_rng_state()
    again, other = model.init(generator(1)), model.init(generator(2))
    assert torch.equal(torch.get_rng_state(), unmoved)
    torch.set_rng_state(before)
    models.build(options.mlp, VECTOR).init(generator(1))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["hidden_0.weight"], other["hidden_0.weight"])
    shared = generator(1)
    model.init(shared)
    assert not torch.equal(model.init(shared)["hidden_0.weight"], first["hidden_0.weight"])


def test_parameters_are_fresh_leaves_of_the_default_dtype() -> None:
    model = models.build(options.mlp, VECTOR)
    params = model.init(generator())
    assert all(value.dtype == torch.float64 and not value.requires_grad and value.is_leaf for value in params.values())
    params["head.weight"].fill_(0)
    assert model.init(generator())["head.weight"].any()


def test_the_standard_deviation_has_a_floor() -> None:
    model = models.build(lambda spec: options.mlp(spec, ()), VECTOR)
    params = stacked(model, 2)
    params["policy.log_std"][0] = -100
    outputs = model.apply(params, torch.zeros(2, 1, 3))
    assert outputs[0, 0, 2:].tolist() == pytest.approx([math.log(1e-6)] * 2)
    own = {name: value[0] for name, value in params.items()}
    single = functional_call(options.mlp(VECTOR, ()), own, torch.zeros(1, 3))
    torch.testing.assert_close(single, outputs[0])


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, -3.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs * self.scale)


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda spec: Counting(), r"keeps buffers \(calls\), which tasks would share .*track_running_stats=False"),
        (
            lambda spec: nn.Sequential(Counting(), nn.Linear(4, 4)),
            r"keeps buffers \(0.calls\), which tasks would",
        ),
        (lambda spec: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), r"keeps buffers \(1.running_mean, "),
        (lambda spec: nn.Linear(3, 5), r"outputs of shape \(2, 5\) where Spec.* asks for 4 outputs for each"),
        (lambda spec: nn.Sequential(nn.Linear(3, 4), nn.Flatten(0)), r"gives outputs of shape \(8,\)"),
        (lambda spec: nn.Sequential(nn.Linear(3, 4), nn.Unflatten(-1, (1, 4))), r"outputs of shape \(2, 1, 4\)"),
        (lambda spec: nn.Linear(2, 4), r"cannot run on inputs of shape \(3,\)"),
        (lambda spec: nn.Sequential(nn.Linear(3, 4), nn.Dropout()), "cannot run .* random operation"),
    ],
)
def test_networks_that_cannot_serve_are_refused(make: Callable[[Spec], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(make, CHOICE)


def test_a_gaussian_policy_needs_standard_deviations() -> None:
    with pytest.raises(ValueError, match="asks for 4 means and log standard deviations"):
        models.build(lambda spec: nn.Linear(3, 2), VECTOR)
