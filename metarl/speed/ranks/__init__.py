"""One training run in several processes, its ranks, joined by ``torch.distributed``.

``join`` makes the ranks: from the variables that torchrun sets, or of a process group that is there already. Within
``together``, ``sums`` and the other functions here are over the tasks of all ranks; elsewhere, and in one process, they
are over the tasks at hand, at no cost. What one rank meets, all ranks must meet in the same order.

Start reading in ``members``. ``collectives`` has the sums, ``failing`` what ends all ranks when one of them fails.
"""

from metarl.speed.ranks.collectives import agreed, gathered, gathered_numbers, sums, task_values, terms
from metarl.speed.ranks.failing import RankError
from metarl.speed.ranks.meeting import join, leave
from metarl.speed.ranks.members import (
    Ranks,
    apart,
    is_exact,
    is_shared,
    number_of_ranks,
    require_tasks,
    share,
    together,
)
from metarl.speed.ranks.sameness import digest, require_same
from metarl.speed.ranks.variables import are_many, is_first, restarts

__all__ = [
    "RankError",
    "Ranks",
    "agreed",
    "apart",
    "are_many",
    "digest",
    "gathered",
    "gathered_numbers",
    "is_exact",
    "is_first",
    "is_shared",
    "join",
    "leave",
    "number_of_ranks",
    "require_same",
    "require_tasks",
    "restarts",
    "share",
    "sums",
    "task_values",
    "terms",
    "together",
]
