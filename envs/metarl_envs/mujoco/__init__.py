"""Robots in MuJoCo: one robot with a task, and lanes of them on the CPU's threads or under MuJoCo Warp.

What robots and tasks share comes in; no certain robot, which is for ``metarl_envs.robots``, and no certain task, which
is for ``metarl_envs.goal_*``. Start reading in ``robots``, which says what a robot is, and in ``robot_tasks``, which
joins one with a task. ``warp_lanes`` needs MuJoCo Warp and is imported by its own name, where it is asked for.
"""

from metarl_envs.mujoco.dynamics import Dynamics, Values
from metarl_envs.mujoco.lanes import RobotLanes, RobotVectorEnv
from metarl_envs.mujoco.making import make_env, make_lanes, make_vector_env
from metarl_envs.mujoco.rendering import ABOVE, BESIDE, Camera, Marker, arrows, column, overview
from metarl_envs.mujoco.robot_tasks import RobotTasks, Simulated, uniform
from metarl_envs.mujoco.robots import Motion, Parameters, Robot, box, check_range, check_robot, namespace
from metarl_envs.mujoco.simulator import Physics, Simulation
from metarl_envs.mujoco.single import RobotEnv

__all__ = [
    "ABOVE",
    "BESIDE",
    "Camera",
    "Dynamics",
    "Marker",
    "Motion",
    "Parameters",
    "Physics",
    "Robot",
    "RobotEnv",
    "RobotLanes",
    "RobotTasks",
    "RobotVectorEnv",
    "Simulated",
    "Simulation",
    "Values",
    "arrows",
    "box",
    "check_range",
    "check_robot",
    "column",
    "make_env",
    "make_lanes",
    "make_vector_env",
    "namespace",
    "overview",
    "uniform",
]
