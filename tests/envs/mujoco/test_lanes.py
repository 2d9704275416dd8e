import importlib.util

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

import metarl_envs  # noqa: F401  # registers the environments
from metarl.environments.lanes import LaneError
from metarl_envs.mujoco import RobotEnv, RobotVectorEnv, Simulation
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity

NAMES = ["HalfCheetahVelocity", "HalfCheetahDirection", "AntVelocity", "AntDirection", "AntGoal"]
NO_POOL = importlib.util.find_spec("mujoco.batch") is None
BACKENDS = [pytest.param("native", marks=pytest.mark.skipif(NO_POOL, reason="MuJoCo before 3.17")), "threads"]


@pytest.fixture(autouse=True)
def _leave_no_log(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT where it runs


def lanes_of(num_envs=3, backend="auto", threads=None, **options):
    return RobotVectorEnv(HalfCheetahVelocity(simulation=Simulation(backend, threads)), num_envs, **options)


def actions_for(env, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, env.action_space.shape)


def play(env, steps=20, **reset):
    observations = [env.reset(**reset)[0]]
    for step in range(steps):
        observations.append(env.step(actions_for(env, step))[0])
    return np.stack(observations)


@pytest.mark.parametrize("name", NAMES)
def test_make_vec_gives_the_batched_twin(name):
    env = gymnasium.make_vec(f"metarl/{name}-v0", num_envs=3, vectorization_mode="vector_entry_point")
    assert isinstance(env, RobotVectorEnv) and env.horizon == 200
    assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.DISABLED
    observations, infos = env.reset(seed=0)
    assert observations in env.observation_space and infos == {}
    observations, rewards, terminations, truncations, _ = env.step(env.action_space.sample())
    assert observations in env.observation_space and rewards.dtype == np.float64
    assert [array.shape for array in (rewards, terminations, truncations)] == [(3,)] * 3
    assert terminations.dtype == truncations.dtype == np.bool_
    single = gymnasium.make(f"metarl/{name}-v0")
    assert single.observation_space == env.single_observation_space
    assert single.action_space == env.single_action_space
    assert single.unwrapped.parameter_space == env.parameter_space


def test_make_takes_tasks_factors_and_options_by_keyword():
    env = gymnasium.make(
        "metarl/AntDirection-v0", plane=True, direction=(0.0, 1.0), mass=2.0, action_scale=10.0
    ).unwrapped
    assert env._parameters["direction"].tolist() == [0.0, 1.0]
    assert env.model.body_mass[1] == 2 * gymnasium.make("Ant-v5").unwrapped.model.body_mass[1]
    assert env.action_space.high.tolist() == [10.0] * 8
    lanes = gymnasium.make_vec("metarl/HalfCheetahVelocity-v0", num_envs=2, velocity=0.7, backend="threads", horizon=5)
    assert lanes._parameters["velocity"].tolist() == [0.7, 0.7] and lanes.horizon == 5


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="bogus"):
        gymnasium.make("metarl/AntGoal-v0", bogus=1)
    with pytest.raises(ValueError, match="bogus"):
        gymnasium.make_vec("metarl/AntGoal-v0", num_envs=2, bogus=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_and_backends_change_no_bit(backend):
    runs = [play(lanes_of(5, kind, threads), seed=1) for kind, threads in (("auto", None), (backend, 1), (backend, 3))]
    assert (runs[0] == runs[1]).all() and (runs[0] == runs[2]).all()


def test_seeds_determine_the_start():
    env = lanes_of()
    first, again, other = (env.reset(seed=seed)[0] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any() and (first[0] != first[1]).any()
    assert (env.reset()[0] != other).any()


def test_starting_noise_is_gymnasiums():
    env = lanes_of(2000)
    env.reset(seed=0)
    qpos, qvel = env.simulator.qpos, env.simulator.qvel
    assert np.abs(qpos).max() <= 0.1 and np.abs(qpos.std() - 0.2 / np.sqrt(12)) < 1e-3
    assert np.abs(qvel.mean()) < 2e-3 and np.abs(qvel.std() - 0.1) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_reset_mask_restarts_only_its_lanes_with_their_tasks(backend):
    env = lanes_of(3, backend)
    observations = play(env, seed=0, options={"velocity": torch.tensor([0.1, 0.2, 0.3])})[-1]
    mask = np.array([False, True, False])
    masked, _ = env.reset(options={"reset_mask": torch.from_numpy(mask), "velocity": np.array([1.0, 1.1, 1.2])})
    assert (masked == observations).all(axis=1).tolist() == [True, False, True]
    np.testing.assert_allclose(env._parameters["velocity"], [0.1, 1.1, 0.3], rtol=1e-7)
    env.reset()
    np.testing.assert_allclose(env._parameters["velocity"], [0.1, 1.1, 0.3], rtol=1e-7)
    kept, _ = env.reset(options={"reset_mask": np.zeros(3, dtype=bool)})
    assert (kept == env.reset(options={"reset_mask": np.zeros(3, dtype=bool)})[0]).all()


def test_the_horizon_truncates_each_lane_by_its_own_clock():
    env = lanes_of(2, horizon=3)
    env.reset(seed=0)
    actions = actions_for(env)
    assert not env.step(actions)[3].any()
    env.reset(options={"reset_mask": np.array([True, False])})
    assert env.step(actions)[3].tolist() == [False, False]
    assert env.step(actions)[3].tolist() == [False, True]
    before = env.simulator.qpos.copy()
    observations, rewards, terminations, truncations, _ = env.step(actions)
    assert truncations.tolist() == [True, True] and not terminations.any()
    assert rewards[0] != 0 and rewards[1] == 0
    assert (env.simulator.qpos == before).all(axis=1).tolist() == [False, True]
    again, rewards, _, _, _ = env.step(actions)
    assert (again == observations).all() and rewards.tolist() == [0, 0]


def test_what_is_returned_may_be_written_to():
    env = lanes_of()
    env.reset(seed=0)
    returned = env.step(actions_for(env))
    state = env.simulator.qpos.copy()
    for array in returned[:4]:
        array[...] = 1
    assert (env.simulator.qpos == state).all() and not env._book.terminated.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_factors_of_1_give_the_robot_as_designed_again(backend):
    env = lanes_of(2, backend)
    designed = play(env, seed=0)
    heavy = play(env, seed=0, options={"mass": np.array([2.0, 1.0])})
    assert (heavy == designed).all(axis=(0, 2)).tolist() == [False, True]
    assert (play(env, seed=0, options={"mass": np.array([1.0, 1.0])}) == designed).all()


def test_actions_are_scaled_and_clipped():
    actions = np.random.default_rng(0).integers(-2, 3, (3, 6)) / 2
    rows = []
    for scale, given in ((1.0, actions), (10.0, 10 * actions), (1.0, 3 * np.sign(actions)), (1.0, np.sign(actions))):
        env = gymnasium.make_vec("metarl/HalfCheetahVelocity-v0", num_envs=3, action_scale=scale)
        env.reset(seed=0)
        rows.append(env.step(given)[:2])
    for (one, reward), (other, same) in (rows[:2], rows[2:]):
        assert (one == other).all() and (reward == same).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": np.ones(3)}, r"unknown options \['speed'\].*velocity"),
        ({"velocity": np.ones(2)}, r"velocity has shape \(2,\) where \(3,\) was expected"),
        ({"velocity": 1.0}, r"velocity has shape \(\) where \(3,\)"),
        ({"velocity": np.array([0.0, np.nan, 0.0])}, "velocity must hold finite numbers"),
        ({"mass": np.array([1.0, 0.0, 1.0])}, "mass must hold factors above 0"),
        ({"reset_mask": np.ones(2, dtype=bool)}, r"reset_mask must be bool \[3\]"),
        ({"reset_mask": np.ones(3)}, r"reset_mask must be bool \[3\], not float64"),
    ],
)
def test_reset_refuses_what_it_does_not_know(options, message):
    with pytest.raises(ValueError, match=message):
        lanes_of().reset(options=options)


