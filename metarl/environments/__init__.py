"""Environments in batches: lanes of any Gymnasium environment, in this process or in workers, and lanes in PyTorch.

This package knows no learner. Only ``mdp`` imports torch, and must be imported explicitly, because worker processes
import this package and should stay small. Start reading in ``lanes``. ``workers`` runs the same lanes in several
processes, each of which runs ``worker``. ``spaces`` and ``observations`` convert what an environment
sees and does to a policy's view, ``making`` makes environments and gives them their task, and ``bookkeeping`` records
which lanes have finished.
"""

from metarl.environments.bookkeeping import Book, EndsOnce, describe, opened, plain_seed
from metarl.environments.lanes import LaneError, LaneOptions, Lanes
from metarl.environments.making import (
    Apply,
    Env,
    Maker,
    apply_parameters,
    chain,
    make_env,
    quiet_mujoco,
    refuse_statistics,
    told,
)
from metarl.environments.observations import Eye, Layout, layout, made_equal, named, pixels_of
from metarl.environments.outcomes import MOST_TOLD, SUCCESS, Tally, Told, close_environment, flag, flags, is_fault
from metarl.environments.parts import as_array, composite, flat, parted, parts_of
from metarl.environments.single import OwnEnv, SingleEnv
from metarl.environments.spaces import Array, acted_in, elements, is_bounded_box, middle, plain, spec_of
from metarl.environments.workers import WorkerDied, WorkerLanes, on_workers, usable_cpus

__all__ = [
    "MOST_TOLD",
    "SUCCESS",
    "Apply",
    "Array",
    "Book",
    "EndsOnce",
    "Env",
    "Eye",
    "LaneError",
    "LaneOptions",
    "Lanes",
    "Layout",
    "Maker",
    "OwnEnv",
    "SingleEnv",
    "Tally",
    "Told",
    "WorkerDied",
    "WorkerLanes",
    "acted_in",
    "apply_parameters",
    "as_array",
    "chain",
    "close_environment",
    "composite",
    "describe",
    "elements",
    "flag",
    "flags",
    "flat",
    "is_bounded_box",
    "is_fault",
    "layout",
    "made_equal",
    "make_env",
    "mdp",
    "middle",
    "named",
    "on_workers",
    "opened",
    "parted",
    "parts_of",
    "pixels_of",
    "plain",
    "plain_seed",
    "quiet_mujoco",
    "refuse_statistics",
    "spec_of",
    "told",
    "usable_cpus",
]
