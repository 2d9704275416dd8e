"""Frame skip and action scale of Gymnasium's environments, against a slow wrapper around the environment itself."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.control import GymnasiumFamily, Sampling

CPU = torch.device("cpu")


class Walk(gymnasium.Env[Any, Any]):
    """Sums its actions, in [-2, 6]. It ends beyond 10, or by its own limit of steps; success is between 3 and 8."""

    def __init__(self, limit: int = 7) -> None:
        self.observation_space, self.action_space = spaces.Box(-99, 99, (2,)), spaces.Box(-2, 6, (1,))
        self.limit, self.count, self.place = limit, 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count, self.place = 0, float(self.np_random.uniform())
        return np.array([self.place, 0.0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.count, self.place = self.count + 1, self.place + float(action[0])
        told = np.array([self.place, self.count], np.float32)
        info = {"success": 3 < self.place < 8}
        return told, self.place**2, abs(self.place) > 10, self.count >= self.limit, info


def walks(**options: Any) -> GymnasiumFamily:
    return GymnasiumFamily(Walk, spaces.Dict(limit=spaces.Discrete(6, start=4)), "attribute", **options)


def slow(env: Walk, action: float, times: int) -> tuple[Any, float, bool, bool, bool, int]:
    total, success, taken = 0.0, False, 0
    while taken < times:
        taken += 1
        observation, reward, terminated, truncated, info = env.step([action])
        total, success = total + reward, success or info["success"]
        if terminated or truncated:
            break
    return observation, total, terminated, truncated, success, taken


@pytest.mark.parametrize(
    ("times", "scale", "workers"), [(1, 1.0, 1), (3, 1.0, 1), (1, 4.0, 1), (2, 2.5, 1), (3, 4.0, 2)]
)
def test_lanes_are_a_slow_wrapper(times: int, scale: float, workers: int) -> None:
    number, rng, passed = 4, np.random.default_rng(0), 0
    lanes = walks(frame_skip=times, action_scale=scale, workers=workers).environment(number, CPU)
    assert lanes.single_action_space == spaces.Box(-scale, scale, (1,))
    limits = np.array([4, 5, 7, 9])
    observations, _ = lanes.reset(seed=1, options={"limit": limits})
    envs = [Walk(int(limit)) for limit in limits]
    for lane, env in enumerate(envs):
        env.count, env.place = 0, float(observations[lane, 0])
    finished, lasted = np.zeros(number, dtype=bool), list[int]()
    while not finished.all():
        actions = scale * rng.uniform(-1.2, 1.2, (number, 1)).astype(np.float32)
        told, rewards, terminated, truncated, info = lanes.step(actions)
        for lane in np.flatnonzero(~finished):
            meant = np.float32(np.clip(2 + 4 * actions[lane, 0] / scale, -2, 6))  # -2 to 6 around 2
            *expected, success, taken = slow(envs[lane], float(meant), times)
            np.testing.assert_allclose(told[lane], expected[0], rtol=1e-5)
            assert rewards[lane] == pytest.approx(expected[1], rel=1e-5)
            assert (terminated[lane], truncated[lane]) == (expected[2], expected[3])
            assert info["success"][lane] == success
            passed, lasted = passed + success, [*lasted, taken]
        finished = terminated | truncated
    lanes.close()
    assert set(lasted) == set(range(1, times + 1)), "episodes end inside of repeats, too"
    assert passed


def test_the_horizon_counts_actions() -> None:
    family = walks(frame_skip=2, sampling=Sampling(episodes=1, horizon=3))
    lanes = family.environment(1, CPU)
    lanes.reset(seed=0, options={"limit": np.array([9])})
    ends = [bool(lanes.step(np.full((1, 1), -0.5, np.float32))[3][0]) for _ in range(3)]
    assert ends == [False, False, True]


@pytest.mark.parametrize("own", [False, True])
def test_single_environments_repeat_actions_too(own: bool) -> None:
    family, parameters = walks(frame_skip=3, action_scale=2.0), {"limit": np.array(9)}
    env = family.own(parameters) if own else family.single(parameters)
    assert env.action_space == (spaces.Box(-2, 6, (1,)) if own else spaces.Box(-2.0, 2.0, (1,)))
    observation, _ = env.reset(seed=0)
    made = Walk(9)
    made.place = float(observation[0])
    expected = slow(made, 1.0, 3)
    told, reward, *_ = env.step(np.array([1.0 if own else -0.5], np.float32))
    np.testing.assert_allclose(told, expected[0], rtol=1e-5)
    assert reward == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frame_skip": 0}, "frame_skip=0: expected a number of steps, at least 1"),
        ({"frame_skip": 1.5}, "frame_skip=1.5: expected a number of steps"),
        ({"action_scale": 0.0}, "action_scale=0.0: expected a finite number above 0"),
        ({"action_scale": float("inf")}, "action_scale=inf: expected a finite number above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        walks(**options)


def test_discrete_actions_have_no_scale() -> None:
    family = GymnasiumFamily("CartPole-v1", spaces.Dict(gravity=spaces.Box(5.0, 15.0)), "attribute", action_scale=2.0)
    with pytest.raises(ValueError, match=r"action_scale=2.0 is for Box actions; leave it out for Discrete ones"):
        assert family.spec
