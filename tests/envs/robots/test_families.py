"""A family is a robot times a task: options in their order, and what another robot costs."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch

from metarl.control import Sampling
from metarl.testing import check_family
from metarl_envs.goal_direction import GoalDirection
from metarl_envs.goal_position import GoalPosition
from metarl_envs.goal_velocity import GoalVelocity
from metarl_envs.mujoco import BESIDE, Camera, Motion, Physics, Simulated, Values, check_robot, namespace
from metarl_envs.robots import AntDirection, AntGoal, AntVelocity, HalfCheetahDirection, HalfCheetahVelocity


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (HalfCheetahVelocity, "velocity_range control_cost"),
        (HalfCheetahDirection, "control_cost"),
        (AntVelocity, "velocity_range control_cost alive_bonus"),
        (AntDirection, "plane angle_range control_cost alive_bonus"),
        (AntGoal, "goal_range control_cost alive_bonus"),
    ],
)
def test_options_come_in_the_order_of_task_robot_and_simulation(family: Any, options: str) -> None:
    """Users see it in the help, and may give options by position."""
    expected = [*options.split(), "robot", "dynamics", "simulation", "sampling", "splits"]
    assert [field.name for field in fields(family)] == expected


def test_defaults_are_those_of_robot_and_task() -> None:
    velocity, direction, goal = AntVelocity(), AntDirection(), AntGoal()
    assert {family.control_cost for family in (velocity, direction, goal)} == {0.005}
    assert [family.alive_bonus for family in (velocity, direction, goal)] == [1.05, 0.05, 4.05]
    assert velocity.robot == direction.robot != goal.robot
    assert (velocity.velocity_range, direction.plane, goal.goal_range) == ((0.0, 3.0), False, (-3.0, 3.0))
    assert HalfCheetahVelocity() != HalfCheetahVelocity(control_cost=0.1)
    assert hash(HalfCheetahVelocity()) == hash(HalfCheetahVelocity())


def test_only_lines_of_two_directions_share_their_tasks() -> None:
    """The contract of families asks for it where no tasks are held out."""
    assert HalfCheetahDirection().splits_share_tasks and AntDirection().splits_share_tasks
    assert not AntDirection(plane=True).splits_share_tasks
    assert not any(hasattr(family, "splits_share_tasks") for family in (AntGoal(), AntVelocity()))


@dataclass(frozen=True)
class Hopper:
    """A robot that is not among those here, whose control step lasts 0.008 s."""

    action_scale: float = 1.0
    reset_noise: float = 0.0

    model_file: ClassVar[str] = "hopper.xml"
    substeps: ClassVar[int] = 4
    contact_forces: ClassVar[bool] = False
    camera: ClassVar[Camera] = BESIDE

    def __post_init__(self) -> None:
        check_robot(self)

    def position(self, physics: Physics) -> Values:
        return physics.qpos[..., :1]

    def observe(self, physics: Physics) -> Values:
        return namespace(physics.qpos).concatenate([physics.qpos[..., 1:], physics.qvel], axis=-1)

    def healthy(self, physics: Physics) -> Values:
        return physics.qpos[..., 1] > 0.7


@dataclass(frozen=True)
class HopperOptions:
    control_cost: float = 0.001
    alive_bonus: float = 1.0
    robot: Hopper = Hopper()


@dataclass(frozen=True)
class HopperVelocity(Simulated, HopperOptions, GoalVelocity):
    velocity_range: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class HopperDirection(Simulated, HopperOptions, GoalDirection):
    pass


@dataclass(frozen=True)
class HopperGoal(Simulated, HopperOptions, GoalPosition):
    goal_range: tuple[float, float] = (-1.0, 1.0)


@pytest.mark.parametrize("family", [HopperVelocity, HopperDirection])
def test_another_robot_is_its_file_alone(family: Any) -> None:
    made = family(sampling=Sampling(episodes=2, horizon=20))
    assert made.spec.input_shape == (11,) and made.spec.output_size == 3 and made.spec.descriptor_size == 1
    check_family(made)


def test_another_robot_is_paid_by_the_same_rule() -> None:
    actions = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    motion = Motion(np.zeros((2, 1)), np.array([[1.5], [-0.5]]), actions, physics=None)
    rewards = HopperVelocity().reward(motion, {"velocity": np.array([1.0, 2.0])})
    np.testing.assert_allclose(rewards, [1.0 - 0.5 - 0.002, 1.0 - 2.5], rtol=1e-14)
    rewards = HopperDirection(alive_bonus=0.0).reward(motion, {"direction": np.array([-1.0, -1.0])})
    np.testing.assert_allclose(rewards, [-1.5 - 0.002, 0.5], rtol=1e-14)


def test_pictures_are_shown_in_the_time_of_the_robot() -> None:
    frames = {1 / make({}).dt: make({}).metadata["render_fps"] for make in (HopperVelocity().single, AntGoal().single)}
    assert list(frames.values()) == [125, 20] and list(frames) == pytest.approx([125, 20])
    assert gymnasium.make("metarl/AntGoal-v0").metadata["render_fps"] == 20


def test_a_robot_on_a_line_has_no_goal_in_the_plane() -> None:
    """Rather an error than a distance along an axis that it does not have."""
    for make in (lambda: HopperGoal().single({}), lambda: HopperGoal().environment(2, torch.device("cpu"))):
        with pytest.raises(ValueError, match=r"HopperGoal.reward fails for one robot \(IndexError: index 1 is out of "):
            make()
