"""Ant with an unknown goal velocity, direction or position (MAML, https://arxiv.org/abs/1703.03400).

This is Gymnasium's Ant-v5, whose control step lasts 0.05 s. The paper's simulator (rllab) has control steps of 0.02 s
and instantaneous velocities, so returns cannot be compared with the paper's. The paper's contact cost (0.0005 times the
squared contact forces, clipped) is left out: without it, contact forces need not be computed.
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
    """Gymnasium's Ant-v5: 27 observations (positions without x and y, velocities) and 8 torques. It may fall."""

    action_scale: float = 1.0
    """The policy's action for full torque; larger actions are clipped. 1 as in the paper, 10 as in pytorch-maml-rl and
    ProMP."""
    reset_noise: float = 0.1
    """Noise of the initial state: uniform in +- this for positions, normal with this standard deviation for velocities,
    as in Gymnasium."""
    observe_position: bool = False
    """Also observe x and y, as in the paper's code and pytorch-maml-rl, but not in Gymnasium."""
    contact_forces: bool = False
    """Also observe the contact forces, clipped to [-1, 1] (78 numbers), exactly as in Ant-v5. Needs the backend threads
    or warp."""
    terminate: bool = True
    """End the episode when the torso leaves ``healthy_heights``."""
    healthy_heights: tuple[float, float] = (0.2, 1.0)
    """Healthy range of the torso's height, in metres: (0.2, 1.0) in rllab, pytorch-maml-rl and Gymnasium."""
    frame_skip: int = 1
    """Control steps for which each action is applied, with their rewards summed. The horizon counts actions."""

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
        """Return positions, velocities and, if observed, contact forces, ``[..., 27]`` or more."""
        xp = namespace(physics.qpos)
        parts = [physics.qpos[..., 0 if self.observe_position else 2 :], physics.qvel]
        if self.contact_forces:
            forces = physics.cfrc_ext[..., 1:, :]
            parts.append(xp.clip(forces, -1, 1).reshape(*forces.shape[:-2], -1))
        return xp.concatenate(parts, axis=-1)

    def healthy(self, physics: Physics) -> Values:
        """Return whether the torso's height is healthy and the state finite, ``[...]``; true without ``terminate``."""
        xp = namespace(physics.qpos)
        if not self.terminate:
            return xp.ones_like(physics.qpos[..., 0], dtype=bool)
        height, (low, high) = physics.qpos[..., 2], self.healthy_heights
        finite = xp.isfinite(physics.qpos).all(axis=-1) & xp.isfinite(physics.qvel).all(axis=-1)
        return finite & (low <= height) & (height <= high)


@dataclass(frozen=True)
class AntOptions:
    """Options of all Ant families."""

    control_cost: float = 0.005
    """Weight of the squared torques: 0.005 in the paper's code and pytorch-maml-rl."""
    alive_bonus: float = 0.05
    """Reward per step: rllab's 0.05 for survival."""
    robot: Ant = Ant()
    """The robot."""


@dataclass(frozen=True)
class AntVelocity(Simulated, AntOptions, GoalVelocity):
    """Ant that walks at a goal velocity. Reward per step: alive_bonus - |v - velocity| - control_cost |a|^2.

    v is the torso's mean velocity along x over the step (0.05 s), a the torques in [-1, 1]. Task parameter:
    ``velocity`` ``[task]``, in metres per second. Splits share one distribution unless ``splits``
    says otherwise.
    """

    velocity_range: tuple[float, float] = (0.0, 3.0)
    """Goal velocities are uniform in this range, in metres per second: (0, 3) as in the paper and pytorch-maml-rl."""
    alive_bonus: float = 1.05
    """Reward per step: the paper's 1 plus rllab's 0.05 for survival."""


@dataclass(frozen=True)
class AntDirection(Simulated, AntOptions, PlaneDirection):
    """Ant that walks in a goal direction. Reward per step: alive_bonus + direction . v - control_cost |a|^2.

    v is the torso's mean velocity over the step (0.05 s), a the torques in [-1, 1]. Task parameter: ``direction``
    ``[task]``, 1 (along x) or -1. These are the only two tasks, equally likely in every split. With ``plane``:
    ``[task, 2]``, unit vectors with uniform angles, and splits share one distribution unless ``splits`` says otherwise.
    """

    plane: bool = False
    """Any direction in the plane, as in learn2learn's AntDirection, not only forwards or backwards as in the paper."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled. The paper uses 40 episodes for this task."""


@dataclass(frozen=True)
class AntGoal(Simulated, AntOptions, GoalPosition):
    """Ant that walks to a goal. Reward per step: alive_bonus - |x - goal_x| - |y - goal_y| - control_cost |a|^2.

    x and y are the torso's position in metres, a the torques in [-1, 1]. Task parameter: ``goal`` ``[task, 2]``, in
    metres from the origin. Splits share one distribution unless ``splits`` says otherwise.
    """

    goal_range: tuple[float, float] = (-3.0, 3.0)
    """Goals are uniform in this range on each axis, in metres: (-3, 3) as in the paper's code and pytorch-maml-rl."""
    alive_bonus: float = 4.05
    """Reward per step: 4 as in the paper's code and pytorch-maml-rl, plus rllab's 0.05 for survival."""
    robot: Ant = Ant(observe_position=True)
    """The robot; it observes x and y."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled: as in the paper's other locomotion tasks."""
