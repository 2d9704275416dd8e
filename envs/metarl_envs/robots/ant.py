"""Ant that must find out how fast, in which direction, or where to go (MAML, https://arxiv.org/abs/1703.03400).

Gymnasium's Ant-v5, whose control step lasts 0.05 s. That of the paper's simulator (rllab) lasts 0.02 s, and its
velocities are those of an instant, so returns cannot be compared with the paper's. The originals' contact cost (0.0005
times the squared contact forces, clipped) is left out: without it no contact forces need be computed.
"""

import math
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
from metarl_envs.mujoco.rendering import ABOVE, Camera, Marker, arrows, column, overview
from metarl_envs.mujoco.robots import Motion, Parameters, box, check_range, check_robot, namespace
from metarl_envs.mujoco.simulator import Physics, Simulation

TORSO = 1


@dataclass(frozen=True)
class Ant:
    """Gymnasium's Ant-v5: 27 observations (positions without x and y, velocities), 8 torques; it may fall."""

    action_scale: float = 1.0
    """Policy's action that means full torque, clipped beyond it: 1 as in the paper, 10 as pytorch-maml-rl and ProMP."""
    reset_noise: float = 0.1
    """Noise of the start: uniform in +- this on positions, normal of this deviation on velocities, as Gymnasium's."""
    observe_position: bool = False
    """Observe x and y as well: the paper's code and pytorch-maml-rl do; Gymnasium does not."""
    contact_forces: bool = False
    """Observe the contact forces, clipped to [-1, 1] (78 numbers): exactly Ant-v5's; on threads or warp."""
    terminate: bool = True
    """End the episode when the torso leaves the healthy heights."""
    healthy_heights: tuple[float, float] = (0.2, 1.0)
    """Heights of the torso, in metres: (0.2, 1.0) in rllab, pytorch-maml-rl and Gymnasium."""

    model_file: ClassVar[str] = "ant.xml"
    substeps: ClassVar[int] = 5

    def __post_init__(self) -> None:
        check_robot(self)
        check_range("healthy_heights", self.healthy_heights)

    def position(self, physics: Physics) -> Values:
        """Return x and y of the torso, ``[..., 2]`` in metres."""
        return physics.xpos[..., TORSO, :2]

    def observe(self, physics: Physics) -> Values:
        """Return positions, velocities and perhaps contact forces, ``[..., 27]`` and up."""
        xp = namespace(physics.qpos)
        parts = [physics.qpos[..., 0 if self.observe_position else 2 :], physics.qvel]
        if self.contact_forces:
            forces = physics.cfrc_ext[..., 1:, :]
            parts.append(xp.clip(forces, -1, 1).reshape(*forces.shape[:-2], -1))
        return xp.concatenate(parts, axis=-1)

    def healthy(self, physics: Physics) -> Values:
        """Return whether the torso is at a healthy height and the state finite, ``[...]``; or true."""
        xp = namespace(physics.qpos)
        if not self.terminate:
            return xp.ones_like(physics.qpos[..., 0], dtype=bool)
        height, (low, high) = physics.qpos[..., 2], self.healthy_heights
        finite = xp.isfinite(physics.qpos).all(axis=-1) & xp.isfinite(physics.qvel).all(axis=-1)
        return finite & (low <= height) & (height <= high)


