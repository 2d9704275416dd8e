"""Families of environments: sampled tasks, the episodes that policies have in them, and rollouts with advantages.

Learners come in as policies only; how they learn is not known here. Start reading in ``tasks``; ``rollouts`` runs the
episodes, ``protocols`` says what families and lanes may offer, ``gymnasium_family`` makes a family of any environment.
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
    resampled,
)
from metarl.control.rollouts import RolloutError, can_be_compiled, collect, on_torch
from metarl.control.sampling import Sampling
from metarl.control.tasks import ControlTasks, check_environment, check_tasks, tasks_with

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
    "can_be_compiled",
    "check_environment",
    "check_tasks",
    "collect",
    "on_torch",
    "resampled",
    "tasks_with",
]
