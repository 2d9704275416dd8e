"""Whether all ranks have the same parameters."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from metarl.speed.ranks.failing import RankError


def digest(values: Mapping[str, Tensor]) -> int:
    """Return a number of 63 bits that differs where tensors do."""
    found = hashlib.blake2b(digest_size=8)
    for value in values.values():
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return int.from_bytes(found.digest()) >> 1


def require_same(found: list[int], what: str) -> None:
    """Raise RankError, which names the rank, where numbers of the ranks differ; rank 0's are taken for right."""
    if wrong := [rank for rank, number in enumerate(found) if number != found[0]]:
        raise RankError(
            f"{what} of rank {wrong[0]} are not those of rank 0: all ranks must do the same with the same sums. An "
            "outer update of one's own reduces by metarl.outer.meta_gradient, and all machines need the same kind of "
            "processor and the same packages"
        )
