"""HalfCheetah that must find out how fast, or in which direction, to run (MAML, https://arxiv.org/abs/1703.03400).

Gymnasium's HalfCheetah-v5, whose control step lasts 0.05 s. That of the paper's simulator (rllab) lasts 0.01 s, and its
velocities are those of an instant, so returns cannot be compared with the paper's; the share of the gap closed between
a pre-trained policy and an oracle can.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Generator

from metarl.control import ControlTasks, Sampling
from metarl.types import Spec, Split
from metarl_envs.mujoco import robot_tasks
from metarl_envs.mujoco.dynamics import Dynamics, Values
from metarl_envs.mujoco.lanes import RobotEnv
from metarl_envs.mujoco.rendering import BESIDE, Camera, Marker, arrows
from metarl_envs.mujoco.robots import Motion, Parameters, box, check_range, check_robot, namespace
from metarl_envs.mujoco.simulator import Physics, Simulation


@dataclass(frozen=True)
class HalfCheetah:
    """Gymnasium's HalfCheetah-v5: 17 observations (positions without x, velocities), 6 torques; it never falls."""

    action_scale: float = 1.0
    """Policy's action that means full torque, clipped beyond it: 1 as in the paper, 10 as pytorch-maml-rl and ProMP."""
    reset_noise: float = 0.1
    """Noise of the start: uniform in +- this on positions, normal of this deviation on velocities, as Gymnasium's."""
    observe_position: bool = False
    """Observe x as well: the paper's code and pytorch-maml-rl do, through the torso's position; ProMP does not."""

    model_file: ClassVar[str] = "half_cheetah.xml"
    substeps: ClassVar[int] = 5
    contact_forces: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_robot(self)

    def position(self, physics: Physics) -> Values:
        """Return x, ``[..., 1]`` in metres."""
        return physics.qpos[..., :1]

    def observe(self, physics: Physics) -> Values:
        """Return positions and velocities, ``[..., 17]``, or 18 with x."""
        parts = (physics.qpos[..., 0 if self.observe_position else 1 :], physics.qvel)
        return namespace(physics.qpos).concatenate(parts, axis=-1)

    def healthy(self, physics: Physics) -> Values:
        """Return true, ``[...]``."""
        return namespace(physics.qpos).ones_like(physics.qpos[..., 0], dtype=bool)


@dataclass(frozen=True)
class HalfCheetahVelocity:
    """HalfCheetah paid for running at a goal velocity: -|v - velocity| - control_cost |a|^2, at each step.

    v is the mean forward velocity over the step (0.05 s), a the torques in [-1, 1]. Task parameter: ``velocity``
    ``[task]``, in metres per second. The splits draw from one distribution.
    """

    velocity_range: tuple[float, float] = (0.0, 2.0)
    """Goal velocities are uniform in this range, m/s: (0, 2) as in the paper, (0, 3) as ProMP and PEARL."""
    control_cost: float = 0.05
    """Weight of the squared torques: 0.05 in the paper's code."""
    robot: HalfCheetah = HalfCheetah()
    """The robot."""
    dynamics: Dynamics = field(default_factory=Dynamics)
    """How the robot's dynamics differ between tasks; by default they do not."""
    simulation: Simulation = field(default_factory=Simulation)
    """How lanes are simulated."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled: as in the paper."""

    camera: ClassVar[Camera] = BESIDE

    def __post_init__(self) -> None:
        check_range("velocity_range", self.velocity_range)

    @property
    def spec(self) -> Spec:
        """17 observations, 6 torques; described by the velocity and the factors on the dynamics that vary."""
        return robot_tasks.robot_spec(self)

    @property
    def parameter_space(self) -> spaces.Dict:
        """Velocity in metres per second, then the factors on the dynamics that vary."""
        return robot_tasks.parameters_in({"velocity": box(*self.velocity_range)}, self.dynamics)

    @property
    def default_task(self) -> dict[str, Any]:
        """1 m/s."""
        return {"velocity": 1.0}

    def reward(self, motion: Motion, parameters: Parameters) -> Values:
        """Return minus the distance to the goal velocity and minus the control cost, ``[...]``."""
        distance = abs(motion.velocity[..., 0] - parameters["velocity"])
        return -distance - self.control_cost * motion.effort

    def markers(self, motion: Motion, parameters: Parameters) -> list[Marker]:
        """Return arrows of the goal velocity and of the robot's own."""
        return arrows(motion.position, parameters["velocity"], motion.velocity)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample velocities. Raises ValueError for fewer than one task."""
        velocities = robot_tasks.uniform(self.velocity_range, generator, num_tasks)
        return robot_tasks.control_tasks(self, {"velocity": velocities}, generator)

    def environment(self, num_envs: int, device: torch.device) -> robot_tasks.RobotLanes:
        """Return the lanes that episodes are sampled from: see ``Simulation``."""
        return robot_tasks.sampling_lanes(self, num_envs, device)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> RobotEnv:
        """Return one environment of one task."""
        return RobotEnv(self, parameters, render_mode)


@dataclass(frozen=True)
class HalfCheetahDirection:
    """HalfCheetah paid for running forwards or backwards: direction v - control_cost |a|^2, at each step.

    v is the mean forward velocity over the step (0.05 s), a the torques in [-1, 1]. Task parameter: ``direction``
    ``[task]``, 1 or -1. There are only these two tasks, drawn with equal chances, in every split.
    """

    control_cost: float = 0.05
    """Weight of the squared torques: 0.05 in the paper's code."""
    robot: HalfCheetah = HalfCheetah()
    """The robot."""
    dynamics: Dynamics = field(default_factory=Dynamics)
    """How the robot's dynamics differ between tasks; by default they do not."""
    simulation: Simulation = field(default_factory=Simulation)
    """How lanes are simulated."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled: as in the paper."""

    camera: ClassVar[Camera] = BESIDE

    @property
    def spec(self) -> Spec:
        """17 observations, 6 torques; described by the direction and the factors on the dynamics that vary."""
        return robot_tasks.robot_spec(self)

    @property
    def parameter_space(self) -> spaces.Dict:
        """Direction, 1 or -1, then the factors on the dynamics that vary."""
        return robot_tasks.parameters_in({"direction": box(-1, 1)}, self.dynamics)

    @property
    def default_task(self) -> dict[str, Any]:
        """Forwards."""
        return {"direction": 1.0}

    @property
    def splits_share_tasks(self) -> bool:
        """Two directions are too few to hold one out."""
        return True

    def reward(self, motion: Motion, parameters: Parameters) -> Values:
        """Return the velocity in the goal direction minus the control cost, ``[...]``."""
        return parameters["direction"] * motion.velocity[..., 0] - self.control_cost * motion.effort

    def markers(self, motion: Motion, parameters: Parameters) -> list[Marker]:
        """Return an arrow in the goal direction, and one of the robot's own velocity."""
        return arrows(motion.position, parameters["direction"], motion.velocity)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample directions. Raises ValueError for fewer than one task."""
        return robot_tasks.control_tasks(self, {"direction": robot_tasks.signs(generator, num_tasks)}, generator)

    def environment(self, num_envs: int, device: torch.device) -> robot_tasks.RobotLanes:
        """Return the lanes that episodes are sampled from: see ``Simulation``."""
        return robot_tasks.sampling_lanes(self, num_envs, device)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> RobotEnv:
        """Return one environment of one task."""
        return RobotEnv(self, parameters, render_mode)
