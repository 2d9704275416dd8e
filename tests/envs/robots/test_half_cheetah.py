import gymnasium
import numpy as np
import pytest
import torch

import metarl_envs  # noqa: F401  # registers the environments
from metarl.algorithms.maml import MAML
from metarl.control import Sampling
from metarl.networks import Network
from metarl.types import policy_of
from metarl_envs.mujoco import Dynamics, Motion
from metarl_envs.robots.half_cheetah import HalfCheetah, HalfCheetahDirection, HalfCheetahVelocity

MOTION = Motion(
    position=np.zeros((2, 1)),
    velocity=np.array([[1.5], [-0.5]]),
    action=np.array([[0.5, -0.5, 0.5, -0.5, 0.5, -0.5], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]),
    physics=None,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_velocity_reward():
    rewards = HalfCheetahVelocity().reward(MOTION, {"velocity": np.array([1.0, 2.0])})
    np.testing.assert_allclose(rewards, [-0.5 - 0.05 * 1.5, -2.5 - 0.05], rtol=1e-15)


def test_direction_reward():
    rewards = HalfCheetahDirection(control_cost=0.1).reward(MOTION, {"direction": np.array([1.0, -1.0])})
    np.testing.assert_allclose(rewards, [1.5 - 0.15, 0.5 - 0.1], rtol=1e-15)


def test_velocity_is_the_distance_over_twentieths_of_a_second():
    env = gymnasium.make("metarl/HalfCheetahVelocity-v0", velocity=1.3).unwrapped
    env.reset(seed=0)
    before = env.data.qpos[0]
    _, reward, _, _, info = env.step(np.zeros(6, dtype=np.float32))
    assert info["x_velocity"] == pytest.approx((env.data.qpos[0] - before) / 0.05)
    assert reward == pytest.approx(-abs(info["x_velocity"] - 1.3))


def test_velocities_fill_their_range():
    family = HalfCheetahVelocity(velocity_range=(0.0, 3.0))
    tasks = family.sample(1000, "train", generator())
    velocity = tasks.parameters["velocity"]
    assert velocity.shape == (1000,) and tasks.descriptors.shape == (1000, 1)
    assert velocity.min() >= 0 and velocity.max() <= 3 and abs(velocity.mean() - 1.5) < 0.1
    assert torch.equal(tasks.descriptors[:, 0], velocity)
    assert tasks.spec.input_shape == (17,) and tasks.spec.output_size == 6 and tasks.spec.kind == "continuous"


def test_directions_are_two_in_equal_shares():
    direction = HalfCheetahDirection().sample(1000, "test", generator()).parameters["direction"]
    assert set(direction.tolist()) == {-1.0, 1.0} and abs(direction.mean()) < 0.1


def test_sampling_is_determined_by_the_generator():
    first, second, other = (HalfCheetahVelocity().sample(5, "train", generator(s)).descriptors for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_defaults_are_the_papers():
    family = HalfCheetahVelocity()
    assert family.velocity_range == (0.0, 2.0) and family.control_cost == 0.05
    assert family.sampling == Sampling(episodes=20, horizon=200)


def test_varied_dynamics_are_parameters_and_descriptors():
    family = HalfCheetahVelocity(dynamics=Dynamics(mass=(0.5, 1.5), damping=(2.0, 2.0)))
    tasks = family.sample(50, "train", generator())
    assert list(tasks.parameters) == list(family.parameter_space) == ["velocity", "mass", "damping"]
    assert tasks.spec.descriptor_size == 3 and tasks.descriptors.shape == (50, 3)
    assert tasks.descriptors[:, 1].min() >= 0.5 and tasks.descriptors[:, 1].max() <= 1.5
    assert tasks.descriptors[:, 2].tolist() == [2.0] * 50
    plain = HalfCheetahVelocity().sample(50, "train", generator())
    assert torch.equal(plain.parameters["velocity"], tasks.parameters["velocity"])


@pytest.mark.parametrize("dynamics", [Dynamics(), Dynamics(mass=(0.8, 1.2))])
def test_tasks_draw_rollouts(dynamics):
    family = HalfCheetahVelocity(dynamics=dynamics, sampling=Sampling(episodes=2, horizon=5))
    tasks = family.sample(3, "train", generator())
    learner = MAML(network=Network(hidden=(8,))).build(family.spec)
    state = learner.begin(learner.init(generator()), tasks.descriptors)
    rollout = tasks.rollout(policy_of(learner, state), generator())
    assert rollout.observations.shape == (3, 2, 5, 17) and rollout.mask.all()
    again = tasks.rollout(policy_of(learner, state), generator())
    assert torch.equal(rollout.observations, again.observations)


def test_position_can_be_observed():
    env = gymnasium.make("metarl/HalfCheetahDirection-v0", observe_position=True).unwrapped
    observation, _ = env.reset(seed=0)
    assert observation.shape == (18,) and observation[0] == env.data.qpos[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HalfCheetahVelocity(velocity_range=(2.0, 1.0)), "velocity_range"),
        (lambda: HalfCheetahVelocity(velocity_range=(0.0, np.inf)), "velocity_range"),
        (lambda: HalfCheetah(action_scale=0.0), "action_scale"),
        (lambda: HalfCheetah(reset_noise=-0.1), "reset_noise"),
        (lambda: Dynamics(mass=(0.0, 1.0)), "mass"),
        (lambda: Dynamics(friction=(2.0, 1.0)), "friction"),
        (lambda: HalfCheetahVelocity().sample(0, "train", generator()), "at least one task"),
        (lambda: HalfCheetahDirection().sample(-1, "train", generator()), "at least one task"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
