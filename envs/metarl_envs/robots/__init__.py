"""Robots, one file each: the robot, its options, and the families that combine it with tasks.

Each file holds only what is particular to its robot: the model, observations, position, when it has fallen, and
defaults from the literature. Tasks are in ``metarl_envs.goal_*``, simulators in ``metarl_envs.mujoco``. Start reading
in ``half_cheetah``.
"""

from metarl_envs.robots.ant import Ant, AntDirection, AntGoal, AntVelocity
from metarl_envs.robots.half_cheetah import HalfCheetah, HalfCheetahDirection, HalfCheetahVelocity

__all__ = [
    "Ant",
    "AntDirection",
    "AntGoal",
    "AntVelocity",
    "HalfCheetah",
    "HalfCheetahDirection",
    "HalfCheetahVelocity",
]
