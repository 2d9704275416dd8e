"""Robots in MuJoCo: single environments, and lanes on CPU threads or MuJoCo Warp.

This package holds what all robots and tasks share. The robots are in ``metarl_envs.robots``, the tasks in
``metarl_envs.goal_*``. Start reading in ``robots``, which defines a robot, and ``robot_tasks``, which combines a robot
with a task. ``warp_lanes`` needs MuJoCo Warp and is imported only when it is used.
"""

try:
    from metarl_envs.mujoco import opengl as opengl  # first, because it explains why MuJoCo cannot be imported
    from metarl_envs.mujoco.dynamics import Dynamics, Values
    from metarl_envs.mujoco.lanes import RobotLanes, RobotVectorEnv
    from metarl_envs.mujoco.making import make_env, make_lanes, make_vector_env
    from metarl_envs.mujoco.rendering import ABOVE, BESIDE, Camera, Marker, arrows, column, overview
    from metarl_envs.mujoco.robot_tasks import RobotTasks, Simulated, SimulatedTasks, Splits, uniform
    from metarl_envs.mujoco.robots import (
        Motion,
        Parameters,
        Robot,
        box,
        check_range,
        check_robot,
        model_of,
        model_path,
        namespace,
    )
    from metarl_envs.mujoco.simulator import Physics, Simulation
    from metarl_envs.mujoco.single import RobotEnv
except ImportError as error:
    if (error.name or "").partition(".")[0] != "mujoco":
        raise
    raise ImportError("robots need MuJoCo, which cannot be imported: pip install mujoco") from error

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
    "SimulatedTasks",
    "Simulation",
    "Splits",
    "Values",
    "arrows",
    "box",
    "check_range",
    "check_robot",
    "column",
    "make_env",
    "make_lanes",
    "make_vector_env",
    "model_of",
    "model_path",
    "namespace",
    "overview",
    "uniform",
]
