"""The labelled examples that scores are measured on: at once, or for a few tasks at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from operator import itemgetter
from typing import Any, get_args

import torch
from torch import Tensor

from metarl.evaluation.adaptation import stream_of, support_and_query
from metarl.speed import send
from metarl.types import Batch, DrawsGroups, Examples, Learner, Role, Tasks, each_tensor

NUMBERS_PER_GROUP = {"cpu": 2**20, "gpu": 2**22}
"""Input numbers of examples that are processed at once. Larger groups are not faster (measured on a CPU)."""


Group = tuple[Tensor, Examples, Examples]
"""Descriptors, support and query of some of the tasks."""


def drawn_at_once(
    learner: Learner, tasks: Tasks, seed: int, device: torch.device
) -> tuple[Iterator[Group], Sequence[Batch]]:
    """Draw all tasks' examples, to be scored in groups."""
    descriptors = send(tasks.descriptors, device)
    support, query = support_and_query(learner, tasks, seed, device)
    size = _group_size((support.inputs.numel() + query.inputs.numel()) // len(descriptors), device)
    groups = [slice(first, first + size) for first in range(0, len(descriptors), size)]
    parts = [[each_tensor(itemgetter(group), batch) for group in groups] for batch in (support, query)]
    return zip(torch.split(descriptors, size), *parts, strict=True), (query,)


def drawn_in_groups(
    learner: Learner, tasks: DrawsGroups, seed: int, device: torch.device
) -> tuple[Iterator[Group], Sequence[Batch]]:
    """Draw each group's examples when it is scored, from the same streams: images of many tasks fill the memory."""
    size = _group_size(tasks.items * prod(learner.spec.input_shape), device)
    parts = (tasks.draw_groups(role, stream_of(seed, role, device), size) for role in get_args(Role))
    return zip(torch.split(send(tasks.descriptors, device), size), *parts, strict=True), Redrawn(tasks, seed, device)


@dataclass(frozen=True)
class Redrawn(Sequence[Batch]):
    """The query examples of an evaluation. They are drawn again each time they are read, not kept in memory."""

    tasks: DrawsGroups
    seed: int
    device: torch.device

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[one] for one in range(len(self))[index])
        range(len(self))[index]  # raises IndexError
        return self.tasks.draw("query", stream_of(self.seed, "query", self.device))


def _group_size(numbers: int, device: torch.device) -> int:
    """Return how many tasks to process at once, given the input numbers of one.

    A network's activations take about a hundred times the memory of its inputs.
    """
    return max(1, NUMBERS_PER_GROUP["cpu" if device.type == "cpu" else "gpu"] // max(1, numbers))
