"""Lanes of Gymnasium environments: seeds, what depends on the task, and what environments may return."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.environments.lanes import LaneError, LaneOptions, Lanes, lane_seeds
from metarl.environments.making import make_env
from metarl.environments.spaces import elements
from metarl.spec import Spec

CPU = torch.device("cpu")
GRAVITY = spaces.Dict(g=spaces.Box(5.0, 15.0))
BOX = spaces.Box(-100, 100, (2,))


def pendulums(apply: Any = "keyword", **options: Any) -> GymnasiumFamily:
    return GymnasiumFamily("Pendulum-v1", GRAVITY, apply=apply, sampling=Sampling(horizon=5), **options)


class Told(gymnasium.Env[Any, Any]):
    """Returns at its first step what it is told to; ``k`` may change its spaces."""

    observation_space: Any = BOX
    action_space: Any = spaces.Box(-1, 1, (1,))
    outcome: tuple[Any, ...] = (np.zeros(2), 0.0, False, False, {})
    start: Any = np.zeros(2)
    k = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.start, {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.action = action
        return self.outcome

    @classmethod
    def of(cls, **attributes: Any) -> type["Told"]:
        return type("Told", (cls,), attributes)


def lanes_of(env: Any, number: int = 1, spec: Spec | None = None, **options: Any) -> Lanes:
    told: dict[str, Any] = {"parameters": spaces.Dict(k=spaces.Discrete(5, start=3)), "apply": "attribute", **options}
    spec = spec or Spec((2,), 1, "continuous", 1)
    return Lanes(LaneOptions(env, told["parameters"], told["apply"], spec, number))


def kept(env: Any, k: Any) -> None:
    """Keep a parameter that nothing reads, which a function may do."""
    env.unwrapped.k = k


def outcome(observation: Any = None, reward: Any = 0.0, ended: Any = False, cut: Any = False, **info: Any) -> Any:
    return np.zeros(2) if observation is None else observation, reward, ended, cut, info


# Seeds


def two_episodes(lanes: Any, seed: Any) -> list[Any]:
    """Observations of two episodes, the second of another task and without a seed."""
    count = lanes.num_envs
    seen = [lanes.reset(seed=seed, options={"g": np.full((count, 1), 6.0)})[0]]
    seen.append(lanes.reset(options={"g": np.full((count, 1), 9.0)})[0])
    only = np.arange(count) == 0
    seen.append(lanes.reset(options={"g": np.full((count, 1), 7.0), "reset_mask": only})[0])
    return [rows.tolist() for rows in seen]


@pytest.mark.parametrize("apply", ["keyword", "attribute"])
@pytest.mark.parametrize("workers", [1, 2])
def test_one_seed_decides_all_later_episodes(apply: str, workers: int) -> None:
    told = []
    for seed in (3, 3, np.int64(3), 4):
        lanes = pendulums(apply, workers=workers).environment(2, CPU)
        told.append(two_episodes(lanes, seed))
        lanes.close()
    assert told[0] == told[1] == told[2] != told[3]
    first, second, third = (np.array(rows) for rows in told[0])
    assert len(np.unique(np.concatenate([first, second, third[:1]]), axis=0)) == 5  # no start is met twice
    np.testing.assert_array_equal(second[1], third[1])


def test_single_environments_follow_their_seed_through_other_tasks() -> None:
    told = []
    for seed in (3, 3, 4):
        env = pendulums().single({"g": 6.0})
        env.reset(seed=seed)
        told.append([env.reset(options={"g": g})[0].tolist() for g in (9.0, 7.0)])
        env.close()
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize("seeds", [[5, 6], (np.int32(5), np.uint8(6)), np.array([5, 6])])
def test_a_seed_for_each_lane(seeds: Any) -> None:
    found, _ = pendulums().environment(2, CPU).reset(seed=seeds)
    for row, seed in zip(found, (5, 6), strict=True):
        np.testing.assert_array_equal(row, gymnasium.make("Pendulum-v1", g=10.0).reset(seed=seed)[0])


def test_a_seed_for_some_lanes() -> None:
    lanes = pendulums().environment(2, CPU)
    found = [lanes.reset(seed=[None, 6])[0][1].tolist() for _ in range(2)]
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", [1.5, -1, True, "3", [1], [1, 2.5], np.array([1, 2, 3]), np.float64(2)])
def test_other_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"the seed is .*: expected an integer"):
        pendulums().environment(2, CPU).reset(seed=seed)


def test_seeds_of_lanes_are_those_of_before() -> None:
    assert lane_seeds(0, 3) == lane_seeds(0, 4)[:3]


# What depends on the task


class Resized(Told):
    """A task of k = 5 has other spaces, from its reset on."""

    other: dict[str, Any]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        for name, value in (self.other if self.k == 5 else {}).items():
            setattr(self, name, value)
        return np.zeros(self.observation_space.shape or ()), {}


@pytest.mark.parametrize(
    ("other", "spec"),
    [
        ({"observation_space": spaces.Box(-1, 1, (1,))}, Spec((2,), 1, "continuous", 1)),
        ({"action_space": spaces.Box(-1, 1, (2,))}, Spec((2,), 1, "continuous", 1)),
        ({"action_space": spaces.Discrete(2)}, Spec((2,), 1, "continuous", 1)),
    ],
)
def test_tasks_whose_spaces_do_not_fit_the_family_are_refused(other: dict[str, Any], spec: Spec) -> None:
    env = type("Odd", (Resized,), {"other": other})
    lanes = lanes_of(env, 2, spec)
    lanes.reset(options={"k": [3, 4]})
    with pytest.raises(LaneError, match=r"lane 1, step 0: ValueError: the task \{'k': 5\} asks for Spec"):
        lanes.reset(options={"k": [3, 5]})
    with pytest.raises(gymnasium.error.ResetNeeded):
        lanes.step(np.zeros((2, 1)))
    lanes.reset(options={"k": [3, 4]})
    assert lanes.step(np.zeros((2, 1)))[0].shape == (2, 2)


def test_fewer_actions_in_some_tasks_are_refused() -> None:
    env = type("Fewer", (Resized,), {"action_space": spaces.Discrete(3), "other": {"action_space": spaces.Discrete(2)}})
    with pytest.raises(LaneError, match=r"the task \{'k': 5\} asks for Spec\(.*output_size=2"):
        lanes_of(env, 1, Spec((2,), 3, "discrete", 1)).reset(options={"k": [5]})


def test_an_observation_of_another_shape_within_an_episode_is_refused() -> None:
    lanes = lanes_of(Told.of(outcome=outcome(np.zeros(1))))
    lanes.reset()
    with pytest.raises(LaneError, match=r"step 1: ValueError: an observation has shape \(1,\) where \(2,\)"):
        lanes.step(np.zeros((1, 1)))


class Stronger(Told):
    """Acts within [0, k], as numbers of its task's own dtype and shape."""

    @property
    def action_space(self) -> Any:  # type: ignore[override]
        return spaces.Box(0, self.k, (1, 1) if self.k == 4 else (1,), np.float64 if self.k == 5 else np.float32)


