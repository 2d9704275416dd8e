"""Lanes and single environments agree bit for bit, and single environments with Gymnasium's."""

import importlib.util

import gymnasium
import mujoco
import numpy as np
import pytest

import metarl_envs  # noqa: F401  # registers the environments

CHEETAH = "metarl/HalfCheetahVelocity-v0"
ANT = "metarl/AntVelocity-v0"
NO_POOL = importlib.util.find_spec("mujoco.batch") is None
BACKENDS = [pytest.param("native", marks=pytest.mark.skipif(NO_POOL, reason="MuJoCo before 3.17")), "threads"]
VELOCITIES = np.array([0.0, 0.4, 1.3, 2.0])


def assert_lanes_agree(name, tasks, steps, restart_every, **options):
    """Step four lanes and four single environments with the same actions; restart some lanes on the way."""
    lanes = gymnasium.make_vec(name, num_envs=4, max_episode_steps=150, **options)
    singles = [gymnasium.make(name, **options).unwrapped for _ in range(4)]
    rng = np.random.default_rng(0)
    restarted, finished, ends = np.ones(4, dtype=bool), np.zeros(4, dtype=bool), []
    for step in range(steps):
        if step % restart_every == 0:
            restarted = finished | (np.arange(4) == step // restart_every % 4) | (step == 0)
            observations, _ = lanes.reset(seed=step, options={**tasks, "reset_mask": restarted})
            finished &= ~restarted
            for lane in np.flatnonzero(restarted):
                start_like_lane(singles[lane], lanes, lane, tasks)
                assert (singles[lane]._robot.observe(singles[lane].data) == observations[lane]).all()
        actions = rng.uniform(-1.2, 1.2, lanes.action_space.shape).astype(np.float32)
        following, rewards, terminations, truncations, _ = lanes.step(actions)
        for lane, single in enumerate(singles):
            if finished[lane]:
                assert rewards[lane] == 0 and (following[lane] == observations[lane]).all()
                assert terminations[lane] or truncations[lane]
            else:
                observation, reward, terminated, _, _ = single.step(actions[lane])
                assert (following[lane] == observation).all()
                assert (rewards[lane], terminations[lane]) == (reward, terminated)
        ends += (terminations & ~finished)[terminations & ~finished].tolist()
        observations, finished = following, terminations | truncations
    lanes.close()
    return len(ends)


def start_like_lane(single, lanes, lane, tasks):
    single.reset(options={name: values[lane] for name, values in tasks.items()})
    mujoco.mj_resetData(single.model, single.data)
    single.set_state(lanes.simulator.qpos[lane], lanes.simulator.qvel[lane])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_cheetah_lanes_are_single_environments(backend):
    assert assert_lanes_agree(CHEETAH, {"velocity": VELOCITIES}, steps=1000, restart_every=130, backend=backend) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_ant_lanes_are_single_environments_through_terminations(backend):
    assert assert_lanes_agree(ANT, {"velocity": VELOCITIES}, steps=1000, restart_every=130, backend=backend) > 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [CHEETAH, ANT])
def test_lanes_of_different_dynamics_are_single_environments(name, backend):
    factors = {"mass": [0.5, 1.0, 1.5, 2.0], "friction": [1.0, 0.3, 1.0, 2.0], "damping": [1.0, 1.0, 3.0, 0.2]}
    tasks = {"velocity": VELOCITIES, **{name: np.array(values) for name, values in factors.items()}}
    assert_lanes_agree(name, tasks, steps=200, restart_every=60, backend=backend)


def test_ant_lanes_with_contact_forces_are_single_environments():
    assert_lanes_agree(ANT, {"velocity": VELOCITIES}, steps=200, restart_every=60, contact_forces=True)


@pytest.mark.parametrize(
    ("ours", "gymnasiums", "options"),
    [
        (CHEETAH, "HalfCheetah-v5", {}),
        (ANT, "Ant-v5", {"include_cfrc_ext_in_observation": False}),
        (ANT, "Ant-v5", {"include_cfrc_ext_in_observation": True}),
    ],
)
def test_observations_velocities_and_terminations_are_gymnasiums(ours, gymnasiums, options):
    forces = {"contact_forces": True} if options.get("include_cfrc_ext_in_observation") else {}
    env, reference = gymnasium.make(ours, **forces), gymnasium.make(gymnasiums, **options)
    lane = gymnasium.make_vec(ours, num_envs=1, **forces)
    env.action_space.seed(0)
    ended, touched = True, 0.0
    for step in range(150):
        if ended:
            seed = 7 + step
            expected, _ = reference.reset(seed=seed)
            assert (env.reset(seed=seed)[0] == expected).all()
            assert (lane.reset(seed=seed)[0][0] == expected).all()
        action = env.action_space.sample()
        expected, _, ended, _, info = reference.step(action)
        observation, _, terminated, _, ours_info = env.step(action)
        batched, _, terminations, _, _ = lane.step(action[None])
        assert (observation == expected).all() and (batched[0] == expected).all()
        assert terminated == ended == terminations[0]
        assert ours_info["x_velocity"] == info["x_velocity"]
        touched = max(touched, np.abs(observation[27:]).max(initial=0.0))
    assert touched == (1.0 if forces else 0.0)
