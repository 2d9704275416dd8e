"""Sums over the tasks of all ranks, and what they tell each other. In one process, nothing is sent anywhere."""

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metarl.speed.ranks.failing import RankError, described
from metarl.speed.ranks.members import Ranks, is_exact, is_shared, now
from metarl.types import Experience, select

Result = TypeVar("Result")


def sums(groups: Iterable[tuple[Tensor, ...]], tasks: int, what: str) -> tuple[list[Tensor], int]:
    """Return sums over the tasks of all ranks, and the number of these tasks.

    Args:
        groups: For each group of this rank's tasks, sums over its tasks. In exact sums, each group is one task.
        tasks: Number of this rank's tasks.
        what: What is summed, for an error message.
    """
    present = now()
    if present is None:
        return _added(groups), tasks
    listed = list(groups)
    first, flat = listed[0], [torch.cat([part.detach().double().reshape(-1) for part in group]) for group in listed]
    if present.exact:
        rows = [row for rows in gathered([one.cpu() for one in flat], what) for row in rows]
        (total,), tasks = _added((row,) for row in rows), len(rows)
    else:
        (total,) = _added((one,) for one in flat)
        total = torch.cat([total, total.new_tensor([tasks])])
        assert present.ranks is not None
        _reduce(present.ranks, total, what)
        total, tasks = total[:-1], round(total[-1].item())
    pieces = torch.split(total.to(first[0].device), [part.numel() for part in first])
    return [piece.to(part.dtype).view_as(part) for piece, part in zip(pieces, first, strict=True)], tasks


def terms(experience: Experience) -> list[Experience]:
    """Return the groups of this rank's tasks whose sums are added up: a single one; in exact sums, one of each task."""
    if not is_exact():
        return [experience]
    # Copies: memory of their own begins where all memory begins, which rounding may see.
    return [select(experience, [task]) for task in range(len(experience.descriptors))]


def _added(groups: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """Add groups up one by one, so that no more than one needs memory."""
    iterator = iter(groups)
    total = list(next(iterator))
    for group in iterator:
        total = [one + other for one, other in zip(total, group, strict=True)]
    return total


def _reduce(ranks: Ranks, tensor: Tensor, what: str) -> None:
    try:
        work = dist.all_reduce(tensor, group=ranks.tensors, async_op=True)
        if ranks.tensors is ranks.messages:
            ranks.board.wait(work, what)
        else:
            work.wait()  # NCCL's sums are queued on the GPU: nobody waits here
    except RankError:
        raise
    except RuntimeError as error:
        ranks.board.lost(what, error)


def _gather(ranks: Ranks, tensor: Tensor, what: str) -> list[Tensor]:
    """Return the tensors of all ranks, which lie in main memory and have one shape."""
    found = [torch.empty_like(tensor) for _ in range(ranks.count)]
    try:
        work = dist.all_gather(found, tensor, group=ranks.messages, async_op=True)
        ranks.board.wait(work, what)
    except RankError:
        raise
    except RuntimeError as error:
        ranks.board.lost(what, error)
    return found


def gathered(value: Result, what: str) -> list[Result]:
    """Return the values of all ranks, in their order: plain data, and tensors in main memory."""
    present = now()
    if present is None or present.ranks is None:
        return [value]
    told = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    sizes = [size for (size,) in gathered_numbers([len(told)], what)]
    padded = torch.nn.functional.pad(told, (0, max(sizes) - len(told)))
    found = _gather(present.ranks, padded, what)
    return [pickle.loads(one[:size].numpy().tobytes()) for one, size in zip(found, sizes, strict=True)]


def gathered_numbers(values: list[int], what: str) -> list[list[int]]:
    """Return a few integers of each rank: less work than ``gathered``."""
    present = now()
    if present is None or present.ranks is None:
        return [values]
    return [one.tolist() for one in _gather(present.ranks, torch.tensor(values), what)]


def agreed(what: str, work: Callable[[], Result]) -> list[Result]:
    """Do some work without collectives on every rank, and return what it returned on each.

    Where it fails on one rank, it raises on all of them: the error there, and RankError, which tells it, elsewhere.
    """
    if not is_shared():
        return [work()]
    value, failed = None, None
    try:
        value = work()
    except BaseException as error:
        failed = error
    told = gathered((None if failed is None else described(failed), value), what)
    if failed is not None:
        raise failed
    if bad := [(rank, text) for rank, (text, _) in enumerate(told) if text is not None]:
        raise RankError(f"rank {bad[0][0]} failed while {what}: {bad[0][1]}")
    return [result for _, result in told]  # type: ignore[misc]  # none has failed


def task_values(values: Mapping[str, Tensor], of_ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join values ``[task, ...]`` by name of all ranks; 0 where a rank has none of that name, such as no success."""
    if not is_shared():
        return dict(values)
    names = dict.fromkeys(name for one in of_ranks for name in one)
    absent: list[Any] = [torch.zeros_like(next(iter(one.values()))) if one else torch.zeros(0) for one in of_ranks]
    return {
        name: torch.cat([one.get(name, other) for one, other in zip(of_ranks, absent, strict=True)]) for name in names
    }
