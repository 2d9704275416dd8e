import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

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


def spread(size: int, rank: int, decades: float = 4, damping: float = 1e-5) -> tuple[Tensor, Tensor]:
    """A matrix like the KL's Hessian, and a target in its range: eigenvalues from 1 down, and the damping beyond."""
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator(), dtype=torch.float64))[0][:, :rank]
    eigenvalues = torch.logspace(0, -decades, rank, dtype=torch.float64)
    matrix = (basis * eigenvalues) @ basis.T + damping * torch.eye(size, dtype=torch.float64)
    return matrix, basis @ torch.randn(rank, generator=generator(1), dtype=torch.float64).mul(eigenvalues.sqrt())


def textbook(matrix: Tensor, target: Tensor, iterations: int) -> Tensor:
    solution, residual, direction = torch.zeros_like(target), target, target
    for _ in range(iterations):
        image = matrix @ direction
        length = (residual @ residual) / (direction @ image)
        solution, following = solution + length * direction, residual - length * image
        direction = following + (following @ following) / (residual @ residual) * direction
        residual = following
    return solution


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("decades", [0.1, 2, 4])
def test_conjugate_gradient_solves_a_system_in_as_many_iterations_as_it_has_unknowns(decades: float) -> None:
    matrix, target = spread(20, 20, decades)
    before, expected = target.clone(), torch.linalg.solve(matrix, target)
    solution, residual = conjugate_gradient(lambda x: matrix @ x, target, 20)
    torch.testing.assert_close(solution, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(residual, target - matrix @ solution, rtol=0, atol=1e-12)
    assert torch.equal(target, before)


@pytest.mark.parametrize("iterations", range(1, 11))
def test_conjugate_gradient_is_the_textbooks_on_a_matrix_of_good_condition(iterations: int) -> None:
    matrix, target = positive_definite(40), torch.randn(40, generator=generator(1), dtype=torch.float64)
    expected = textbook(matrix, target, iterations)
    solution, residual = conjugate_gradient(lambda x: matrix @ x, target, iterations)
    torch.testing.assert_close(solution, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(residual, target - matrix @ expected, rtol=1e-9, atol=1e-9)
    rounded, _ = conjugate_gradient(lambda x: matrix.float() @ x, target.float(), iterations)
    assert apart(rounded, expected) < 1e-5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("damping", [0.0, 1e-5])
@pytest.mark.parametrize(("rank", "allowed"), [(3, 1e-5), (5, 1e-5), (20, 1e-4)])
def test_conjugate_gradient_does_not_magnify_the_rounding_of_products(
    seed: int, damping: float, rank: int, allowed: float
) -> None:
    """Ten iterations: more than a matrix of rank 3 or 5 has something to say in; too few to solve one of rank 20."""
    matrix, target = spread(100, rank, decades=2 if rank < 10 else 4, damping=damping)
    noise = generator(seed)

    def rounded(vector: Tensor) -> Tensor:
        image = matrix.float() @ vector
        return image + 1e-7 * image.norm() * torch.nn.functional.normalize(torch.randn(100, generator=noise), dim=0)

    expected, _ = conjugate_gradient(lambda x: matrix @ x, target, 10)
    found, residual = conjugate_gradient(rounded, target.float(), 10)
    assert apart(found, expected) < allowed
    assert apart(target - residual.double(), matrix @ found.double()) < allowed


def test_conjugate_gradient_stops_where_a_matrix_has_no_more_to_say() -> None:
    matrix, target = spread(100, 3, decades=2)
    solved = [conjugate_gradient(lambda x: matrix.float() @ x, target.float(), count) for count in (3, 4, 30)]
    assert all(torch.equal(value, first) for pair in solved[1:] for value, first in zip(pair, solved[0], strict=True))
    assert not torch.equal(conjugate_gradient(lambda x: matrix.float() @ x, target.float(), 2)[0], solved[0][0])


def test_conjugate_gradient_does_not_follow_a_product_that_is_not_finite() -> None:
    target = torch.ones(3)
    solution, residual = conjugate_gradient(lambda x: x * torch.nan, target, 5)
    assert solution.tolist() == [0] * 3
    assert torch.equal(residual, target)


def test_conjugate_gradient_is_one_graph_whatever_its_numbers() -> None:
    matrix, long = spread(20, 20)
    short = spread(20, 3, decades=1)[1] + 0 * long

    def solve(matrix: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return conjugate_gradient(lambda x: matrix @ x, target, 10)

    graph = make_fx(solve)(matrix.float(), long.float())
    for given in (long, short, torch.zeros(20)):
        assert all(map(torch.equal, graph(matrix.float(), given.float()), solve(matrix.float(), given.float())))


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
