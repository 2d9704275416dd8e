"""Families of environments: sampled tasks, the episodes that policies have in them, and rollouts with advantages.

Learners come in as policies only; how they learn is not known here. Start reading in ``tasks``; ``rollouts`` runs the
episodes, ``gymnasium_family`` makes a family of any Gymnasium environment.
"""

from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.rollouts import RolloutError, can_be_compiled, collect, on_torch
from metarl.control.tasks import ControlTasks, Sampling, check_discount, check_environment, check_tasks, tasks_with

__all__ = [
    "ControlTasks",
    "GymnasiumFamily",
    "RolloutError",
    "Sampling",
    "can_be_compiled",
    "check_discount",
    "check_environment",
    "check_tasks",
    "collect",
    "on_torch",
    "tasks_with",
]
