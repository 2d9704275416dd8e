"""Groups of tasks in parallel on the cores of a CPU."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

from metarl.speed.devices import refuse_autocast

Group = TypeVar("Group")
Result = TypeVar("Result")


def each_group(work: Callable[[Group], Result], groups: Iterable[Group]) -> list[Result]:
    """Apply ``work`` to every group and return the results in order.

    The groups of a sequence run in parallel, each with its share of torch's threads. If all threads worked on one
    group, they would wait for each other at every small operation. Groups of other iterables, which may be made one by
    one to save memory, run in turn with all threads. So does a single group, and everything during the capture of a
    CUDA graph, which records the operations of one thread only.

    Raises:
        ValueError: PyTorch's autocast to half precision is on, which other threads do not inherit.
        Exception: the exception of the first group for which ``work`` failed.
    """
    refuse_autocast()
    threads = torch.get_num_threads()
    if not isinstance(groups, Sequence) or min(threads, len(groups)) < 2 or _is_capturing():
        return [work(group) for group in groups]
    workers, grad = min(threads, len(groups)), torch.is_grad_enabled()

    def alike(group: Group) -> Result:
        with torch.set_grad_enabled(grad):  # each thread has its own grad mode
            return work(group)

    try:
        return list(_pool(workers, threads // workers).map(alike, groups))
    finally:
        torch.set_num_threads(threads)  # new workers have changed the default for later threads


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=8)
def _pool(workers: int, share: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "metarl", initializer=_take, initargs=(share,))


def _take(share: int) -> None:
    torch.get_num_threads()  # the first call in a thread copies the process's number, which would undo a later change
    torch.set_num_threads(share)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