def test_bounds_of_actions_follow_the_task() -> None:
    lanes = lanes_of(Stronger, 3)
    for k, action in ((3, 1.0), (4, 0.5), (5, -1.0)):
        lanes.reset(options={"k": [k, 7, 7]})
        lanes.step(np.full((3, 1), action))
        env: Any = lanes._envs[0]
        assert env.action.item() == k * (action + 1) / 2
        assert (env.action.shape, env.action.dtype) == (env.action_space.shape, env.action_space.dtype)
        assert lanes._envs[1].action.tolist() == [7 * (action + 1) / 2]  # type: ignore[attr-defined]


# Task parameters


@pytest.mark.parametrize("value", [9, -7, 4.9, np.nan, 2])
def test_the_space_decides_which_tasks_there_are(value: Any) -> None:
    with pytest.raises(ValueError, match=r"task parameter k is .*: expected an element of Discrete\(5, start=3\)"):
        lanes_of(Told, 2).reset(options={"k": [3, value]})


@pytest.mark.parametrize("value", [15.1, 4.9, np.nan, np.inf])
def test_so_does_a_box(value: float) -> None:
    with pytest.raises(ValueError, match=r"task parameter g is \[.*\]: expected an element of Box"):
        pendulums().environment(2, CPU).reset(options={"g": [10.0, value]})


