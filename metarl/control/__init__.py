"""Families of environments: sampled tasks, episodes of policies in them, and what learners do with these.

Start reading in ``tasks``. ``rollouts`` runs the episodes, and ``practice`` lets a learner adapt to them.
``protocols`` defines the optional abilities of families and lanes. ``gymnasium_family`` turns any Gymnasium environment
into a family.
"""

from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.practice import judged, learned, policy_of, practised
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
    "judged",
    "learned",
    "on_torch",
    "policy_of",
    "practised",
    "resampled",
    "tasks_with",
]
