"""Robots, one file each: the robot, its options, and the families that join it with the tasks it can be given.

What comes in is of one robot alone: its model, what it observes, where it is, when it has fallen, and defaults from the
literature. Tasks are ``metarl_envs.goal_*``, simulators ``metarl_envs.mujoco``. Start reading in ``half_cheetah``.
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
