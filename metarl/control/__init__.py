"""Families of environments: sampled tasks, and episodes of policies in them.

This package does not know how policies learn. Start reading in ``tasks``. ``rollouts`` runs the episodes.
``protocols`` defines the optional abilities of families and lanes. ``gymnasium_family`` turns any Gymnasium environment
into a family. ``sampling`` has ranges of splits and finite training sets. ``lending`` keeps lanes for the next draw.
``effects`` looks at whether task parameters reach what an environment reads, and ``repeating`` at whether episodes
follow from their seed.
"""

from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.lending import Lends, Pool
from metarl.control.protocols import (
    ControlFamily,
    Noted,
    OwnSpaces,
    Parametrised,
    Placed,
    Sampled,
    SelfChecking,
    Single,
    Snapshots,
    TorchLanes,
    can_be_placed,
    resampled,
)
from metarl.control.rollouts import RolloutError, can_be_compiled, collect, on_torch, scripted
from metarl.control.sampling import Sampling, check_train_tasks, from_training_set
from metarl.control.success import SuccessWatch
from metarl.control.tasks import ControlTasks, action_bounds, check_environment, check_tasks, tasks_with

__all__ = [
    "ControlFamily",
    "ControlTasks",
    "GymnasiumFamily",
    "Lends",
    "Noted",
    "OwnSpaces",
    "Parametrised",
    "Placed",
    "Pool",
    "RolloutError",
    "Sampled",
    "Sampling",
    "SelfChecking",
    "Single",
    "Snapshots",
    "SuccessWatch",
    "TorchLanes",
    "action_bounds",
    "can_be_compiled",
    "can_be_placed",
    "check_environment",
    "check_tasks",
    "check_train_tasks",
    "collect",
    "from_training_set",
    "on_torch",
    "resampled",
    "scripted",
    "tasks_with",
]
