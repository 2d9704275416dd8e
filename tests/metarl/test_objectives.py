import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.synthetic import CONTINUOUS, DISCRETE, by_hand, rollout
from torch import Tensor
from torch.autograd.functional import hessian

from metarl import objectives
from metarl.distributions import Distribution
from metarl.types import Examples, Rollout, Spec

SURROGATES: tuple[objectives.Surrogate, ...] = ("log_likelihood", "likelihood_ratio", "dice")
SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=lambda spec: spec.kind)

CHOICE = Spec((1,), 3, "discrete").distribution

pytestmark = pytest.mark.usefixtures("float64")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hand_rollout() -> tuple[Tensor, Rollout]:
    """One task, two episodes of lengths 2 and 1; two actions, whose new probabilities are 3/4 and 1/4, old ones 1/2."""
    logits = torch.tensor([math.log(3.0), 0.0]).expand(1, 2, 2, 2)
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    actions = torch.tensor([[[0, 1], [1, 0]]])
    advantages = torch.tensor([[[2.0, -4.0], [1.0, 0.0]]])
    old = torch.full((1, 2, 2), math.log(0.5))
    return logits, by_hand(torch.zeros(1, 2, 2, 1), actions, old, torch.zeros(1, 2, 2), mask, advantages)


def test_surrogates_by_hand() -> None:
    logits, batch = hand_rollout()
    found = {name: objectives.surrogate(name, CHOICE, logits, batch).item() for name in SURROGATES}
    assert found["log_likelihood"] == pytest.approx(-(2 * math.log(0.75) - 4 * math.log(0.25) + math.log(0.25)) / 3)
    # Ratios 1.5, 0.5 and 0.5.
    assert found["likelihood_ratio"] == pytest.approx(-(1.5 * 2 - 0.5 * 4 + 0.5 * 1) / 3)
    # Products of ratios up to each step, less those before it: 1.5 - 1, 0.75 - 1.5 and 0.5 - 1.
    assert found["dice"] == pytest.approx(-(0.5 * 2 + 0.75 * 4 - 0.5 * 1) / 3)


def test_clipped_surrogate_by_hand() -> None:
    logits, batch = hand_rollout()
    # min(1.5 * 2, 1.2 * 2) + min(0.5 * -4, 0.8 * -4) + min(0.5 * 1, 0.8 * 1) over three steps.
    found = objectives.clipped_surrogate(CHOICE, logits, batch, clip=0.2)
    assert found.item() == pytest.approx(-(2.4 - 3.2 + 0.5) / 3)
    unclipped = objectives.clipped_surrogate(CHOICE, logits, batch, clip=0.6)
    torch.testing.assert_close(unclipped, objectives.surrogate("likelihood_ratio", CHOICE, logits, batch))


Loss = Callable[[Distribution, Tensor, Rollout], Tensor]
LOSSES: dict[str, Loss] = {
    **{
        name: lambda law, outputs, batch, name=name: objectives.surrogate(name, law, outputs, batch)
        for name in SURROGATES
    },
    "clipped": lambda law, outputs, batch: objectives.clipped_surrogate(law, outputs, batch, 0.2),
}


@SPECS
def test_every_loss_has_the_same_first_gradient_at_the_acting_policy(spec: Spec) -> None:
    outputs = torch.randn(4, 3, 5, spec.model_outputs, generator=generator(), requires_grad=True)
    batch = rollout(spec, 4, generator(1))
    batch = replace(batch, log_probs=spec.distribution.log_prob(outputs.detach(), batch.actions))
    assert 0 < batch.mask.mean() < 1
    gradients = {
        name: torch.autograd.grad(loss(spec.distribution, outputs, batch).sum(), outputs)[0]
        for name, loss in LOSSES.items()
    }
    for gradient in gradients.values():
        torch.testing.assert_close(gradient, gradients["log_likelihood"], rtol=1e-10, atol=1e-12)
    # The policy gradient by hand, for the first dimension of the means or the first logit.
    steps = batch.mask.sum((1, 2), keepdim=True)
    if spec.kind == "discrete":
        score = (batch.actions == 0).double() - outputs.softmax(-1)[..., 0]
    else:
        score = (batch.actions - outputs[..., :2])[..., 0] / outputs[..., 2].exp() ** 2
    expected = -score * batch.advantages * batch.mask / steps
    torch.testing.assert_close(gradients["dice"][..., 0], expected.detach(), rtol=1e-10, atol=1e-12)


