"""Counting operations: what torch is asked to do one after another, whatever their size."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Counter(TorchDispatchMode):
    """Counts the operations that this thread dispatches, views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators_of(work: Callable[[], object]) -> int:
    """Return how many operations some work takes; in one thread, whose operations can be counted."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Counter() as counter:
            work()
    finally:
        torch.set_num_threads(before)
    return counter.count
