import pytest
import torch
from torch import Tensor

from metarl.numerics import adam_state, adam_step, conjugate_gradient, flatten, sum_of, unflatten
from metarl.types import Params


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_params(dtype: torch.dtype = torch.float64) -> Params:
    shapes: dict[str, tuple[int, ...]] = {"weight": (3, 2), "scalar": (), "empty": (0, 4), "bias": (5,)}
    return {name: torch.randn(shape, generator=generator(), dtype=dtype) for name, shape in shapes.items()}


def positive_definite(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    root = torch.randn(size, size, generator=generator(), dtype=dtype)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=dtype)


def test_conjugate_gradient_solves_a_system() -> None:
    matrix, solution = positive_definite(20), torch.randn(20, generator=generator(1), dtype=torch.float64)
    target = matrix @ solution
    torch.testing.assert_close(conjugate_gradient(lambda x: matrix @ x, target, 40)[0], solution, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target, matrix @ solution, rtol=0, atol=0)


def test_conjugate_gradient_by_hand() -> None:
    # One iteration is one step of steepest descent, r'r / r'Ar long; two solve a system of two.
    matrix, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([2.0, 1.0])
    torch.testing.assert_close(conjugate_gradient(lambda x: matrix @ x, target, 1)[0], target * 5 / 9)
    torch.testing.assert_close(conjugate_gradient(lambda x: matrix @ x, target, 2)[0], torch.ones(2))
    assert conjugate_gradient(lambda x: matrix @ x, target, 0)[0].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conjugate_gradient_of_nothing_is_nothing(dtype: torch.dtype) -> None:
    matrix = positive_definite(4, dtype)
    found = conjugate_gradient(lambda x: matrix @ x, torch.zeros(4, dtype=dtype), 10)[0]
    assert found.dtype == dtype
    assert found.tolist() == [0] * 4


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_conjugate_gradient_stays_put_once_it_has_solved(scale: float) -> None:
    matrix = positive_definite(3, torch.float32)
    solution = torch.tensor([1.0, -2.0, 0.5]) * scale
    found = conjugate_gradient(lambda x: matrix @ x, matrix @ solution, 200)[0]
    torch.testing.assert_close(found / scale, solution / scale, rtol=1e-4, atol=1e-4)


def test_adam_is_pytorchs() -> None:
    params = some_params()
    leaves = [value.clone().requires_grad_() for value in params.values()]
    reference = torch.optim.Adam(leaves, lr=0.03)
    state, kept = adam_state(params), {name: value.clone() for name, value in params.items()}
    gradients = generator(1)
    start = params
    for count in range(20):
        # Some large, some tiny, some zero.
        gradient = torch.randn(12, generator=gradients, dtype=torch.float64) * torch.logspace(-9, 3, 12).double()
        gradient[count % 12] = 0
        for leaf, piece in zip(leaves, unflatten(gradient, params).values(), strict=True):
            leaf.grad = piece.clone()
        reference.step()
        params, state = adam_step(params, state, gradient, 0.03)
        for leaf, value in zip(leaves, params.values(), strict=True):
            torch.testing.assert_close(value, leaf.detach(), rtol=1e-12, atol=1e-14)
    assert state["count"] == 20
    assert all(torch.equal(start[name], value) for name, value in kept.items())


def test_adams_first_step_is_the_learning_rate_long() -> None:
    params = {"weight": torch.zeros(3)}
    moved, state = adam_step(params, adam_state(params), torch.tensor([5.0, -0.01, 0.0]), 0.1)
    torch.testing.assert_close(moved["weight"], torch.tensor([-0.1, 0.1, 0.0]))
    torch.testing.assert_close(state["first"], torch.tensor([0.5, -0.001, 0.0]))
    torch.testing.assert_close(state["second"], torch.tensor([0.025, 1e-7, 0.0]))


def test_vectors_of_parameters_and_back() -> None:
    params = some_params()
    vector = flatten(params.values())
    assert vector.shape == (12,)
    assert vector[:2].tolist() == params["weight"][0].tolist()
    back = unflatten(vector, params)
    assert list(back) == list(params)
    assert all(torch.equal(back[name], value) for name, value in params.items())
    transposed = {"weight": params["weight"].T}
    assert torch.equal(unflatten(flatten(transposed.values()), transposed)["weight"], params["weight"].T)
    with pytest.raises(RuntimeError):
        unflatten(vector[1:], params)


def test_sums_of_tensors_leave_the_first_one_alone() -> None:
    first, second = torch.ones(2), torch.full((2,), 2.0)
    assert sum_of(iter([first, second, second])).tolist() == [5, 5]
    assert sum_of([first]) is first
    assert first.tolist() == [1, 1]