@SPECS
@pytest.mark.parametrize("name", LOSSES)
def test_masked_steps_contribute_nothing(spec: Spec, name: str) -> None:
    outputs = torch.randn(4, 3, 5, spec.model_outputs, generator=generator(), requires_grad=True)
    batch = rollout(spec, 4, generator(1))
    ended = batch.mask == 0
    spoilt = replace(
        batch,
        # 1e4 standard deviations off, or 1e4 nats: the ratio would overflow.
        actions=batch.actions.masked_fill(ended.unsqueeze(-1), 1e4) if spec.kind == "continuous" else batch.actions,
        log_probs=batch.log_probs.masked_fill(ended, -1e9),
        advantages=batch.advantages.masked_fill(ended, 1e3),
    )
    losses = [LOSSES[name](spec.distribution, outputs, one) for one in (batch, spoilt)]
    gradients = [torch.autograd.grad(loss.sum(), outputs)[0] for loss in losses]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (gradients[1][ended] == 0).all()


def test_a_task_without_valid_steps_costs_nothing() -> None:
    logits, batch = hand_rollout()
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    assert objectives.masked_mean(torch.ones(1, 2, 2), empty.mask).tolist() == [0]
    assert [objectives.surrogate(name, CHOICE, logits, empty).item() for name in SURROGATES] == [0, 0, 0]


def one_step_losses(name: objectives.Surrogate, centred: bool) -> tuple[Tensor, Tensor]:
    """Hessians of a bandit's expected surrogate loss and of minus its expected reward, at one softmax policy."""
    rewards, logits = torch.tensor([1.0, -0.5, 2.0]), torch.linspace(-0.6, 0.7, 3)
    probabilities = logits.softmax(-1)
    advantages = rewards - probabilities @ rewards if centred else rewards

    def surrogate(new: Tensor) -> Tensor:
        # One episode of one step for each action, in the place of a task.
        column = [value.reshape(3, 1, 1) for value in (logits.log_softmax(-1), advantages, torch.ones(3))]
        actions = torch.arange(3).reshape(3, 1, 1)
        batch = by_hand(torch.ones(3, 1, 1, 1), actions, column[0], column[1], column[2], column[1])
        return probabilities @ objectives.surrogate(name, CHOICE, new.expand(3, 1, 1, 3), batch)

    return hessian(surrogate, logits), hessian(lambda new: -(new.softmax(-1) @ rewards), logits)


@pytest.mark.parametrize("centred", [False, True])
def test_second_derivatives_in_one_step(centred: bool) -> None:
    found, true = zip(*(one_step_losses(name, centred) for name in SURROGATES), strict=True)
    errors = [float((one - true[0]).norm() / true[0].norm()) for one in found]
    assert errors[1] < 1e-12, "likelihood_ratio"
    assert errors[2] < 1e-12, "dice"
    assert errors[0] > 0.5, "the log-likelihood leaves out the product of score functions"


# A two-step MDP with two states and two actions: P(s'=1 | s, a), rewards r(s, a), P(s_0 = 1) = 0.4. The policy shares
# its parameters between the states, so that derivatives mix time steps.
NEXT = torch.tensor([[0.2, 0.9], [0.7, 0.1]], dtype=torch.float64)
REWARDS = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)
START = torch.tensor([0.6, 0.4], dtype=torch.float64)
FEATURES = torch.tensor([[1.0, 0.3], [-0.4, 1.2]], dtype=torch.float64)
THETA = torch.linspace(-0.6, 0.7, 4, dtype=torch.float64)


def policy_logits(theta: Tensor, states: Tensor) -> Tensor:
    return (FEATURES @ theta.reshape(2, 2)).tanh()[states]


def trajectories() -> tuple[Tensor, Tensor, Tensor]:
    """All sixteen (s_0, a_0, s_1, a_1): states and actions ``[16, 2]``, and the chance that nature plays its part."""
    s0, a0, s1, a1 = torch.tensor(list(itertools.product((0, 1), repeat=4))).T
    nature = START[s0] * torch.where(s1 == 1, NEXT[s0, a0], 1 - NEXT[s0, a0])
    return torch.stack([s0, s1], 1), torch.stack([a0, a1], 1), nature


def expected_return(theta: Tensor) -> Tensor:
    states, actions, nature = trajectories()
    log_probs = CHOICE.log_prob(policy_logits(theta, states), actions)
    return (nature * log_probs.sum(1).exp()) @ REWARDS[states, actions].sum(1)


def reward_to_go(estimate: str) -> Tensor:
    """What stands for the advantages of the sixteen trajectories, ``[16, 2]``: Q, Q - V, or the rewards that follow."""
    states, actions, _ = trajectories()
    rewards = REWARDS[states, actions]
    if estimate == "returns":
        return torch.stack([rewards.sum(1), rewards[:, 1]], dim=1)
    probabilities = policy_logits(THETA, torch.arange(2)).softmax(-1)
    last_value = (probabilities * REWARDS).sum(1)
    quality = REWARDS + last_value[0] + NEXT * (last_value[1] - last_value[0])
    values = torch.stack([(probabilities * quality).sum(1)[states[:, 0]], last_value[states[:, 1]]], dim=1)
    qualities = torch.stack([quality[states[:, 0], actions[:, 0]], rewards[:, 1]], dim=1)
    return qualities - values if estimate == "Q - V" else qualities


