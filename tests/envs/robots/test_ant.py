import gymnasium
import numpy as np
import pytest
import torch

import metarl_envs  # noqa: F401  # registers the environments
from metarl_envs.mujoco import Motion, Simulation
from metarl_envs.robots.ant import Ant, AntDirection, AntGoal, AntVelocity

MOTION = Motion(
    position=np.array([[1.0, -2.0], [0.5, 0.5]]),
    velocity=np.array([[1.5, 2.0], [-0.5, 1.0]]),
    action=np.array([[0.5] * 8, [0.0] * 7 + [1.0]]),
    physics=None,
)
COSTS = np.array([0.005 * 2.0, 0.005])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("family", "parameters", "expected"),
    [
        (AntVelocity(), {"velocity": [1.0, 2.0]}, [1.05 - 0.5, 1.05 - 2.5]),
        (AntVelocity(alive_bonus=0.0), {"velocity": [1.0, 2.0]}, [-0.5, -2.5]),
        (AntDirection(), {"direction": [1.0, -1.0]}, [0.05 + 1.5, 0.05 + 0.5]),
        (AntDirection(plane=True), {"direction": [[0.6, 0.8], [0.0, -1.0]]}, [0.05 + 2.5, 0.05 - 1.0]),
        (AntGoal(), {"goal": [[3.0, -3.0], [-0.5, 0.25]]}, [4.05 - 3.0, 4.05 - 1.25]),
    ],
)
def test_rewards(family, parameters, expected):
    rewards = family.reward(MOTION, {name: np.array(values) for name, values in parameters.items()})
    np.testing.assert_allclose(rewards, np.array(expected) - COSTS, rtol=1e-14)


def test_goals_fill_the_square():
    goals = AntGoal().sample(1000, "train", generator()).parameters["goal"]
    assert goals.shape == (1000, 2) and goals.min() >= -3 and goals.max() <= 3 and goals.mean(0).abs().max() < 0.3


def test_velocities_lie_between_0_and_3():
    velocity = AntVelocity().sample(1000, "train", generator()).parameters["velocity"]
    assert velocity.min() >= 0 and 2.9 < velocity.max() <= 3


def test_directions_forwards_and_backwards_or_around():
    line = AntDirection().sample(100, "train", generator())
    assert set(line.parameters["direction"].tolist()) == {-1.0, 1.0} and line.descriptors.shape == (100, 1)
    plane = AntDirection(plane=True).sample(1000, "train", generator())
    assert torch.allclose(plane.descriptors.norm(dim=1), torch.ones(1000))
    assert plane.descriptors.mean(0).abs().max() < 0.1 and plane.spec.descriptor_size == 2


def test_observation_sizes():
    sizes = [
        family.spec.input_shape for family in (AntVelocity(), AntGoal(), AntVelocity(robot=Ant(contact_forces=True)))
    ]
    assert sizes == [(27,), (29,), (105,)] and AntVelocity().spec.output_size == 8


def test_the_goal_ant_observes_where_it_is():
    env = gymnasium.make("metarl/AntGoal-v0", goal=(2.0, 1.0)).unwrapped
    observation, _ = env.reset(seed=0)
    assert observation[:2].tolist() == env.data.qpos[:2].tolist()


def test_a_fallen_ant_terminates_and_its_lane_idles():
    env = AntVelocity().environment(2, torch.device("cpu"))
    env.reset(seed=0)
    qpos, qvel = env.simulator.qpos.copy(), env.simulator.qvel.copy()
    qpos[0, 2] = 1.5
    env.simulator.reset(np.array([True, False]), qpos, qvel)
    _, rewards, terminations, truncations, _ = env.step(np.zeros((2, 8)))
    assert terminations.tolist() == [True, False] and not truncations.any() and rewards[0] != 0
    before = env.simulator.qpos.copy()
    _, rewards, terminations, _, _ = env.step(np.zeros((2, 8)))
    assert terminations.tolist() == [True, False] and rewards[0] == 0
    assert (env.simulator.qpos[0] == before[0]).all() and (env.simulator.qpos[1] != before[1]).any()


def test_termination_can_be_turned_off():
    env = AntVelocity(robot=Ant(terminate=False, healthy_heights=(5.0, 6.0))).environment(1, torch.device("cpu"))
    env.reset(seed=0)
    assert not env.step(np.zeros((1, 8)))[2].any()
    env = AntVelocity(robot=Ant(healthy_heights=(5.0, 6.0))).environment(1, torch.device("cpu"))
    env.reset(seed=0)
    assert env.step(np.zeros((1, 8)))[2].all()


def test_the_native_backend_refuses_contact_forces():
    family = AntVelocity(robot=Ant(contact_forces=True), simulation=Simulation(backend="native"))
    with pytest.raises(ValueError, match="use backend 'threads'"):
        family.environment(1, torch.device("cpu"))


def test_unordered_ranges_are_refused():
    with pytest.raises(ValueError, match="healthy_heights"):
        Ant(healthy_heights=(1.0, 0.2))
    with pytest.raises(ValueError, match="goal_range"):
        AntGoal(goal_range=(1.0, -1.0))
    with pytest.raises(ValueError, match="velocity_range"):
        AntVelocity(velocity_range=(3.0, 0.0))
