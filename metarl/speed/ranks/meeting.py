"""Meet the other processes of a run, and leave them."""

import atexit
import os
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from metarl.speed.ranks.collectives import gathered
from metarl.speed.ranks.failing import Board, RankError, first_line
from metarl.speed.ranks.members import Ranks, together
from metarl.speed.ranks.variables import restarts, world_size

_JOINED = count()


def join(device: torch.device, seconds: float) -> Ranks | None:
    """Meet the other processes of this run; None where there are none.

    Those are the ones of a process group that is there (Ray Train, Lightning Fabric), or the ones of the variables that
    torchrun sets. ``seconds`` is how long one of them waits for the others, in each collective, before it gives up.

    Raises:
        ValueError: some variables are missing, or are no numbers.
        RankError: the others did not come.
    """
    if not dist.is_available():
        return None
    wait = timedelta(seconds=seconds)
    if not dist.is_initialized():
        if world_size() == 1:
            return None
        _begin(wait)
    if dist.get_world_size() == 1:
        return None
    messages = dist.new_group(backend="gloo", timeout=wait)
    rank, size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, size, messages, messages, Board(rank, size, f"metarl/run/{next(_JOINED)}", seconds))
    with together(ranks):
        kinds = gathered(device.type, "comparing devices")
        if len(set(kinds)) > 1:
            told = ", ".join(f"rank {rank} {kind}" for rank, kind in enumerate(kinds))
            raise ValueError(f"the ranks of a run use devices of one kind: {told}; let all use --device {kinds[0]}")
    if device.type != "cpu":
        ranks.tensors = dist.new_group(backend="nccl", timeout=wait)
    return ranks


def _begin(wait: timedelta) -> None:
    """Make the process group of the variables, which stays until this process ends."""
    try:
        parts: Any = dist  # which does not list all that it offers
        store, rank, size = next(parts.rendezvous("env://", timeout=wait))
        # torchrun may keep its store when it starts the ranks again, with the addresses of those before.
        store = parts.PrefixStore(f"metarl/{restarts()}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
        atexit.register(_end)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the {os.environ['WORLD_SIZE']} ranks did not meet: {first_line(error)}") from error


def leave(ranks: Ranks | None) -> None:
    """End what ``join`` has made for a run, while Python's threads still run: at its exit, they would abort it.

    gloo closes its connections when nobody refers to a group any more. So the ranks keep none, whoever keeps the ranks.
    """
    if ranks is not None:
        groups = {id(group): group for group in (ranks.messages, ranks.tensors)}
        ranks.messages = ranks.tensors = None
        for group in groups.values():
            with suppress(Exception):  # the others may be gone
                dist.destroy_process_group(group)


def _end() -> None:
    with suppress(Exception):
        if dist.is_initialized():
            dist.destroy_process_group()
