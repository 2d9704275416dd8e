"""What doing nothing and acting at random earn, against closed forms and single environments."""

from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from metarl.control import GymnasiumFamily, Sampling
from metarl.evaluation import references, sample_tasks
from metarl.testing import small_family
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation


def test_doing_nothing_in_navigation_costs_the_distance_of_the_goal() -> None:
    family = PointNavigation(sampling=Sampling(episodes=3, horizon=7))
    found = references(family, tasks=4, seed=2)
    goals = sample_tasks(family, 4, seed=2).parameters["goal"]
    assert list(found) == ["return/zero_actions", "return/random_actions"]
    assert found["return/zero_actions"]["per_task"] == pytest.approx((-7 * goals.norm(dim=1)).tolist(), rel=1e-5)


class Echo(gymnasium.Env):
    """Rewards its action, which lies between -3 and 5, minus the task's number."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-3.0, 5.0, (1,))
    number = 0.0
    given: ClassVar[list[float]] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.given.append(float(action[0]))
        return np.zeros(1, dtype=np.float32), float(action[0]) - self.number, False, False, {}


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_random_actions_reach_both_ends_and_zero_is_the_middle(scale: float) -> None:
    ranges = spaces.Dict(number=spaces.Box(0.0, 1.0))
    sampling = Sampling(episodes=20, horizon=100)
    family = GymnasiumFamily(Echo, ranges, apply="attribute", sampling=sampling, action_scale=scale)
    Echo.given = []
    found = references(family, tasks=3)
    number = sample_tasks(family, 3).parameters["number"].flatten()
    assert found["return/zero_actions"]["per_task"] == pytest.approx((100 * (1 - number)).tolist(), rel=1e-4)
    zeros, drawn = Echo.given[: 3 * 5 * 100], Echo.given[3 * 5 * 100 :]
    assert len(drawn) == len(zeros) == 1500, "five episodes at most"
    assert (min(drawn), max(drawn)) == (pytest.approx(-3, abs=0.1), pytest.approx(5, abs=0.1))
    assert np.mean(drawn) == pytest.approx(1, abs=4 * 8 / 12**0.5 / 1500**0.5)
    again = references(family, tasks=3)
    assert again == found


def test_random_choices_are_equally_likely() -> None:
    family = Bandit(arms=4, sampling=Sampling(episodes=5, horizon=400))
    found = references(family, tasks=3)
    assert list(found) == ["return/random_actions"]
    chances = sample_tasks(family, 3).parameters["probabilities"]
    for mean, own in zip(found["return/random_actions"]["per_task"], chances, strict=True):
        chance = float(own.mean())
        assert mean / 400 == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 2000) ** 0.5)


def test_labelled_examples_have_no_actions() -> None:
    with pytest.raises(ValueError, match="has no rollout"):
        references(small_family("classification"), tasks=2)