def test_the_ends_of_a_box_may_be_rounded() -> None:
    parameters = spaces.Dict(k=spaces.Box(0.7, 0.9, dtype=np.float64))
    lanes = lanes_of(Told, 2, parameters=parameters)
    lanes.reset(options={"k": torch.tensor([0.7, 0.9])})


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("given", [[6.0, 7.0], [[6.0], [7.0]], torch.tensor([6, 7])])
def test_parameters_of_one_number_need_no_axes(shape: tuple[int, ...], given: Any) -> None:
    lanes = lanes_of(Told, 2, parameters=spaces.Dict(k=spaces.Box(5.0, 15.0, shape)))
    lanes.reset(options={"k": given})
    assert [env.k for env in lanes._envs.values()] == [6.0, 7.0]  # type: ignore[attr-defined]
    env = pendulums().single({"g": 6.0})
    env.reset(options={"g": 7.0})
    with pytest.raises(ValueError, match="k is"):
        lanes.reset(options={"k": [6.0, 7.0, 8.0]})


def test_masks_are_boolean() -> None:
    with pytest.raises(ValueError, match=r"reset_mask is int64 \(2,\) where bool \(2,\) was expected"):
        lanes_of(Told, 2).reset(options={"reset_mask": [0, 1]})


# What a step may return


ODD = [None, np.nan, 0.3, -1, 2, "False", [False], np.array([False]), object]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("name", ["terminated", "truncated", "success", "is_success"])
def test_odd_flags_are_refused(name: str, value: Any) -> None:
    if value is None and "success" in name:
        return  # not reported
    short = {"terminated": "ended", "truncated": "cut"}.get(name, name)
    lanes = lanes_of(Told.of(outcome=outcome(**{short: value})))
    lanes.reset(options={"k": [4]})
    told = name if name in ("terminated", "truncated") else f"info['{name}']"
    with pytest.raises(LaneError) as caught:
        lanes.step(np.zeros((1, 1)))
    message = f"lane 0, step 1: ValueError: {told} is {value!r}: expected True or False (Told, task {{'k': 4}})"
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [True, 1, 1.0, np.True_, np.int8(1), np.float32(1), np.array(True), torch.tensor(1)])
def test_flags_are_taken_as_they_usually_are(value: Any) -> None:
    for expected, told in ((True, value), (False, type(value)(0) if np.ndim(value) else value == 2)):
        lanes = lanes_of(Told.of(outcome=outcome(ended=told, success=told)))
        lanes.reset()
        _, _, terminated, truncated, info = lanes.step(np.zeros((1, 1)))
        assert (terminated.tolist(), truncated.tolist()) == ([expected], [False])
        assert info["success"].tolist() == [expected]


def test_what_others_call_success_counts_too() -> None:
    lanes = lanes_of(Told.of(outcome=outcome(is_success=1.0)))
    lanes.reset()
    assert lanes.step(np.zeros((1, 1)))[4]["success"].tolist() == [True]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (1e39, "the reward is 1e+39, not a finite number that the dtype of rewards holds"),
        (-np.inf, "the reward is -inf, not a finite number"),
        (np.array([1.0]), "the reward is array([1.]), an array of shape (1,): expected one finite number"),
        ([1.0], "the reward is [1.0], list: expected one finite number"),
    ],
)
def test_rewards_are_one_finite_number(reward: Any, message: str) -> None:
    lanes = lanes_of(Told.of(outcome=outcome(reward=reward)))
    lanes.reset()
    with pytest.raises(LaneError) as caught:
        lanes.step(np.zeros((1, 1)))
    assert message in str(caught.value)


