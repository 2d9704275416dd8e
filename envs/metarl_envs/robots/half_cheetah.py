"""HalfCheetah with an unknown goal velocity or direction (MAML, https://arxiv.org/abs/1703.03400).

This is Gymnasium's HalfCheetah-v5, whose control step lasts 0.05 s. The paper's simulator (rllab) has control steps of
0.01 s and instantaneous velocities, so returns cannot be compared with the paper's. The fraction of the gap closed
between a pre-trained policy and an oracle can.
"""

from dataclasses import dataclass
from typing import ClassVar

from metarl_envs.goal_direction import GoalDirection
from metarl_envs.goal_velocity import GoalVelocity
from metarl_envs.mujoco import BESIDE, Camera, Physics, Simulated, Values, check_robot, namespace


@dataclass(frozen=True)
class HalfCheetah:
    """Gymnasium's HalfCheetah-v5: 17 observations (positions without x, velocities) and 6 torques. It never falls."""

    action_scale: float = 1.0
    """The policy's action for full torque; larger actions are clipped. 1 as in the paper, 10 as in pytorch-maml-rl and
    ProMP."""
    reset_noise: float = 0.1
    """Noise of the initial state: uniform in +- this for positions, normal with this standard deviation for velocities,
    as in Gymnasium."""
    observe_position: bool = False
    """Also observe x, as the paper's code and pytorch-maml-rl do through the torso's position, but not ProMP."""
    frame_skip: int = 1
    """Control steps for which each action is applied, with their rewards summed. The horizon counts actions."""

    model_file: ClassVar[str] = "half_cheetah.xml"
    substeps: ClassVar[int] = 5
    contact_forces: ClassVar[bool] = False
    camera: ClassVar[Camera] = BESIDE

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
class HalfCheetahOptions:
    """Options of all HalfCheetah families."""

    control_cost: float = 0.05
    """Weight of the squared torques: 0.05 in the paper's code."""
    robot: HalfCheetah = HalfCheetah()
    """The robot."""


@dataclass(frozen=True)
class HalfCheetahVelocity(Simulated, HalfCheetahOptions, GoalVelocity):
    """HalfCheetah that runs at a goal velocity. Reward per step: -|v - velocity| - control_cost |a|^2.

    v is the mean forward velocity over the step (0.05 s), a the torques in [-1, 1]. Task parameter: ``velocity``
    ``[task]``, in metres per second. Splits share one distribution unless ``splits``
    says otherwise.
    """

    velocity_range: tuple[float, float] = (0.0, 2.0)
    """Goal velocities are uniform in this range, in m/s: (0, 2) as in the paper, (0, 3) as in ProMP and PEARL."""


@dataclass(frozen=True)
class HalfCheetahDirection(Simulated, HalfCheetahOptions, GoalDirection):
    """HalfCheetah that runs forwards or backwards. Reward per step: direction v - control_cost |a|^2.

    v is the mean forward velocity over the step (0.05 s), a the torques in [-1, 1]. Task parameter: ``direction``
    ``[task]``, 1 or -1. These are the only two tasks. They are equally likely in every split.
    """