def test_the_single_environment_refuses_the_same():
    env = RobotEnv(HalfCheetahVelocity())
    with pytest.raises(ValueError, match="unknown options"):
        env.reset(options={"speed": 1.0})
    with pytest.raises(ValueError, match=r"velocity has shape \(1,\) where \(\) was expected"):
        env.reset(options={"velocity": [1.0]})
    env.reset(seed=0, options={"velocity": 1.3})
    assert env._parameters["velocity"] == 1.3
    with pytest.raises(ValueError, match=r"shape \(5,\) where \(6,\)"):
        env.step(np.zeros(5))
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.full(6, np.nan))


def test_step_refuses_wrong_shapes_and_names_the_first_lane_that_is_not_finite():
    env = lanes_of()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2, 6\) where \(3, 6\) was expected"):
        env.step(np.zeros((2, 6)))
    actions = np.zeros((3, 6))
    actions[1, 4] = np.nan
    with pytest.raises(ValueError, match="the action of lane 1 is not finite"):
        env.step(actions)


@pytest.mark.parametrize(("num_envs", "horizon"), [(0, None), (1, 0)])
def test_empty_batches_are_refused(num_envs, horizon):
    with pytest.raises(ValueError, match="at least one lane and one step"):
        lanes_of(num_envs, horizon=horizon)


def test_unknown_backends_and_no_threads_are_refused():
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        Simulation(backend="gpu")
    with pytest.raises(ValueError, match="at least one thread"):
        Simulation(threads=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("speed", [1e12, np.nan])
def test_an_unstable_lane_is_named_and_can_be_reset(backend, speed):
    env = lanes_of(4, backend)
    env.reset(seed=0)
    qpos, qvel = env.simulator.qpos.copy(), env.simulator.qvel.copy()
    qvel[[1, 3]] = speed
    env.simulator.reset(np.ones(4, dtype=bool), qpos, qvel)
    with pytest.raises(LaneError, match=r"unstable in lanes \[1, 3\]") as caught:
        env.step(actions_for(env))
    assert caught.value.lanes == [1, 3]
    env.reset(options={"reset_mask": np.array([False, True, False, True])})
    assert np.isfinite(env.step(actions_for(env))[0]).all()


def test_an_unstable_single_environment_raises():
    env = RobotEnv(HalfCheetahVelocity())
    env.reset(seed=0)
    env.data.qvel[:] = 1e12
    with pytest.raises(RuntimeError, match="unstable"):
        env.step(np.zeros(6))


def test_a_failure_on_a_thread_names_the_lane(monkeypatch):
    def fail(model, data, substeps):
        if data is env.simulator._data[2]:
            raise mujoco.FatalError("out of memory")

    env = lanes_of(3, "threads")
    monkeypatch.setattr(mujoco, "mj_step", fail)
    with pytest.raises(RuntimeError, match="MuJoCo failed in lane 2: out of memory"):
        env.step(actions_for(env))