@pytest.mark.parametrize("reward", [2, 2.0, np.float64(2), np.int64(2), np.array(2.0), torch.tensor(2.0)])
def test_rewards_of_any_kind_of_number(reward: Any) -> None:
    lanes = lanes_of(Told.of(outcome=outcome(reward=reward)))
    lanes.reset()
    assert lanes.step(np.zeros((1, 1)))[1].tolist() == [2.0]


# Observations in the policy's dtype


@pytest.mark.parametrize("number", [1e39, -1e39])
def test_numbers_beyond_float32_are_named(number: float) -> None:
    lanes = lanes_of(Told.of(outcome=outcome(np.array([0.0, number]))))
    lanes.reset()
    with pytest.raises(LaneError, match=r"step 1: ValueError: an observation holds numbers that float32 does not hold"):
        lanes.step(np.zeros((1, 1)))


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_observations_that_become_equal_are_told_once(dtype: Any) -> None:
    clock = np.array([1_700_000_000, 0], dtype=dtype)
    space = spaces.Box(0, 2_000_000_000, (2,), dtype)
    env = Told.of(observation_space=space, start=clock, outcome=outcome(clock + np.array([1, 1], dtype=dtype)))
    lanes = lanes_of(env)
    lanes.reset()
    with pytest.warns(UserWarning, match=r"Told: the observations 1700000000.* and 1700000001.* subtract a constant"):
        lanes.step(np.zeros((1, 1)))
    lanes.reset()
    lanes.step(np.zeros((1, 1)))


def test_large_observations_that_stay_apart_are_not_warned_of() -> None:
    space = spaces.Box(-1e12, 1e12, (2,), np.float64)
    env = Told.of(observation_space=space, start=np.array([2.0**30, 0.0]), outcome=outcome(np.array([2.0**31, 0.0])))
    lanes = lanes_of(env)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lanes.reset()
        assert lanes.step(np.zeros((1, 1)))[0].tolist() == [[2.0**31, 0.0]]


PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)

FRAMES = PIXELS.reshape(2, 5, 3, 2)


@pytest.mark.parametrize(
    ("space", "seen"),
    [
        (spaces.Box(0, 255, (4, 5, 3), np.uint8), PIXELS.transpose(2, 0, 1) / 255),
        (spaces.Box(0, 255, (3, 4, 5), np.uint8), PIXELS.reshape(3, 4, 5) / 255),
        (spaces.Box(0, 255, (12, 5), np.uint8), PIXELS.reshape(1, 12, 5) / 255),
        (spaces.Box(0, 255, (2, 5, 3, 2), np.uint8), FRAMES.transpose(0, 3, 1, 2).reshape(4, 5, 3) / 255),
        (spaces.Box(0, 255, (4, 5, 3), np.float32), PIXELS.transpose(2, 0, 1) / 255),
        (spaces.Box(0, 60, (4, 5, 3), np.uint8), PIXELS.transpose(2, 0, 1)),
        (spaces.Box(0, 255, (60,), np.uint8), PIXELS.reshape(60)),
        (spaces.Box(-100, 100, (5, 12)), PIXELS.reshape(5, 12)),
    ],
)  # fmt: skip
def test_images_are_scaled_with_their_channels_first(space: spaces.Box, seen: np.ndarray) -> None:
    pixels = PIXELS.reshape(space.shape).astype(space.dtype)
    lanes = lanes_of(Told.of(observation_space=space, start=pixels), spec=Spec(seen.shape, 1, "continuous", 1))
    np.testing.assert_allclose(lanes.reset()[0][0], seen, rtol=1e-6)
    family = GymnasiumFamily(Told.of(observation_space=space), spaces.Dict(k=spaces.Discrete(5)), kept)
    assert family.spec.input_shape == seen.shape


