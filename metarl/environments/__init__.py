"""Environments in batches: lanes of any Gymnasium environment, in this process or in workers, and lanes in PyTorch.

No learner comes in, and no torch but in ``mdp``, which is imported by its own name: worker processes import this
package and stay small. Start reading in ``lanes``; ``workers`` are the same lanes in processes whose inside is
``worker``, ``spaces`` is how a policy sees an environment, ``bookkeeping`` the book that all
lanes keep of which have finished.
"""

from metarl.environments.bookkeeping import Book, describe, opened
from metarl.environments.lanes import Apply, LaneError, LaneOptions, Lanes, Maker, apply_parameters, make_env
from metarl.environments.single import SingleEnv
from metarl.environments.spaces import Array, as_array, is_bounded_box, middle, plain, spec_of
from metarl.environments.workers import WorkerLanes, on_workers, usable_cpus

__all__ = [
    "Apply",
    "Array",
    "Book",
    "LaneError",
    "LaneOptions",
    "Lanes",
    "Maker",
    "SingleEnv",
    "WorkerLanes",
    "apply_parameters",
    "as_array",
    "describe",
    "is_bounded_box",
    "make_env",
    "mdp",
    "middle",
    "on_workers",
    "opened",
    "plain",
    "spec_of",
    "usable_cpus",
]
