"""Mini-batches of support sets, for inner loops of many steps."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from metarl.speed import send
from metarl.types import Examples, each_tensor

MiniBatches = Literal["cycle", "replacement"]
CPU = torch.device("cpu")


def mini_batch(support: Examples, mini_batches: MiniBatches, size: int | None, step: int) -> Examples:
    """Return the items of inner step ``step``, counted from 0; all items where ``size`` is None or no less than all."""
    items = support.targets.shape[1]
    size = min(size or items, items)
    if size == items:
        return support
    if support.mask is not None:
        return _of_unequal(support, mini_batches, size, step)
    chosen = positions(mini_batches, items, size, step, support.targets.device)
    return each_tensor(lambda values: values.index_select(1, chosen), support)


def _of_unequal(support: Examples, mini_batches: MiniBatches, size: int, step: int) -> Examples:
    """Return the mini-batch of each task, as it would be without padding; of fewer items than ``size``, all."""
    table, known = _table(mini_batches, support.targets.shape[1], size, step, support.targets.device)
    counts = support.counts
    chosen = table[counts]

    def take(values: Tensor) -> Tensor:
        return values.gather(
            1, chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
        )

    return Examples(
        inputs=take(support.inputs), targets=take(support.targets), mask=known[counts].to(support.inputs.dtype)
    )


@lru_cache(maxsize=4096)
def _table(mini_batches: MiniBatches, most: int, size: int, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the positions ``[count, size]`` of a step for every number of items, and which of them there are."""
    table, known = torch.zeros(most + 1, size, dtype=torch.long), torch.zeros(most + 1, size, dtype=torch.bool)
    for count in range(1, most + 1):
        few = min(size, count)
        table[count, :few] = torch.arange(few) if few == count else positions(mini_batches, count, few, step)
        known[count, :few] = True
    return send(table, device), send(known, device)


@lru_cache(maxsize=4096)
def positions(mini_batches: MiniBatches, items: int, size: int, step: int, device: torch.device = CPU) -> torch.Tensor:
    """Return the positions of a step's mini-batch. All tasks share them: every support set is shuffled already."""
    if mini_batches == "replacement":
        return send(_order(items, step)[:size], device)
    taken = range(step * size, (step + 1) * size)
    return send(torch.stack([_order(items, index // items)[index % items] for index in taken]), device)


@lru_cache(maxsize=4096)
def _order(items: int, number: int) -> torch.Tensor:
    return torch.randperm(items, generator=torch.Generator().manual_seed(number))
