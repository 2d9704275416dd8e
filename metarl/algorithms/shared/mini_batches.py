"""Mini-batches of support sets, for inner loops of many steps."""

from functools import lru_cache
from typing import Literal

import torch

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
    chosen = positions(mini_batches, items, size, step, support.targets.device)
    return each_tensor(lambda values: values.index_select(1, chosen), support)


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
