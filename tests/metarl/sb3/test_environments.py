"""Families as Stable-Baselines3 environments: its resets, its infos, tasks by episode, and its algorithms on them."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

import metarl
import metarl_envs  # noqa: F401  # registers the single environments
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.control.tasks import ControlTasks, tasks_with
from metarl.environments.lanes import LaneError
from metarl.sb3 import TaskVecEnv, policy
from metarl.trained import Trained
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity

NAVIGATION = PointNavigation(sampling=Sampling(episodes=2, horizon=4))
BANDIT = Bandit(arms=3, sampling=Sampling(episodes=2, horizon=5))
STILL = np.zeros((2, 2), dtype=np.float32)


class Countdown(gymnasium.Env[Any, Any]):
    """Observes how many steps are left and pays 1 for each; at 0 it terminates."""

    def __init__(self, length: int = 3):
        self.observation_space, self.action_space = spaces.Box(0, 100, (1,)), spaces.Discrete(2)
        self.length = self.left = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.length
        return np.array([self.left], dtype=np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.left > 0, "it has ended"
        self.left -= 1
        return np.array([self.left], dtype=np.float32), 1.0, self.left == 0, False, {}


COUNTDOWN = GymnasiumFamily(
    Countdown, spaces.Dict(length=spaces.Discrete(6, start=2)), apply="attribute", sampling=Sampling(horizon=4)
)


def goals(*rows: tuple[float, float]) -> ControlTasks:
    return tasks_with(NAVIGATION, {"goal": rows})


def test_a_finished_lane_starts_again_at_once() -> None:
    env = TaskVecEnv(COUNTDOWN, 2, tasks_with(COUNTDOWN, {"length": [2, 7]}))
    assert env.reset().tolist() == [[2], [7]]
    told = [env.step(np.zeros(2, dtype=int)) for _ in range(4)]
    assert [observations.ravel().tolist() for observations, *_ in told] == [[1, 6], [2, 5], [1, 4], [2, 7]]
    assert [done.tolist() for _, _, done, _ in told] == [[False, False], [True, False], [False, False], [True, True]]
    assert [rewards.tolist() for _, rewards, _, _ in told] == [[1, 1]] * 4
    (_, _, _, infos), (_, _, _, last) = told[1], told[3]
    assert infos[0]["terminal_observation"].tolist() == [0]
    assert infos[0]["TimeLimit.truncated"] is False
    assert infos[0]["task"] == {"length": 2}
    assert (infos[0]["episode"]["r"], infos[0]["episode"]["l"]) == (2.0, 2)
    assert infos[1] == {}
    assert last[1]["terminal_observation"].tolist() == [3]
    assert last[1]["TimeLimit.truncated"] is True
    assert (last[1]["episode"]["r"], last[1]["episode"]["l"]) == (4.0, 4)


def test_given_tasks_are_gone_round() -> None:
    env = TaskVecEnv(NAVIGATION, 2, goals((0.1, 0.1), (0.2, 0.2), (0.3, 0.3)))
    env.reset()
    seen = []
    for _ in range(3 * NAVIGATION.sampling.horizon):
        _, rewards, done, infos = env.step(STILL)
        if done.any():
            seen.append([round(float(info["task"]["goal"][0]), 1) for info in infos])
            assert rewards == pytest.approx([-np.linalg.norm(info["task"]["goal"]) for info in infos])
    assert seen == [[0.1, 0.2], [0.3, 0.1], [0.2, 0.3]]
    assert env.get_attr("goal")[0].tolist() == pytest.approx([0.1, 0.1])
    assert env.get_attr("goal", 1)[0].tolist() == pytest.approx([0.2, 0.2])
    env.reset()
    assert env.get_attr("goal", [0])[0].tolist() == pytest.approx([0.1, 0.1])


def episodes(env: TaskVecEnv, number: int) -> np.ndarray[Any, Any]:
    """Goals of the first episodes of both lanes, ``[episode, lane, 2]``."""
    env.reset()
    found = []
    for _ in range(number):
        found.append(env.get_attr("goal"))
        for _ in range(NAVIGATION.sampling.horizon):
            env.step(STILL)
    return np.array(found)


def test_every_episode_has_a_new_task_that_the_seed_decides() -> None:
    env = TaskVecEnv(NAVIGATION, 2, seed=3)
    first = episodes(env, 3)
    assert len(np.unique(first.reshape(-1, 2), axis=0)) == 6
    assert (np.abs(first) <= 0.5).all()
    np.testing.assert_array_equal(first, episodes(TaskVecEnv(NAVIGATION, 2, seed=3), 3))
    assert not (first == episodes(env, 3)).any()  # as in Gymnasium, a reset without a seed goes on
    env.seed(3)
    np.testing.assert_array_equal(first, episodes(env, 3))
    assert not (first == episodes(TaskVecEnv(NAVIGATION, 2, seed=4), 3)).any()


def test_environments_of_one_family_do_not_share_lanes() -> None:
    training, evaluation = (TaskVecEnv(COUNTDOWN, 1, tasks_with(COUNTDOWN, {"length": [7]})) for _ in range(2))
    training.reset()
    training.step(np.zeros(1, dtype=int))
    assert evaluation.reset().tolist() == [[7]]
    assert training.step(np.zeros(1, dtype=int))[0].tolist() == [[5]]
    evaluation.close()
    assert training.step(np.zeros(1, dtype=int))[0].tolist() == [[4]]


@pytest.mark.parametrize(
    ("name", "registered"),
    [
        ("ant-direction", "AntDirection"),
        ("ant-goal", "AntGoal"),
        ("ant-velocity", "AntVelocity"),
        ("bandit", "Bandit"),
        ("half-cheetah-direction", "HalfCheetahDirection"),
        ("half-cheetah-velocity", "HalfCheetahVelocity"),
        ("point-navigation", "PointNavigation"),
        ("tabular-mdp", "TabularMDP"),
    ],
)
def test_spaces_are_those_of_the_single_environment(name: str, registered: str) -> None:
    lanes, single = TaskVecEnv(metarl.load("tasks", name)(), 1), gymnasium.make(f"metarl/{registered}-v0")
    assert (lanes.observation_space, lanes.action_space) == (single.observation_space, single.action_space)
    observation = lanes.reset()
    assert observation.dtype == lanes.observation_space.dtype
    assert observation[0] in lanes.observation_space
    lanes.close()


@pytest.mark.parametrize(
    ("algorithm", "family", "options"),
    [
        (PPO, NAVIGATION, {"n_steps": 8, "batch_size": 16}),
        (PPO, BANDIT, {"n_steps": 8, "batch_size": 16}),
        (PPO, HalfCheetahVelocity(sampling=Sampling(horizon=4)), {"n_steps": 8, "batch_size": 16}),
        (A2C, NAVIGATION, {}),
        (SAC, NAVIGATION, {"learning_starts": 8, "buffer_size": 100, "batch_size": 8}),
        (DQN, COUNTDOWN, {"learning_starts": 8, "buffer_size": 100, "batch_size": 8}),
    ],
)
def test_algorithms_train(algorithm: type[BaseAlgorithm], family: Any, options: dict[str, Any]) -> None:
    env = TaskVecEnv(family, 2)
    model = algorithm("MlpPolicy", env, device="cpu", seed=0, **options)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(40)
    assert any(not torch.equal(before[name], value) for name, value in model.policy.state_dict().items())
    assert all(told["l"] <= family.sampling.horizon for told in model.ep_info_buffer)
    assert len(model.ep_info_buffer) >= 8
    mean, _ = evaluate_policy(model, env, n_eval_episodes=2)
    assert np.isfinite(mean)
    env.close()


def test_callbacks_evaluate_on_held_out_tasks(tmp_path: Path) -> None:
    held_out = TaskVecEnv(NAVIGATION, 2, NAVIGATION.sample(2, "test", torch.Generator().manual_seed(0)))
    stop = StopTrainingOnRewardThreshold(-1000.0, verbose=0)
    evaluate = EvalCallback(
        held_out, stop, n_eval_episodes=2, eval_freq=8, best_model_save_path=str(tmp_path), verbose=0
    )
    model = PPO("MlpPolicy", TaskVecEnv(NAVIGATION, 2), n_steps=8, batch_size=16, device="cpu").learn(64, evaluate)
    assert model.num_timesteps == 16
    assert PPO.load(tmp_path / "best_model.zip").observation_space == held_out.observation_space


def test_it_can_be_wrapped() -> None:
    env = TaskVecEnv(NAVIGATION, 2)
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(gymnasium.wrappers.TimeLimit, 0) == [False]
    assert env.render_mode is None
    normal = VecNormalize(env)
    PPO("MlpPolicy", normal, n_steps=8, batch_size=16, device="cpu").learn(32)
    assert np.abs(normal.reset()).max() <= normal.clip_obs
    with pytest.warns(UserWarning, match="already wrapped"):
        monitored = VecMonitor(env)
    monitored.reset()
    infos = [monitored.step(STILL)[3] for _ in range(4)][-1]
    assert infos[0]["episode"]["l"] == 4


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match="Sinusoid is no control family"):
        TaskVecEnv(metarl.load("tasks", "sinusoid")())
    env = TaskVecEnv(NAVIGATION, 2)
    with pytest.raises(ValueError, match="pass tasks="):
        env.set_options({"goal": (0.1, 0.1)})
    with pytest.raises(NotImplementedError, match="attribute goal cannot be set"):
        env.set_attr("goal", (0.1, 0.1))
    with pytest.raises(NotImplementedError, match="method render cannot be called"):
        env.env_method("render")
    with pytest.raises(AttributeError):
        env.get_attr("nothing")


def test_a_broken_environment_is_told() -> None:
    broken = GymnasiumFamily(
        Countdown,
        spaces.Dict(length=spaces.Discrete(6, start=-1)),
        apply="attribute",
        sampling=Sampling(horizon=9),
    )
    env = TaskVecEnv(broken, 2, tasks_with(broken, {"length": [0, 3]}))
    env.reset()
    with pytest.raises(LaneError, match="lane 0, step 1: AssertionError: it has ended"):
        env.step(np.zeros(2, dtype=int))


def seen(family: Any, seed: Any) -> np.ndarray[Any, Any]:
    env = TaskVecEnv(family, 2, seed=seed)
    found = [env.reset(), *(env.step(np.zeros((2, 1), dtype=np.float32))[0] for _ in range(12))]
    env.close()
    return np.array(found)


@pytest.mark.parametrize("apply", ["keyword", "attribute"])
def test_the_seed_decides_all_episodes(apply: Any) -> None:
    pendulums = GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)), apply, Sampling(horizon=4))
    first = seen(pendulums, 0)
    np.testing.assert_array_equal(first, seen(pendulums, 0))
    np.testing.assert_array_equal(first, seen(pendulums, np.int64(0)))
    assert not (first == seen(pendulums, 1)).all((1, 2)).any()


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3)])
@pytest.mark.parametrize("family", [NAVIGATION, BANDIT, HalfCheetahVelocity(sampling=Sampling(horizon=4))])
def test_seeds_may_be_numpys(family: Any, seed: Any) -> None:
    env, other = TaskVecEnv(family, 2, seed=seed), TaskVecEnv(family, 2, seed=3)
    np.testing.assert_array_equal(env.reset(), other.reset())
    lanes = family.environment(2, torch.device("cpu"))
    np.testing.assert_array_equal(*(np.asarray(lanes.reset(seed=one)[0]) for one in (seed, 3)))
    single = family.single({name: rows[0].numpy() for name, rows in family.sample(
        1, "train", torch.Generator().manual_seed(0)).parameters.items()})  # fmt: skip
    np.testing.assert_array_equal(*(single.reset(seed=one)[0] for one in (seed, 3)))
    with pytest.raises(ValueError, match=r"the seed is 1.5: expected an integer"):
        TaskVecEnv(family, 2, seed=1.5)


def test_ppo_on_a_seed_is_reproducible() -> None:
    pendulums = GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)), sampling=Sampling(horizon=4))
    nets = []
    for _ in range(2):
        env = TaskVecEnv(pendulums, 2, seed=5)
        model = PPO("MlpPolicy", env, n_steps=12, batch_size=24, n_epochs=1, seed=0, device="cpu").learn(48)
        nets.append(model.policy.state_dict())
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())


def test_policies_leave_the_lanes_of_others_open() -> None:
    env = TaskVecEnv(COUNTDOWN, 1)
    env.reset()
    learner = metarl.MAML(network=metarl.Network(hidden=(3,))).build(COUNTDOWN.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    trained = Trained(metarl.MAML(), COUNTDOWN, learner, params, torch.device("cpu"), 0)
    lanes = COUNTDOWN.environment(1, torch.device("cpu"))
    lanes.reset(seed=0)
    policy(trained)
    metarl.train(metarl.MAML(), COUNTDOWN, settings=metarl.Settings(iterations=1, meta_batch_size=1))
    assert lanes.step(np.zeros(1, dtype=int))[0].shape == (1, 1)


def test_lanes_with_running_statistics_are_refused() -> None:
    class Counted(PointNavigation):
        def environment(self, num_envs: int, device: torch.device) -> Any:
            return gymnasium.wrappers.vector.RecordEpisodeStatistics(super().environment(num_envs, None))

    with pytest.raises(ValueError, match="the wrapper RecordEpisodeStatistics, whose statistics are no part of a run"):
        TaskVecEnv(Counted(), 2)