@dataclass(frozen=True)
class AntVelocity:
    """Ant paid for walking at a goal velocity: alive_bonus - |v - velocity| - control_cost |a|^2, at each step.

    v is the torso's mean velocity along x over the step (0.05 s), a the torques in [-1, 1]. Task parameter:
    ``velocity`` ``[task]``, in metres per second. The splits draw from one distribution.
    """

    velocity_range: tuple[float, float] = (0.0, 3.0)
    """Goal velocities are uniform in this range, in metres per second: (0, 3) as the paper and pytorch-maml-rl."""
    control_cost: float = 0.005
    """Weight of the squared torques: 0.005 in the paper's code and pytorch-maml-rl."""
    alive_bonus: float = 1.05
    """Paid at each step: the paper's 1, and rllab's 0.05 for surviving."""
    robot: Ant = Ant()
    """The robot."""
    dynamics: Dynamics = field(default_factory=Dynamics)
    """How the robot's dynamics differ between tasks; by default they do not."""
    simulation: Simulation = field(default_factory=Simulation)
    """How lanes are simulated."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled: as in the paper."""

    camera: ClassVar[Camera] = ABOVE

    def __post_init__(self) -> None:
        check_range("velocity_range", self.velocity_range)

    @property
    def spec(self) -> Spec:
        """27 observations, 8 torques; described by the velocity and the factors on the dynamics that vary."""
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
        """Return the bonus minus the distance to the goal velocity and the control cost, ``[...]``."""
        distance = abs(motion.velocity[..., 0] - parameters["velocity"])
        return self.alive_bonus - distance - self.control_cost * motion.effort

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
class AntDirection:
    """Ant paid for walking in a direction: alive_bonus + direction . v - control_cost |a|^2, at each step.

    v is the torso's mean velocity over the step (0.05 s), a the torques in [-1, 1]. Task parameter: ``direction``
    ``[task]``, 1 (along x) or -1: there are only these two tasks, drawn with equal chances, in every split. In the
    plane: ``[task, 2]``, unit vectors with uniform angles, and the splits draw from one distribution.
    """

    plane: bool = False
    """Any direction in the plane, as learn2learn's AntDirection, instead of forwards or backwards as the paper."""
    control_cost: float = 0.005
    """Weight of the squared torques: 0.005 in the paper's code and pytorch-maml-rl."""
    alive_bonus: float = 0.05
    """Paid at each step: rllab's 0.05 for surviving."""
    robot: Ant = Ant()
    """The robot."""
    dynamics: Dynamics = field(default_factory=Dynamics)
    """How the robot's dynamics differ between tasks; by default they do not."""
    simulation: Simulation = field(default_factory=Simulation)
    """How lanes are simulated."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled: as in the paper, which took 40 episodes for this task."""

    camera: ClassVar[Camera] = ABOVE

    @property
    def spec(self) -> Spec:
        """27 observations, 8 torques; described by the direction and the factors on the dynamics that vary."""
        return robot_tasks.robot_spec(self)

    @property
    def parameter_space(self) -> spaces.Dict:
        """Direction, then the factors on the dynamics that vary."""
        direction = box(-1, 1, 2) if self.plane else box(-1, 1)
        return robot_tasks.parameters_in({"direction": direction}, self.dynamics)

    @property
    def default_task(self) -> dict[str, Any]:
        """Forwards."""
        return {"direction": (1.0, 0.0) if self.plane else 1.0}

    @property
    def splits_share_tasks(self) -> bool:
        """Two directions are too few to hold one out."""
        return not self.plane

    def reward(self, motion: Motion, parameters: Parameters) -> Values:
        """Return the bonus and the velocity in the goal direction minus the control cost, ``[...]``."""
        direction, velocity = parameters["direction"], motion.velocity
        if self.plane:
            speed = direction[..., 0] * velocity[..., 0] + direction[..., 1] * velocity[..., 1]
        else:
            speed = direction * velocity[..., 0]
        return self.alive_bonus + speed - self.control_cost * motion.effort

    def markers(self, motion: Motion, parameters: Parameters) -> list[Marker]:
        """Return an arrow in the goal direction, and one of the robot's own velocity."""
        return arrows(motion.position, parameters["direction"], motion.velocity)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample directions. Raises ValueError for fewer than one task."""
        if not self.plane:
            return robot_tasks.control_tasks(self, {"direction": robot_tasks.signs(generator, num_tasks)}, generator)
        angle = robot_tasks.uniform((0.0, 2 * math.pi), generator, num_tasks)
        return robot_tasks.control_tasks(self, {"direction": torch.stack([angle.cos(), angle.sin()], 1)}, generator)

    def environment(self, num_envs: int, device: torch.device) -> robot_tasks.RobotLanes:
        """Return the lanes that episodes are sampled from: see ``Simulation``."""
        return robot_tasks.sampling_lanes(self, num_envs, device)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> RobotEnv:
        """Return one environment of one task."""
        return RobotEnv(self, parameters, render_mode)


@dataclass(frozen=True)
class AntGoal:
    """Ant paid for nearing a goal position: alive_bonus - |x - goal_x| - |y - goal_y| - control_cost |a|^2.

    x and y are the torso's, in metres; a the torques in [-1, 1]. Task parameter: ``goal`` ``[task, 2]``, in metres
    from the origin. The splits draw from one distribution.
    """

    goal_range: tuple[float, float] = (-3.0, 3.0)
    """Goals are uniform in this range on each axis, in metres: (-3, 3) as the paper's code and pytorch-maml-rl."""
    control_cost: float = 0.005
    """Weight of the squared torques: 0.005 in the paper's code and pytorch-maml-rl."""
    alive_bonus: float = 4.05
    """Paid at each step: 4 in the paper's code and pytorch-maml-rl, and rllab's 0.05 for surviving."""
    robot: Ant = Ant(observe_position=True)
    """The robot; it observes x and y."""
    dynamics: Dynamics = field(default_factory=Dynamics)
    """How the robot's dynamics differ between tasks; by default they do not."""
    simulation: Simulation = field(default_factory=Simulation)
    """How lanes are simulated."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled: as the paper's other locomotion tasks."""

    def __post_init__(self) -> None:
        check_range("goal_range", self.goal_range)

    @property
    def spec(self) -> Spec:
        """29 observations, 8 torques; described by the goal and the factors on the dynamics that vary."""
        return robot_tasks.robot_spec(self)

    @property
    def parameter_space(self) -> spaces.Dict:
        """Goal in metres, then the factors on the dynamics that vary."""
        return robot_tasks.parameters_in({"goal": box(*self.goal_range, 2)}, self.dynamics)

    @property
    def default_task(self) -> dict[str, Any]:
        """1 m away along x and y."""
        return {"goal": (1.0, 1.0)}

    @property
    def camera(self) -> Camera:
        """Above the middle, so high that all goals are seen."""
        return overview(max(map(abs, self.goal_range)))

    def reward(self, motion: Motion, parameters: Parameters) -> Values:
        """Return the bonus minus the L1 distance to the goal and the control cost, ``[...]``."""
        apart = abs(motion.position - parameters["goal"])
        distance = apart[..., 0] + apart[..., 1]
        return self.alive_bonus - distance - self.control_cost * motion.effort

    def markers(self, motion: Motion, parameters: Parameters) -> list[Marker]:
        """Return a column at the goal."""
        return [column(parameters["goal"])]

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample goals. Raises ValueError for fewer than one task."""
        goals = robot_tasks.uniform(self.goal_range, generator, num_tasks, 2)
        return robot_tasks.control_tasks(self, {"goal": goals}, generator)

    def environment(self, num_envs: int, device: torch.device) -> robot_tasks.RobotLanes:
        """Return the lanes that episodes are sampled from: see ``Simulation``."""
        return robot_tasks.sampling_lanes(self, num_envs, device)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> RobotEnv:
        """Return one environment of one task."""
        return RobotEnv(self, parameters, render_mode)
