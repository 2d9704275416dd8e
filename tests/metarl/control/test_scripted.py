"""Scripted policies: functions of observations act in episodes, which are scored like those of learners."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from metarl import objectives
from metarl.control import GymnasiumFamily, RolloutError, Sampling, scripted
from metarl.seeding import stream
from metarl.types import Policy, Spec
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation

SMALL = Sampling(episodes=3, horizon=6)
NAVIGATION = PointNavigation(sampling=SMALL)
BANDIT = Bandit(arms=4, sampling=SMALL)
CARTS = GymnasiumFamily("CartPole-v1", spaces.Dict(gravity=spaces.Box(5.0, 15.0)), "attribute", SMALL)


def test_a_function_that_knows_the_goals_walks_to_them() -> None:
    tasks = NAVIGATION.sample(4, "test", stream(0, "tasks"))
    goals = tasks.parameters["goal"].unsqueeze(1)

    def towards(observations: Tensor) -> Tensor:
        return ((goals - observations) / NAVIGATION.action_unit).clamp(-1, 1)

    rollout = tasks.rollout(scripted(NAVIGATION.spec, towards), stream(0, "draw"))
    assert torch.equal(rollout.actions, torch.stack([towards(now) for now in rollout.observations.unbind(2)], dim=2))
    assert torch.equal(rollout.log_probs, torch.zeros(4, 3, 6))
    found = objectives.scores("continuous", rollout)["return"]
    torch.testing.assert_close(found, torch.stack([walked(goal) for goal in goals[:, 0].double()]).float())


def walked(goal: Tensor) -> Tensor:
    """Return the return of a straight walk, at most 0.1 m a step on each axis."""
    position, total = torch.zeros(2, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _ in range(6):
        position = position + (goal - position).clamp(-0.1, 0.1)
        total = total - (goal - position).norm()
        if ((goal - position).abs() < 0.01).all():
            break
    return total


@pytest.mark.parametrize("arm", [0, 3])
def test_discrete_actions_are_those_of_the_function(arm: int) -> None:
    tasks = BANDIT.sample(5, "test", stream(0, "tasks"))
    policy = scripted(BANDIT.spec, lambda observations: np.full(observations.shape[:2], arm))
    rollout = tasks.rollout(policy, stream(0, "draw"))
    assert (rollout.actions == arm).all()
    assert torch.equal(rollout.log_probs, torch.zeros(5, 3, 6))
    pulled = (rollout.rewards * rollout.mask).sum(2).mean(1)
    assert torch.equal(objectives.scores("discrete", rollout)["return"], pulled)


def test_environments_of_gymnasium_are_acted_in() -> None:
    tasks = CARTS.sample(2, "test", stream(0, "tasks"))

    def upright(observations: Tensor) -> Tensor:
        return (observations[..., 2] > 0).int()

    rollout = tasks.rollout(scripted(CARTS.spec, upright), stream(0, "draw"))
    assert torch.equal(rollout.actions, upright(rollout.observations).long())
    assert objectives.scores("discrete", rollout)["return"].tolist() == [6.0, 6.0]


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_certain_policies_have_no_log_probability_of_nan(kind: Any) -> None:
    family: Any = NAVIGATION if kind == "continuous" else BANDIT

    def predict(state: Any, inputs: Tensor) -> tuple[Tensor, Any]:
        outputs = torch.arange(4.0).expand(*inputs.shape[:2], 4)
        return family.spec.distribution.certain(outputs), state

    policy = Policy(family.spec.distribution, None, predict)
    rollout = family.sample(2, "test", stream(0, "tasks")).rollout(policy, stream(0, "draw"))
    assert torch.equal(rollout.log_probs, torch.zeros(2, 3, 6))


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_other_log_probabilities_are_left_alone(kind: Any) -> None:
    outputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    distribution = Spec((1,), 2 if kind == "continuous" else 4, kind).distribution
    actions = distribution.sample(outputs, torch.Generator().manual_seed(1))
    found = distribution.drawn_log_prob(outputs, actions)
    assert torch.equal(found, distribution.log_prob(outputs, actions))


@pytest.mark.parametrize(
    ("family", "function", "told"),
    [
        (NAVIGATION, lambda seen: seen[0], r"returned actions of shape \(3, 2\): expected \(2, 3, 2\)"),
        (NAVIGATION, lambda seen: seen[..., :1], r"shape \(2, 3, 1\): expected \(2, 3, 2\)"),
        (BANDIT, lambda seen: torch.zeros(2, 3, 4), r"shape \(2, 3, 4\): expected \(2, 3\)"),
        (BANDIT, lambda seen: torch.zeros(2, 3), "of type torch.float32: expected integers"),
        (BANDIT, lambda seen: torch.ones(2, 3, dtype=torch.bool), "of type torch.bool: expected integers"),
        (BANDIT, lambda seen: torch.full((2, 3), 4), "actions from 4 to 4: expected 0 to 3"),
        (BANDIT, lambda seen: torch.full((2, 3), -1), "actions from -1 to -1: expected 0 to 3"),
    ],
)
def test_what_is_no_action_is_refused(family: Any, function: Callable[[Tensor], Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        family.sample(2, "test", stream(0, "tasks")).rollout(scripted(family.spec, function), stream(0, "draw"))


def test_actions_that_are_not_finite_are_refused() -> None:
    policy = scripted(NAVIGATION.spec, lambda seen: torch.full_like(seen, torch.nan))
    with pytest.raises(RolloutError, match="actions are not finite"):
        NAVIGATION.sample(2, "test", stream(0, "tasks")).rollout(policy, stream(0, "draw"))


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_examples_have_no_policies(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"this spec is for {kind}"):
        scripted(replace(Spec((1,), 1, "regression"), kind=kind), torch.zeros_like)
