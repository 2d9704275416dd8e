"""Groups of tasks side by side on the cores of a CPU."""

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

    A sequence of groups is worked on side by side, each group with its share of torch's threads: these would wait for
    each other at every small operation if all of them worked on one group. Other iterables, whose groups may be made
    one by one to save memory, and a single group are worked on in turn, with all threads; so is everything while a
    CUDA graph is captured, which sees the operations of one thread only.

    Raises:
        ValueError: PyTorch is told to round to half precision (autocast), of which other threads do not know.
        Exception: what ``work`` raised for the first group that failed.
    """
    refuse_autocast()
    threads = torch.get_num_threads()
    if not isinstance(groups, Sequence) or min(threads, len(groups)) < 2 or _is_capturing():
        return [work(group) for group in groups]
    workers, grad = min(threads, len(groups)), torch.is_grad_enabled()

    def alike(group: Group) -> Result:
        with torch.set_grad_enabled(grad):  # every thread has a mode of its own
            return work(group)

    try:
        return list(_pool(workers, threads // workers).map(alike, groups))
    finally:
        torch.set_num_threads(threads)  # new workers have set it for all threads to come


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=8)
def _pool(workers: int, share: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "metarl", initializer=_take, initargs=(share,))


def _take(share: int) -> None:
    torch.get_num_threads()  # a thread takes the number of the whole process when it first asks: let it be now
    torch.set_num_threads(share)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked process
