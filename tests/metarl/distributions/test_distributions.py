"""Every distribution against PyTorch's, autograd's Hessian, finite differences, and moments of samples."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from metarl.distributions import Distribution
from metarl.distributions.laws import names

GAUSSIAN, CHOICE = Distribution("gaussian", (2,)), Distribution("categorical", (4,))
SEVERAL = Distribution("multi_categorical", (3, 3, 2, 4))
SQUASHED = Distribution("squashed", (2,), (-0.5, 2.0))
OWN = Distribution("support.laplace", (2,))
ALL = pytest.mark.parametrize("law", [GAUSSIAN, CHOICE, SEVERAL, SQUASHED, OWN], ids=lambda law: law.name)
DRAWS = 40_000

pytestmark = pytest.mark.usefixtures("float64")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(law: Distribution, *lead: int, seed: int = 0) -> Tensor:
    return torch.randn(*lead, law.width, generator=generator(seed))


def torch_kl(law: Distribution, old: Tensor, new: Tensor) -> Tensor:
    """The divergence by PyTorch, of each factor where there are several."""
    if law.name == "multi_categorical":
        pairs = zip(old.split([*law.sizes], -1), new.split([*law.sizes], -1), strict=True)
        return sum(
            (kl_divergence(Categorical(logits=one), Categorical(logits=two)) for one, two in pairs), torch.zeros(())
        )
    if law == OWN:
        return kl_divergence(law.as_torch(old), law.as_torch(new))
    if law.name == "categorical":
        return kl_divergence(Categorical(logits=old), Categorical(logits=new))
    # tanh is a bijection, which changes no divergence
    both = [Independent(Normal(one.chunk(2, -1)[0], one.chunk(2, -1)[1].exp()), 1) for one in (old, new)]
    return kl_divergence(*both)


def test_all_files_are_tested_here() -> None:
    assert names() == ["categorical", "gaussian", "multi_categorical", "squashed"]


def test_log_prob_by_hand() -> None:
    logits = torch.tensor([math.log(3.0) + 7, 7.0])  # probabilities 3/4 and 1/4
    assert Distribution("categorical", (2,)).log_prob(logits, torch.tensor(1)).item() == pytest.approx(math.log(0.25))
    # Two standard deviations from the mean in the first dimension (std 2), none in the second (std 1).
    outputs = torch.tensor([1.0, 5.0, math.log(2.0), 0.0])
    expected = -2 - math.log(2 * math.sqrt(2 * math.pi)) - math.log(math.sqrt(2 * math.pi))
    assert GAUSSIAN.log_prob(outputs, torch.tensor([5.0, 5.0])).item() == pytest.approx(expected)
    # The mean of -1, squashed into [-1/2, 2]: the density is divided by the slope, 5/4 (1 - tanh^2), in both.
    squashed = 0.75 + 1.25 * math.tanh(-1)
    slope = 1.25 * (1 - math.tanh(-1) ** 2)
    expected = 2 * (-math.log(math.sqrt(2 * math.pi)) - math.log(slope))
    found = SQUASHED.log_prob(torch.tensor([-1.0, -1.0, 0.0, 0.0]), torch.tensor([squashed, squashed]))
    assert found.item() == pytest.approx(expected)
    # Choices of probability 1/3, 1/3, 1/2 and 1/4, whatever they are.
    assert SEVERAL.log_prob(torch.zeros(12), torch.tensor([0, 2, 1, 3])).item() == pytest.approx(-math.log(72))


def test_kl_by_hand() -> None:
    half, skewed = torch.zeros(2), torch.tensor([math.log(3.0), 0.0])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert Distribution("categorical", (2,)).kl(half, skewed).item() == pytest.approx(expected)
    twice = Distribution("multi_categorical", (2, 2))
    assert twice.kl(half.repeat(2), skewed.repeat(2)).item() == pytest.approx(2 * expected)
    # KL(N(0, 1) || N(1, 2^2)) = ln 2 + (1 + 1) / 8 - 1 / 2, in each of two dimensions.
    old, new = torch.zeros(4), torch.tensor([1.0, -1.0, math.log(2.0), math.log(2.0)])
    assert GAUSSIAN.kl(old, new).item() == pytest.approx(2 * (math.log(2) - 0.25))


@ALL
def test_log_prob_and_kl_are_those_of_torch(law: Distribution) -> None:
    old, new = made(law, 4, 3, 5), made(law, 4, 3, 5, seed=1)
    actions = law.sample(old, generator(1))
    torch.testing.assert_close(law.log_prob(new, actions), law.as_torch(new).log_prob(actions))
    torch.testing.assert_close(law.kl(old, new), torch_kl(law, old, new))
    assert (law.kl(old, old).abs() < 1e-14).all()


@ALL
def test_kl_is_the_mean_difference_of_log_probs(law: Distribution) -> None:
    old, new = (made(law, seed=seed).expand(DRAWS, -1) for seed in (0, 1))
    actions = law.sample(old, generator())
    differences, expected = law.log_prob(old, actions) - law.log_prob(new, actions), law.kl(old, new)[0]
    error = differences.std() / DRAWS**0.5
    assert abs(differences.mean() - expected) < 5 * error
    assert error < 0.1 * expected, "so many draws tell"


@ALL
def test_fisher_product_is_the_hessian_of_the_kl_at_equal_outputs(law: Distribution) -> None:
    outputs, tangents = made(law, 6), made(law, 6, seed=1)
    for at, tangent in zip(outputs, tangents, strict=True):
        # Laplace's divergence has |x| in it, whose second derivative autograd takes for 0 at 0: near it is as good.
        near = at + 1e-7 if law == OWN else at
        matrix = hessian(lambda new, at=at: law.kl(at, new), near)
        rtol = 1e-5 if law == OWN else 1e-7
        torch.testing.assert_close(law.fisher_product(at, tangent), matrix @ tangent, rtol=rtol, atol=rtol)
    torch.testing.assert_close(law.fisher_product(outputs, tangents)[3], law.fisher_product(outputs[3], tangents[3]))


@ALL
def test_gradients_are_finite_differences(law: Distribution) -> None:
    outputs, other = made(law, 3), made(law, 3, seed=1)
    actions = law.sample(outputs, generator())
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda at: law.log_prob(at, actions).sum(),
        lambda at: law.kl(other, at).sum(),
        lambda at: law.kl(at, other).sum(),
    )
    for function in functions:
        slope = torch.func.grad(function)(outputs)
        step = 1e-6 * torch.randn(outputs.shape, generator=generator(2))
        difference = (function(outputs + step) - function(outputs - step)) / 2
        torch.testing.assert_close((slope * step).sum(), difference, rtol=1e-5, atol=1e-12)


def test_modes() -> None:
    assert CHOICE.mode(torch.tensor([[0.0, 2.0, 1.0, 1.0], [3.0, 2.0, 1.0, 0.0]])).tolist() == [1, 0]
    assert GAUSSIAN.mode(torch.tensor([0.5, -1.0, 2.0, 3.0])).tolist() == [0.5, -1.0]
    logits = torch.tensor([0.0, 1, 0, 5, 4, 3, 0, 1, 0, 0, 9, 0])
    assert SEVERAL.mode(logits).tolist() == [1, 0, 1, 2]
    expected = [0.75 + 1.25 * math.tanh(0.5), 0.75 - 1.25 * math.tanh(1)]
    assert SQUASHED.mode(torch.tensor([0.5, -1.0, 2.0, 3.0])).tolist() == pytest.approx(expected)


def test_gaussian_samples_have_the_moments_asked_for() -> None:
    outputs = torch.tensor([1.0, -2.0, math.log(0.5), math.log(3.0)]).expand(DRAWS, 4)
    actions = GAUSSIAN.sample(outputs, generator())
    # Five standard errors: std / 200 for the mean, std / (200 * sqrt(2)) for the standard deviation.
    torch.testing.assert_close(actions.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=5 * 3 / 200)
    torch.testing.assert_close(actions.std(0), torch.tensor([0.5, 3.0]), rtol=5 / 280, atol=0)
    assert abs(torch.corrcoef(actions.T)[0, 1]) < 5 / 200


def test_choices_have_the_frequencies_asked_for() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.199, 0.001])
    logits = probabilities.log() - 50
    ids = CHOICE.sample(logits.expand(DRAWS, 4), generator())
    torch.testing.assert_close(ids.bincount(minlength=4) / DRAWS, probabilities, rtol=0, atol=5 * 0.5 / 200)
    assert (ids == 3).any(), "rare actions are drawn too"
    # Several choices: the last has these, the others are uniform and independent of it.
    drawn = SEVERAL.sample(torch.cat([torch.zeros(8), logits]).expand(DRAWS, 12), generator())
    for column, size in enumerate(SEVERAL.sizes[:3]):
        frequencies = drawn[:, column].bincount(minlength=size) / DRAWS
        torch.testing.assert_close(frequencies, torch.full((size,), 1 / size), rtol=0, atol=5 * 0.5 / 200)
    torch.testing.assert_close(drawn[:, 3].bincount(minlength=4) / DRAWS, probabilities, rtol=0, atol=5 * 0.5 / 200)
    assert (torch.corrcoef(drawn.T.double()) - torch.eye(4)).abs().max() < 5 / 200


def test_squashed_samples_are_inside_and_as_likely_as_their_density_says() -> None:
    outputs = torch.tensor([0.3, -2.0, 0.0, math.log(2.0)])
    actions = SQUASHED.sample(outputs.expand(DRAWS, 4), generator())
    assert (actions > -0.5).all() and (actions < 2).all()
    # The frequency of an interval is the integral of the density of the first dimension.
    one, at = Distribution("squashed", (1,), (-0.5, 2.0)), outputs[[0, 2]]
    grid = torch.linspace(-0.4995, 1.9995, 2500).unsqueeze(-1)  # the middles of 2500 intervals
    density = one.log_prob(at.expand(len(grid), -1), grid).exp()
    assert float(density.sum() * 0.001) == pytest.approx(1, abs=1e-3)
    for low, high in ((-0.5, 0.0), (0.0, 1.0), (1.0, 2.0)):
        within = (actions[:, 0] >= low) & (actions[:, 0] < high)
        integral = density[((grid >= low) & (grid < high)).squeeze(-1)].sum() * 0.001
        assert float(within.double().mean()) == pytest.approx(float(integral), abs=5 * 0.5 / 200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squashed_actions_at_the_ends_have_finite_log_probs(dtype: torch.dtype) -> None:
    outputs = torch.tensor([50.0, -50.0, 0.0, 0.0], dtype=dtype).requires_grad_()
    action = SQUASHED.sample(outputs, generator())
    assert (action >= -0.5).all() and (action <= 2).all()
    log_prob = SQUASHED.log_prob(outputs, action.detach())
    (slope,) = torch.autograd.grad(log_prob, outputs)
    assert log_prob.isfinite() and slope.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_of_extreme_logits(dtype: torch.dtype) -> None:
    logits = torch.tensor([-1e30, 0.0, -math.inf], dtype=dtype).expand(1000, 3)
    assert (Distribution("categorical", (3,)).sample(logits, generator()) == 1).all()


@ALL
def test_samples_come_from_the_generator_alone(law: Distribution) -> None:
    outputs = made(law, 4, 3, 5)
    before = torch.get_rng_state()
    first, again, other = (law.sample(outputs, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (4, 3, 5, *law.action_shape)
    assert first.dtype == (torch.int64 if law.actions == "discrete" else torch.float64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    shared = generator(1)
    assert torch.equal(law.sample(outputs, shared), first)
    assert not torch.equal(law.sample(outputs, shared), first), "the generator moves on"
    assert torch.equal(torch.get_rng_state(), before)


@ALL
def test_certain_policies_always_take_the_mode(law: Distribution) -> None:
    outputs = made(law, 50)
    certain = law.certain(outputs)
    drawn = law.sample(certain, generator())
    torch.testing.assert_close(drawn, law.mode(outputs))
    assert torch.equal(law.drawn_log_prob(certain, drawn), torch.zeros(50))
    assert torch.equal(law.drawn_log_prob(outputs, drawn), law.log_prob(outputs, drawn))


@ALL
def test_what_torch_gives_agrees(law: Distribution) -> None:
    outputs = made(law, 7)
    found = law.as_torch(outputs)
    torch.testing.assert_close(found.mode, law.mode(outputs))
    assert found.sample().shape == (7, *law.action_shape) and found.sample((3,)).shape == (3, 7, *law.action_shape)
    if law.name != "squashed":
        many = outputs.expand(DRAWS // 4, -1, -1)
        expected = -law.log_prob(many, law.sample(many, generator())).mean(0)
        torch.testing.assert_close(found.entropy(), expected, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match=r"nan|constraint"):
        law.as_torch(torch.full((law.width,), torch.nan))


def test_actions_as_numbers_for_networks() -> None:
    assert CHOICE.encode(torch.tensor(2), torch.float32).tolist() == [0, 0, 1, 0]
    found = SEVERAL.encode(torch.tensor([1, 0, 1, 3]), torch.float64)
    assert found.tolist() == [0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    moves = torch.randn(3, 2, generator=generator())
    assert torch.equal(GAUSSIAN.encode(moves, torch.float64), moves)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no distribution 'beta': expected categorical, .* 'package\.module'"):
        _ = Distribution("beta", (2,)).width
    with pytest.raises(ValueError, match=r"'no\.such' cannot be imported: No module named 'no'"):
        _ = Distribution("no.such", (2,)).width
    with pytest.raises(ValueError, match=r"the module os\.path is no distribution: it has no ACTIONS, BOUNDED, act,"):
        _ = Distribution("os.path", (2,)).width
