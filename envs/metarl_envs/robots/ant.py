"""Ant that must find out how fast, in which direction, or where to go (MAML, https://arxiv.org/abs/1703.03400).

Gymnasium's Ant-v5, whose control step lasts 0.05 s. That of the paper's simulator (rllab) lasts 0.02 s, and its
velocities are those of an instant, so returns cannot be compared with the paper's. The originals' contact cost (0.0005
times the squared contact forces, clipped) is left out: without it no contact forces need be computed.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from metarl.control import Sampling
from metarl_envs.goal_direction import PlaneDirection
from metarl_envs.goal_position import GoalPosition
from metarl_envs.goal_velocity import GoalVelocity
from metarl_envs.mujoco import ABOVE, Camera, Physics, Simulated, Values, check_range, check_robot, namespace

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
    camera: ClassVar[Camera] = ABOVE

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
class AntOptions:
    """Options of all its families."""

    control_cost: float = 0.005
    """Weight of the squared torques: 0.005 in the paper's code and pytorch-maml-rl."""
    alive_bonus: float = 0.05
    """Paid at each step: rllab's 0.05 for surviving."""
    robot: Ant = Ant()
    """The robot."""


@dataclass(frozen=True)
class AntVelocity(Simulated, AntOptions, GoalVelocity):
    """Ant paid for walking at a goal velocity: alive_bonus - |v - velocity| - control_cost |a|^2, at each step.

    v is the torso's mean velocity along x over the step (0.05 s), a the torques in [-1, 1]. Task parameter:
    ``velocity`` ``[task]``, in metres per second. The splits draw from one distribution.
    """

    velocity_range: tuple[float, float] = (0.0, 3.0)
    """Goal velocities are uniform in this range, in metres per second: (0, 3) as the paper and pytorch-maml-rl."""
    alive_bonus: float = 1.05
    """Paid at each step: the paper's 1, and rllab's 0.05 for surviving."""


@dataclass(frozen=True)
class AntDirection(Simulated, AntOptions, PlaneDirection):
    """Ant paid for walking in a direction: alive_bonus + direction . v - control_cost |a|^2, at each step.

    v is the torso's mean velocity over the step (0.05 s), a the torques in [-1, 1]. Task parameter: ``direction``
    ``[task]``, 1 (along x) or -1: there are only these two tasks, drawn with equal chances, in every split. In the
    plane: ``[task, 2]``, unit vectors with uniform angles, and the splits draw from one distribution.
    """

    plane: bool = False
    """Any direction in the plane, as learn2learn's AntDirection, instead of forwards or backwards as the paper."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled: as in the paper, which took 40 episodes for this task."""


@dataclass(frozen=True)
class AntGoal(Simulated, AntOptions, GoalPosition):
    """Ant paid for nearing a goal position: alive_bonus - |x - goal_x| - |y - goal_y| - control_cost |a|^2.

    x and y are the torso's, in metres; a the torques in [-1, 1]. Task parameter: ``goal`` ``[task, 2]``, in metres
    from the origin. The splits draw from one distribution.
    """

    goal_range: tuple[float, float] = (-3.0, 3.0)
    """Goals are uniform in this range on each axis, in metres: (-3, 3) as the paper's code and pytorch-maml-rl."""
    alive_bonus: float = 4.05
    """Paid at each step: 4 in the paper's code and pytorch-maml-rl, and rllab's 0.05 for surviving."""
    robot: Ant = Ant(observe_position=True)
    """The robot; it observes x and y."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled: as the paper's other locomotion tasks."""
