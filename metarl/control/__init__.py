"""Families of environments: sampled tasks, episodes of policies in them, and rollouts with advantages.

This package uses learners as policies only and does not know how they learn. Start reading in ``tasks``. ``rollouts``
runs the episodes, ``protocols`` defines the optional abilities of families and lanes, and ``gymnasium_family`` turns
any Gymnasium environment into a family.
"""

from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.protocols import (
    ControlFamily,
    Parametrised,
    Sampled,
    SelfChecking,
    Single,
    Snapshots,
    TorchLanes,
    Watched,
    resampled,
)
from metarl.control.rollouts import RolloutError, can_be_compiled, collect, on_torch
from metarl.control.sampling import Sampling
from metarl.control.tasks import ControlTasks, check_discount, check_environment, check_tasks, tasks_with

__all__ = [
    "ControlFamily",
    "ControlTasks",
    "GymnasiumFamily",
    "Parametrised",
    "RolloutError",
    "Sampled",
    "Sampling",
    "SelfChecking",
    "Single",
    "Snapshots",
    "TorchLanes",
    "Watched",
    "can_be_compiled",
    "check_discount",
    "check_environment",
    "check_tasks",
    "collect",
    "on_torch",
    "resampled",
    "tasks_with",
]
