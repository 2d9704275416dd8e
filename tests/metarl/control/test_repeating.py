"""Before a training, metarl looks whether episodes follow from the seed."""

import random
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import metarl
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.rollouts import RolloutError
from metarl.control.sampling import Sampling
from metarl.control.tasks import check_tasks
from metarl_envs.navigation import PointNavigation


class Noisy(gymnasium.Env[Any, Any]):
    """Rewards are ``g`` plus a number of the generator that it is given."""

    observation_space, action_space = spaces.Box(-9, 9, (1,)), spaces.Box(-1, 1, (1,))
    noise: Any = None

    def __init__(self, g: float) -> None:
        self.g = g

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), self.g + type(self).noise(self), False, False, {}


def family(noise: Any) -> GymnasiumFamily:
    kind = type("Noisy", (Noisy,), {"noise": staticmethod(noise)})
    return GymnasiumFamily(kind, spaces.Dict(g=spaces.Box(0.0, 1.0)), sampling=Sampling(2, 3))


@pytest.mark.parametrize(
    ("noise", "name"),
    [
        (lambda env: random.random(), "Python's random"),
        (lambda env: np.random.rand(), r"numpy\.random"),  # noqa: NPY002
        (lambda env: torch.rand(()).item(), "torch's default generator"),
    ],
)
def test_global_generators_are_told_when_training_starts(noise: Any, name: str) -> None:
    before = random.getstate(), torch.get_rng_state()
    settings = metarl.Settings(iterations=1, meta_batch_size=1)
    with pytest.warns(UserWarning, match=f"GymnasiumFamily draw from {name}, which the seed does not set: .*np_random"):
        check_tasks(family(noise), "train")
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    with pytest.warns(UserWarning, match="draw from"):
        metarl.train(metarl.MAML(), family(noise), settings=settings)


def test_other_generators_are_told_too() -> None:
    generator = np.random.default_rng()
    with pytest.warns(UserWarning, match="two episodes of GymnasiumFamily by one seed and the same actions differ"):
        check_tasks(family(lambda env: generator.random()), "train")


def test_seeded_environments_are_not_warned_of() -> None:
    check_tasks(family(lambda env: env.np_random.random()), "train")
    check_tasks(PointNavigation(sampling=Sampling(2, 3)), "train")


def test_errors_are_left_to_the_episodes() -> None:
    def broken(env: Any) -> float:
        raise KeyError("no key")

    check_tasks(family(broken), "train")
    with pytest.raises(RolloutError, match=r"task 0, .*step 1: .*KeyError: 'no key' \(Noisy, task \{'g'"):
        metarl.train(metarl.MAML(), family(broken), settings=metarl.Settings(iterations=1, meta_batch_size=1))