# Wrappers, and parameters


@pytest.mark.parametrize("name", ["NormalizeObservation", "NormalizeReward"])
def test_running_statistics_are_refused(name: str) -> None:
    wrapper = getattr(gymnasium.wrappers, name)
    family = GymnasiumFamily(
        lambda g: gymnasium.wrappers.TimeLimit(wrapper(gymnasium.make("Pendulum-v1", g=g)), 9), GRAVITY
    )
    with pytest.raises(ValueError, match=rf"{name} normalises by running statistics, which are no part of a run"):
        family.spec  # noqa: B018

    def frozen(g: float) -> gymnasium.Env:
        env = wrapper(gymnasium.make("Pendulum-v1", g=g))
        env.update_running_mean = False
        return env

    assert GymnasiumFamily(frozen, GRAVITY).spec.input_shape == (3,)


def test_statistics_of_episodes_may_be_recorded() -> None:
    family = GymnasiumFamily(
        lambda g: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("Pendulum-v1", g=g)), GRAVITY
    )
    lanes = family.environment(1, CPU)
    lanes.reset(seed=0)
    assert lanes.step(np.zeros((1, 1)))[0].shape == (1, 3)


def _other_name(env: Any, gravity: float) -> None: ...


def _all_in_one(env: Any, values: Any) -> None: ...


def _environment_only(env: Any) -> None: ...


@pytest.mark.parametrize("function", [_other_name, _all_in_one, _environment_only])
def test_a_function_that_does_not_take_the_parameters_by_name_is_told_so(function: Any) -> None:
    told = (
        rf"the function {function.__name__} \(.*test_lanes.py:\d+\) cannot be called as apply\(env, g=...\): .*argument"
    )
    with pytest.raises(ValueError, match=told):
        GymnasiumFamily("Pendulum-v1", GRAVITY, apply=function).spec  # noqa: B018


def test_a_type_error_of_the_function_itself_stays() -> None:
    def broken(env: Any, g: float) -> None:
        env.unwrapped.g = g + "9"

    with pytest.raises(TypeError, match="unsupported operand"):
        GymnasiumFamily("Pendulum-v1", GRAVITY, apply=broken).spec  # noqa: B018


def test_an_attribute_that_only_a_wrapper_would_have_is_refused() -> None:
    def heavy(env: Any, g: float) -> None:
        env.g = g

    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(
        ValueError,
        match=r"the function .*heavy \(.*test_lanes.py:\d+\) sets g on the wrapper TimeLimit, .* env.unwrapped",
    ):
        GymnasiumFamily("Pendulum-v1", GRAVITY, apply=heavy).spec  # noqa: B018
    env.close()

    class Wind(gymnasium.Wrapper):
        g = 0.0

    family = GymnasiumFamily(lambda: Wind(gymnasium.make("Pendulum-v1")), GRAVITY, apply=heavy)
    lanes = family.environment(1, CPU)
    lanes.reset(options={"g": [7.0]})
    assert lanes._envs[0].g == 7.0


def test_mujoco_is_as_quiet_as_the_robots_here(capfd: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for maker in ("HalfCheetah-v5", lambda: gymnasium.make("HalfCheetah-v5")):
            make_env(maker, "attribute", {}).close()
    assert (capfd.readouterr().err, list(tmp_path.iterdir())) == ("", [])


def test_spaces_without_ends_hold_all_numbers() -> None:
    some = spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, np.inf]), dtype=np.float64)
    assert elements("p", [[1e9, -1e9]], some).tolist() == [[1e9, -1e9]]
    with pytest.raises(ValueError, match="the task parameter p is"):
        elements("p", [[-1e-3, 0.0]], some)
