import pytest
import torch
from torch import Tensor

from metarl.networks.derivatives.batch_norm import normalise

pytestmark = pytest.mark.usefixtures("float64")

shapes = pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 5)], ids=["vectors", "images"])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def point(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Inputs away from zero, and a weight and a bias for each of three channels."""
    values = 2 * random(*shape, seed=0) + 1, random(3, seed=1), random(3, seed=2)
    return tuple(value.requires_grad_() for value in values)


def derivatives(normalise, at: tuple[Tensor, ...], order: int) -> tuple[Tensor, ...]:
    """Of a sum of cubes, of the sum of the cubes of its derivatives, and so on: every way that there is, is gone."""
    found = (normalise(*at),)
    for step in range(order):
        total = sum(value.pow(3).sum() for value in found)
        found = torch.autograd.grad(total, at, create_graph=step < order - 1)
    return found


def test_by_hand():
    inputs = torch.tensor([[1.0], [3.0]])  # mean 2, variance 1
    normalised = normalise(inputs, torch.tensor([10.0]), torch.tensor([0.5]), eps=3.0)
    assert normalised.tolist() == [[-4.5], [5.5]]


@shapes
@pytest.mark.parametrize("order", range(5))
def test_derivatives_are_those_of_the_kernel(shape, order):
    at = point(shape)
    ours = derivatives(lambda *values: normalise(*values, 1e-3), at, order)
    plain = derivatives(lambda *values: torch.batch_norm(*values, None, None, True, 0.0, 1e-3, False), at, order)
    for value, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(value, expected)


@shapes
def test_second_derivatives_by_finite_differences(shape):
    assert torch.autograd.gradgradcheck(lambda *values: normalise(*values, 1e-3), point(shape))


def test_a_weight_of_zero():
    inputs, _, bias = point((6, 3))
    at = inputs, torch.zeros(3, requires_grad=True), bias
    assert all(value.isfinite().all() for value in derivatives(lambda *values: normalise(*values, 1e-3), at, 2))


def test_memory_in_another_order_gives_the_same():
    inputs, weight, bias = point((6, 3))
    turned = inputs.detach().T.contiguous().T
    assert not turned.is_contiguous()
    assert torch.equal(normalise(turned, weight, bias, 1e-3), normalise(inputs, weight, bias, 1e-3))


def test_channels_do_not_see_each_other():
    inputs, weight, bias = (value.detach() for value in point((6, 3)))
    other = inputs.clone()
    other[:, 2] += random(6, seed=3)
    before, after = normalise(inputs, weight, bias, 1e-3), normalise(other, weight, bias, 1e-3)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])
