"""The ranks of a run, when they work together, and which of the tasks each of them has."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from metarl.speed.ranks import failing


@dataclass(eq=False)
class Ranks:
    """This process among those of a run."""

    rank: int
    """Number of this process, from 0."""
    count: int
    """Number of processes."""
    messages: Any
    """Process group for what lies in main memory (gloo). None once this process has left."""
    tensors: Any
    """Process group for what lies on the run's device: NCCL on a GPU, else that of the messages."""
    board: failing.Board
    """Where ranks tell each other of failures."""


@dataclass(frozen=True)
class Now:
    """Whom sums are with, in this process at present."""

    ranks: Ranks | None
    exact: bool


_NOW: ContextVar[Now | None] = ContextVar("ranks", default=None)


def now() -> Now | None:
    """Return whom sums are with; None where they are plain sums over the tasks at hand."""
    return _NOW.get()


@contextmanager
def together(ranks: Ranks | None, exact: bool = False) -> Iterator[None]:
    """Let sums be over the tasks of all ranks; with ``exact``, by each task's own term, in the order of the tasks.

    Then the number of ranks does not change a bit of them, one process included. An error inside ends the other ranks,
    too, as soon as they wait for this one.
    """
    before = torch.get_num_threads()
    token = _NOW.set(Now(ranks, exact) if ranks is not None or exact else None)
    if exact:
        torch.set_num_threads(1)  # large sums are split among threads
    try:
        yield
    except BaseException as error:
        if ranks is not None:
            ranks.board.tell(error)
        raise
    finally:
        _NOW.reset(token)
        if exact:
            torch.set_num_threads(before)


@contextmanager
def apart() -> Iterator[None]:
    """Let this rank do something of its own meanwhile: sums are over the tasks at hand."""
    token = _NOW.set(None)
    try:
        yield
    finally:
        _NOW.reset(token)


def is_exact() -> bool:
    """Return whether sums are to be bit for bit the same for any number of ranks."""
    present = _NOW.get()
    return present is not None and present.exact


def is_shared() -> bool:
    """Return whether other ranks have some of the tasks."""
    return number_of_ranks() > 1


def number_of_ranks() -> int:
    """Return how many processes work together now."""
    present = _NOW.get()
    return 1 if present is None or present.ranks is None else present.ranks.count


def share(tasks: int) -> slice:
    """Return which of so many tasks are this rank's. Raises ValueError where a rank would have none."""
    present = _NOW.get()
    if present is None or present.ranks is None:
        return slice(0, tasks)
    require_tasks(tasks, present.ranks)
    low, high = (tasks * rank // present.ranks.count for rank in (present.ranks.rank, present.ranks.rank + 1))
    return slice(low, high)


def require_tasks(tasks: int, ranks: Ranks | None) -> None:
    """Raise ValueError for fewer tasks than ranks."""
    if ranks is not None and tasks < ranks.count:
        raise ValueError(
            f"{ranks.count} ranks cannot share {tasks} tasks: start at most {tasks} (torchrun --nproc-per-node), or "
            "sample more tasks (--meta-batch-size)"
        )
