"""Policies of single tasks as functions of observations: their distributions are those that act in episodes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import metarl
from metarl.control import Sampling
from metarl.networks import Network
from metarl.seeding import stream
from metarl.trained import Trained
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_plugins.sinusoid import Sinusoid

SMALL = metarl.MAML(network=Network(hidden=(8,)))
NAVIGATION = PointNavigation(sampling=Sampling(episodes=3, horizon=5))
BANDIT = Bandit(arms=4, sampling=Sampling(episodes=3, horizon=5))


def fresh(algorithm: Any, family: Any) -> Trained:
    learner = algorithm.build(family.spec)
    return Trained(algorithm, family, learner, learner.init(stream(0, "initialisation")), torch.device("cpu"), 0)


@pytest.mark.parametrize("family", [NAVIGATION, BANDIT], ids=["continuous", "discrete"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_distributions_are_those_that_acted(family: Any, steps: int) -> None:
    run = fresh(SMALL, family)
    task = run.tasks(1)
    rollout = run.adapt(task, steps, seed=4)[-1].rollout
    actions = run.policy(task, steps, seed=4)(rollout.observations[0])
    torch.testing.assert_close(actions.log_prob(rollout.actions[0]), rollout.log_probs[0])
    assert actions.sample().shape == rollout.actions[0].shape


def test_each_kind_of_action_has_its_distribution() -> None:
    gaussian, categorical = (
        run.policy(run.tasks(1))(np.zeros(run.learner.spec.input_shape))
        for run in (fresh(SMALL, NAVIGATION), fresh(SMALL, BANDIT))
    )
    assert isinstance(gaussian, Independent) and isinstance(gaussian.base_dist, Normal)
    assert torch.equal(gaussian.mean, gaussian.mode)
    assert gaussian.mean.shape == (2,) and not gaussian.mean.requires_grad
    assert isinstance(categorical, Categorical)
    torch.testing.assert_close(categorical.probs.sum(), torch.tensor(1.0))
    assert categorical.mode == categorical.probs.argmax()


@pytest.mark.parametrize(
    "given",
    [
        lambda one: one,
        lambda one: one.double(),
        lambda one: one.numpy(),
        lambda one: one.tolist(),
        lambda one: one.numpy()[::-1].copy()[::-1],
    ],
    ids=["tensor", "float64", "array", "list", "backwards"],
)
def test_one_observation_or_many(given: Callable[[torch.Tensor], Any]) -> None:
    run = fresh(SMALL, NAVIGATION)
    policy = run.policy(run.tasks(1))
    many = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    means = policy(given(many)).mean
    assert means.shape == (3, 4, 2)
    torch.testing.assert_close(policy(given(many[1, 2])).mean, means[1, 2])


@pytest.mark.parametrize("family", [NAVIGATION, BANDIT], ids=["continuous", "discrete"])
def test_their_kl_is_that_of_the_toolkit(family: Any) -> None:
    run = fresh(SMALL, family)
    task = run.tasks(1)
    observations = torch.randn(6, *family.spec.input_shape, generator=torch.Generator().manual_seed(0))
    before, after = (run.policy(task, steps)(observations) for steps in (0, 2))
    outputs = [run.learner.predict(run.state(task, steps), observations[None])[0][0] for steps in (0, 2)]
    expected = family.spec.distribution.kl(*outputs).detach()
    assert expected.max() > 0
    torch.testing.assert_close(kl_divergence(before, after), expected, rtol=1e-3, atol=1e-6)


def test_asking_works_in_inference_mode() -> None:
    run = fresh(SMALL, NAVIGATION)
    with torch.inference_mode():
        assert run.policy(run.tasks(1))(torch.zeros(2)).mean.shape == (2,)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros(3), r"observations have shape \(3,\) where \(..., 2,\) was expected"),
        (np.zeros(()), r"observations have shape \(\) where"),
        (np.zeros((2, 3)), r"observations have shape \(2, 3\)"),
        (np.zeros((0, 2)), r"observations have shape \(0, 2\)"),
        (np.array([0.0, np.nan]), "observations are not finite"),
    ],
)
def test_other_observations_are_refused(given: Any, told: str) -> None:
    run = fresh(SMALL, NAVIGATION)
    with pytest.raises(ValueError, match=told):
        run.policy(run.tasks(1))(given)


@pytest.mark.parametrize(
    ("algorithm", "family", "tasks", "steps", "told"),
    [
        (SMALL, Sinusoid(), 1, 1, "this learner has no policies: it is for regression"),
        (metarl.load("algorithms", "rl2")(hidden=8), BANDIT, 1, 1, "learns from rewards while it acts"),
        (SMALL, BANDIT, 2, 1, "one policy is for one task, not for 2"),
        (SMALL, BANDIT, 1, -1, "-1 steps"),
    ],
)
def test_what_has_no_policy_is_refused(algorithm: Any, family: Any, tasks: int, steps: int, told: str) -> None:
    run = fresh(algorithm, family)
    with pytest.raises(ValueError, match=told):
        run.policy(run.tasks(tasks), steps)
