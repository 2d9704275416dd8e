import pytest
import torch
from torch import Tensor

from metarl.networks.derivatives.linear import product

pytestmark = pytest.mark.usefixtures("float64")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def derivatives(multiply, rows: Tensor, weight: Tensor, order: int) -> tuple[Tensor, ...]:
    found = (multiply(rows, weight),)
    for _ in range(order):
        total = sum(value.pow(3).sum() for value in found)
        found = torch.autograd.grad(total, (rows, weight), create_graph=True)
    return found


def test_by_hand():
    rows = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    weight = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 2.0], [1.0, -1.0]]])
    assert product(rows, weight).tolist() == [[[1.0, 2.0, 3.0]], [[6.0, 8.0, -1.0]]]


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("shared", [False, True], ids=["own weights", "shared weights"])
def test_derivatives_of_any_order(order, shared):
    rows, weight = random(3, 5, 4, seed=0), random(1 if shared else 3, 2, 4, seed=1)
    ours = derivatives(lambda rows, weight: product(rows, weight.expand(3, 2, 4)), rows, weight, order)
    plain = derivatives(lambda rows, weight: rows @ weight.mT, rows, weight, order)
    for value, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(value, expected)


def test_gradients_of_weights_lie_in_memory_as_weights_do():
    weight = random(3, 2, 4, seed=1)
    (gradient,) = torch.autograd.grad(product(random(3, 5, 4, seed=0), weight).sum(), weight)
    assert gradient.is_contiguous()
