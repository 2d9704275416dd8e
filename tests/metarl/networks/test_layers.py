"""Layers on stacked parameters against PyTorch's own, one task after another; statistics of batch norm by hand."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metarl.networks import layers
from metarl.networks.layers import LogStd

pytestmark = pytest.mark.usefixtures("float64")

TASKS, ITEMS = 3, 4
VECTOR, IMAGE, SERIES = (6,), (4, 7, 9), (6, 5)

LAYERS = {
    "linear": (VECTOR, lambda: nn.Linear(6, 5)),
    "linear, no bias": (VECTOR, lambda: nn.Linear(6, 5, bias=False)),
    "linear, further axes": (SERIES, lambda: nn.Linear(5, 3)),
    "convolution": (IMAGE, lambda: nn.Conv2d(4, 6, 3)),
    "convolution, no bias": (IMAGE, lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False)),
    "convolution, stride": (IMAGE, lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1)),
    "convolution, oblong": (IMAGE, lambda: nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 2))),
    "convolution, same": (IMAGE, lambda: nn.Conv2d(4, 6, 3, padding="same")),
    "convolution, dilated groups": (IMAGE, lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2)),
    "convolution, depthwise": (IMAGE, lambda: nn.Conv2d(4, 8, 3, groups=4)),
    "batch norm of images": (IMAGE, lambda: nn.BatchNorm2d(4, track_running_stats=False)),
    "batch norm of vectors": (VECTOR, lambda: nn.BatchNorm1d(6, eps=0.1, track_running_stats=False)),
    "batch norm of series": (SERIES, lambda: nn.BatchNorm1d(6, track_running_stats=False)),
    "batch norm, fixed": (IMAGE, lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False)),
    "group norm": (IMAGE, lambda: nn.GroupNorm(2, 4)),
    "layer norm of images": (IMAGE, lambda: nn.GroupNorm(1, 4, eps=0.1)),
    "group norm, fixed": (IMAGE, lambda: nn.GroupNorm(2, 4, affine=False)),
    "group norm of vectors": (VECTOR, lambda: nn.GroupNorm(3, 6)),
    "group norm of series": (SERIES, lambda: nn.GroupNorm(3, 6)),
    "max-pooling": (IMAGE, lambda: nn.MaxPool2d(2)),
    "max-pooling, overlapping": (IMAGE, lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)),
    "mean-pooling": (IMAGE, lambda: nn.AvgPool2d(3, stride=2)),
    "adaptive pooling": (IMAGE, lambda: nn.AdaptiveAvgPool2d((2, 1))),
    "flatten": (IMAGE, nn.Flatten),
    "log-std": (VECTOR, lambda: LogStd(6, 0.5)),
    "leaky relu": (IMAGE, lambda: nn.LeakyReLU(0.1)),
    "softplus": (IMAGE, lambda: nn.Softplus(2.0)),
}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stacked_parameters(layer):
    named = enumerate(layer.named_parameters())
    return {name: random(TASKS, *value.shape, seed=seed).requires_grad_() for seed, (name, value) in named}


def run(layer, own, inputs, reference=None):
    layer_function = layers.find(layer)
    assert layer_function is not None
    return layer_function(layer, own, inputs, reference)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_a_loop_over_tasks(name):
    shape, make = LAYERS[name]
    layer, inputs = make(), random(TASKS, ITEMS, *shape, seed=50).requires_grad_()
    own = stacked_parameters(layer)
    kept, found = inputs.detach().clone(), run(layer, own, inputs)
    each = [
        functional_call(layer, {name: value[task] for name, value in own.items()}, (items,))
        for task, items in enumerate(inputs)
    ]
    expected = torch.stack(each)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    assert torch.equal(inputs, kept)

    leaves = [inputs, *own.values()]
    weights = random(*found.shape, seed=51)
    slopes, wanted = (
        torch.autograd.grad((outputs.square() * weights).sum(), leaves, create_graph=True)
        for outputs in (found, expected)
    )
    torch.testing.assert_close(slopes, wanted, rtol=1e-9, atol=1e-10)
    curvatures, wanted = (
        torch.autograd.grad(sum(slope.square().sum() for slope in some), leaves, materialize_grads=True)
        for some in (slopes, wanted)
    )
    torch.testing.assert_close(curvatures, wanted, rtol=1e-8, atol=1e-9)


def doubled(kind):
    class Doubled(kind):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    return Doubled


@pytest.mark.parametrize(
    "layer",
    [
        doubled(nn.Linear)(6, 5),
        doubled(nn.ReLU)(),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Flatten(2),
        nn.Flatten(1, 2),
        nn.LayerNorm(6),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_compute_something_else_are_not_found(layer):
    assert layers.find(layer) is None


def test_statistics_by_hand():
    """Of two tasks with one feature: over all four items, over the first two, and over each alone."""
    layer = nn.BatchNorm1d(1, eps=0.0, track_running_stats=False)
    inputs = torch.tensor([[1.0, 3.0, 5.0, 11.0], [0.0, 2.0, 4.0, -6.0]]).unsqueeze(-1)
    own = {"weight": torch.tensor([[2.0], [1.0]]), "bias": torch.tensor([[10.0], [0.0]])}

    def said(reference):
        return run(layer, own, inputs, reference).squeeze(-1).tolist()

    # 1, 3, 5, 11 have the mean 5 and the variance 14, 0, 2, 4, -6 the mean 0 and the variance 14.
    root = math.sqrt(14)
    assert said(None)[0] == pytest.approx([10 - 8 / root, 10 - 4 / root, 10, 10 + 12 / root])
    assert said(None)[1] == pytest.approx([0, 2 / root, 4 / root, -6 / root])
    # 1, 3 have the mean 2 and the variance 1, and so have 0, 2, but for a mean of 1.
    assert said(2) == [[8, 12, 16, 28], [-1, 1, 3, -7]]
    assert said(4)[0] == pytest.approx(said(None)[0])
    assert run(nn.BatchNorm1d(1, eps=1.0, track_running_stats=False), {}, inputs, 0).tolist() == [[[0.0]] * 4] * 2


def test_an_image_alone_is_normalised_over_its_positions():
    layer = nn.BatchNorm2d(2, eps=0.0, track_running_stats=False)
    inputs = torch.tensor([[[[[1.0, 3.0]], [[0.0, 10.0]]], [[[5.0, 4.0]], [[2.0, 4.0]]]]])
    own = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([[0.0, 1.0]])}
    found = run(layer, own, inputs, 0)
    assert found.tolist() == [[[[[-1.0, 1.0]], [[-1.0, 3.0]]], [[[1.0, -1.0]], [[-1.0, 3.0]]]]]


@pytest.mark.parametrize(
    ("shape", "kind"), [(VECTOR, nn.BatchNorm1d), (IMAGE, nn.BatchNorm2d), (SERIES, nn.BatchNorm1d)]
)
@pytest.mark.parametrize("affine", [True, False])
def test_statistics_of_all_items_are_those_of_the_kernel(shape, kind, affine):
    """Both ways to compute them agree, with their derivatives."""
    layer, inputs = kind(shape[0], affine=affine, track_running_stats=False), random(TASKS, ITEMS, *shape, seed=3)
    own, leaves = stacked_parameters(layer), [inputs.requires_grad_()]
    leaves += own.values()
    kernel, ours = run(layer, own, inputs), run(layer, own, inputs, ITEMS)
    torch.testing.assert_close(ours, kernel, rtol=1e-11, atol=1e-12)
    slopes = [torch.autograd.grad(outputs.pow(3).sum(), leaves, create_graph=True) for outputs in (kernel, ours)]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-9, atol=1e-10)
    curvatures = [torch.autograd.grad(sum(one.square().sum() for one in some), leaves) for some in slopes]
    torch.testing.assert_close(curvatures[1], curvatures[0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("reference", [None, 2, 0])
def test_whom_an_item_sees(reference):
    """Of its own task: all, the first two, or none; never another task's."""
    layer, inputs = nn.BatchNorm2d(4, track_running_stats=False), random(TASKS, ITEMS, *IMAGE, seed=3)
    own = stacked_parameters(layer)
    before = run(layer, own, inputs, reference)
    for item in range(ITEMS):
        changed = inputs.clone()
        changed[1, item, :, 0, 0] += 1
        after = run(layer, own, changed, reference)
        moved = (after != before).flatten(2).any(2)
        everybody = reference is None or item < reference
        assert moved.tolist() == [[False] * 4, [everybody or other == item for other in range(4)], [False] * 4]


def test_the_log_std_has_a_floor_and_any_axes():
    values = torch.tensor([[0.0, -100.0], [1.0, -1.0]])
    means = random(2, 3, 5, 2, seed=0)
    found = layers.log_std(values, means)
    assert torch.equal(found[..., :2], means)
    assert found[0, 2, 4, 2:].tolist() == pytest.approx([0, math.log(1e-6)])
    assert found[1, 0, 0, 2:].tolist() == [1, -1]