def all_trajectories(estimate: str) -> tuple[Rollout, Tensor]:
    """Every trajectory as the one episode of a task of its own, and its probability under the acting policy."""
    states, actions, nature = trajectories()
    log_probs = CHOICE.log_prob(policy_logits(THETA, states), actions)
    advantages, ones = reward_to_go(estimate).unsqueeze(1), torch.ones(16, 1, 2)
    observations, log_probs = states.reshape(16, 1, 2, 1), log_probs.unsqueeze(1)
    batch = by_hand(observations, actions.unsqueeze(1), log_probs, 0 * ones, ones, advantages)
    return batch, nature * log_probs.sum((1, 2)).exp()


@pytest.mark.parametrize("estimate", ["Q", "Q - V", "returns"])
def test_second_derivatives_across_time_steps(estimate: str) -> None:
    batch, probabilities = all_trajectories(estimate)
    assert probabilities.sum().item() == pytest.approx(1)

    def loss(name: objectives.Surrogate) -> Callable[[Tensor], Tensor]:
        # The loss is a mean over the two time steps, the return a sum over them.
        return lambda theta: (
            2
            * probabilities
            @ objectives.surrogate(name, CHOICE, policy_logits(theta, batch.observations.squeeze(-1)), batch)
        )

    slope = torch.func.grad(expected_return)(THETA)
    for name in SURROGATES:
        torch.testing.assert_close(torch.func.grad(loss(name))(THETA), -slope, msg=f"{name} is no policy gradient")
    true = -hessian(expected_return, THETA)
    errors = {name: float((hessian(loss(name), THETA) - true).norm() / true.norm()) for name in SURROGATES}
    assert errors["dice"] < 1e-12
    assert errors["likelihood_ratio"] > 0.05, "it leaves out the products of scores across time steps"
    assert errors["log_likelihood"] > 0.3


def test_dice_is_the_change_of_the_return_away_from_the_acting_policy_too() -> None:
    batch, probabilities = all_trajectories("Q - V")
    moved = torch.tensor([1.0, -2.0, 0.5, 3.0])
    outputs = policy_logits(moved, batch.observations.squeeze(-1))
    change = -2 * probabilities @ objectives.surrogate("dice", CHOICE, outputs, batch)
    torch.testing.assert_close(change, expected_return(moved) - expected_return(THETA))


def test_supervised_losses_by_hand() -> None:
    outputs, targets = torch.tensor([[[1.0], [2.0]], [[0.0], [0.0]]]), torch.tensor([[[0.0], [4.0]], [[0.0], [1.0]]])
    assert objectives.loss("regression", outputs, Examples(inputs=outputs, targets=targets)).tolist() == [2.5, 0.5]
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]], [[0.0, math.log(4.0)], [0.0, math.log(4.0)]]])
    labelled = Examples(inputs=outputs, targets=torch.tensor([[0, 1], [1, 0]]))
    expected = torch.tensor([-(math.log(0.75) + math.log(0.5)) / 2, -(math.log(0.8) + math.log(0.2)) / 2])
    torch.testing.assert_close(objectives.loss("classification", logits, labelled), expected)
    scores = objectives.scores("classification", labelled, logits)
    assert set(scores) == {"loss", "accuracy"}
    # A tie goes to the first class.
    assert scores["accuracy"].tolist() == [0.5, 0.5]
    assert list(objectives.scores("regression", Examples(inputs=outputs, targets=targets), outputs)) == ["loss"]


def test_targets_are_not_broadcast() -> None:
    outputs = torch.zeros(2, 5, 1)
    with pytest.raises(ValueError, match=r"targets have shape \(2, 5\), expected \(2, 5, 1\)"):
        objectives.loss("regression", outputs, Examples(inputs=outputs, targets=torch.zeros(2, 5)))


def test_scores_of_episodes_are_undiscounted_returns() -> None:
    logits, batch = hand_rollout()
    batch = replace(batch, rewards=torch.tensor([[[1.0, 2.0], [5.0, 100.0]]]))
    assert objectives.scores("discrete", batch)["return"].tolist() == [4.0]  # (3 + 5) / 2: 100 came after the end
    with pytest.raises(ValueError, match="need the model's outputs"):
        objectives.scores("regression", Examples(inputs=logits, targets=logits))
