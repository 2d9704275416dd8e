"""One training run in several processes, its ranks, joined by ``torch.distributed``.

``join`` makes the ranks: from the variables that torchrun sets, or of a process group that is there already. Within
``together``, ``sums`` and the other functions here are over the tasks of all ranks; elsewhere, and in one process, they
are over the tasks at hand, at no cost. What one rank meets, all ranks must meet in the same order.
"""

import atexit
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_JOINED = count()


class RankError(RuntimeError):
    """The ranks of a run cannot go on together. The message names the rank that is to blame, if that is known."""

    is_told = True
    """Commands print the message, and no traceback: that is the other rank's."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process among those of a run."""

    rank: int
    """Number of this process, from 0."""
    count: int
    """Number of processes."""
    messages: Any
    """Process group for what lies in main memory (gloo)."""
    tensors: Any
    """Process group for what lies on the run's device: NCCL on a GPU, else that of the messages."""
    key: str
    """Where a rank that fails leaves its error for the others."""


@dataclass(frozen=True)
class _Now:
    ranks: Ranks | None
    exact: bool


_NOW: ContextVar[_Now | None] = ContextVar("ranks", default=None)


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
        if _world_size() == 1:
            return None
        try:
            parts: Any = dist  # which does not list all that it offers
            store, rank, size = next(parts.rendezvous("env://", timeout=wait))
            # torchrun may keep its store when it starts the ranks again, with the addresses of those before.
            store = parts.PrefixStore(f"metarl/{restarts()}", store)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
            atexit.register(_end)
        except (RuntimeError, ValueError) as error:
            raise RankError(f"the {os.environ['WORLD_SIZE']} ranks did not meet: {_first_line(error)}") from error
    if dist.get_world_size() == 1:
        return None
    messages = dist.new_group(backend="gloo", timeout=wait)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), messages, messages, f"metarl/failed/{next(_JOINED)}")
    with together(ranks):
        kinds = gathered(device.type, "comparing devices")
        if len(set(kinds)) > 1:
            told = ", ".join(f"rank {rank} {kind}" for rank, kind in enumerate(kinds))
            raise ValueError(f"the ranks of a run use devices of one kind: {told}; let all use --device {kinds[0]}")
    tensors = messages if device.type == "cpu" else dist.new_group(backend="nccl", timeout=wait)
    return Ranks(ranks.rank, ranks.count, messages, tensors, ranks.key)


def leave(ranks: Ranks | None) -> None:
    """End what ``join`` has made for a run, while Python's threads still run: at its exit, they would abort it."""
    if ranks is not None:
        for group in {id(group): group for group in (ranks.messages, ranks.tensors)}.values():
            with suppress(Exception):  # the others may be gone
                dist.destroy_process_group(group)


def _end() -> None:
    with suppress(Exception):
        if dist.is_initialized():
            dist.destroy_process_group()


def _world_size() -> int:
    """Return how many processes there are by the variables. Raises ValueError for some that cannot be used."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 1
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ValueError(f"WORLD_SIZE={size} without {', '.join(missing)}: start the ranks with torchrun, or set them")
    numbers = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    if wrong := [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()]:
        raise ValueError(f"{wrong[0]}: expected a number, as torchrun sets it")
    if not int(numbers["RANK"]) < int(size):
        raise ValueError(f"RANK={numbers['RANK']} with WORLD_SIZE={size}: ranks are numbered from 0")
    return int(size)


def are_many() -> bool:
    """Return whether this process is to work with others: ``join`` would meet them."""
    if dist.is_available() and dist.is_initialized():
        return int(dist.get_world_size()) > 1
    return _world_size() > 1


def restarts() -> int:
    """Return how often torchrun has started the ranks again after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_first() -> bool:
    """Return whether this process is the one that writes and prints: rank 0, or the only one."""
    if dist.is_available() and dist.is_initialized():
        return int(dist.get_rank()) == 0
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def together(ranks: Ranks | None, exact: bool = False) -> Iterator[None]:
    """Let sums be over the tasks of all ranks; with ``exact``, by each task's own term, in the order of the tasks.

    Then the number of ranks does not change a bit of them, one process included. An error inside is left for the others
    to tell.
    """
    before = torch.get_num_threads()
    token = _NOW.set(_Now(ranks, exact) if ranks is not None or exact else None)
    if exact:
        torch.set_num_threads(1)  # large sums are split among threads
    try:
        yield
    except BaseException as error:
        if ranks is not None and not isinstance(error, RankError):
            with suppress(Exception):
                _store().set(ranks.key, f"rank {ranks.rank}: {type(error).__name__}: {_first_line(error)}")
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
    now = _NOW.get()
    return now is not None and now.exact


def is_shared() -> bool:
    """Return whether other ranks have some of the tasks."""
    return number_of_ranks() > 1


def number_of_ranks() -> int:
    """Return how many processes work together now."""
    now = _NOW.get()
    return 1 if now is None or now.ranks is None else now.ranks.count


def share(tasks: int) -> slice:
    """Return which of so many tasks are this rank's. Raises ValueError where a rank would have none."""
    now = _NOW.get()
    if now is None or now.ranks is None:
        return slice(0, tasks)
    require_tasks(tasks, now.ranks)
    low, high = (tasks * rank // now.ranks.count for rank in (now.ranks.rank, now.ranks.rank + 1))
    return slice(low, high)


def require_tasks(tasks: int, ranks: Ranks | None) -> None:
    """Raise ValueError for fewer tasks than ranks."""
    if ranks is not None and tasks < ranks.count:
        raise ValueError(
            f"{ranks.count} ranks cannot share {tasks} tasks: start at most {tasks} (torchrun --nproc-per-node), or "
            "sample more tasks (--meta-batch-size)"
        )


def sums(groups: Iterable[tuple[Tensor, ...]], tasks: int, what: str) -> tuple[list[Tensor], int]:
    """Return sums over the tasks of all ranks, and the number of these tasks.

    Args:
        groups: For each group of this rank's tasks, sums over its tasks. In exact sums, each group is one task.
        tasks: Number of this rank's tasks.
        what: What is summed, for an error message.
    """
    now = _NOW.get()
    if now is None:
        return _added(groups), tasks
    listed = list(groups)
    first, flat = listed[0], [torch.cat([part.detach().double().reshape(-1) for part in group]) for group in listed]
    if now.exact:
        rows = [row for rows in gathered([one.cpu() for one in flat], what) for row in rows]
        (total,), tasks = _added((row,) for row in rows), len(rows)
    else:
        (total,) = _added((one,) for one in flat)
        total = torch.cat([total, total.new_tensor([tasks])])
        _reduce(now.ranks, total, what)
        total, tasks = total[:-1], round(total[-1].item())
    pieces = torch.split(total.to(first[0].device), [part.numel() for part in first])
    return [piece.to(part.dtype).view_as(part) for piece, part in zip(pieces, first, strict=True)], tasks


def _added(groups: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """Add groups up one by one, so that no more than one needs memory."""
    iterator = iter(groups)
    total = list(next(iterator))
    for group in iterator:
        total = [one + other for one, other in zip(total, group, strict=True)]
    return total


def _reduce(ranks: Ranks | None, tensor: Tensor, what: str) -> None:
    assert ranks is not None
    try:
        dist.all_reduce(tensor, group=ranks.tensors)
    except RuntimeError as error:
        _lost(ranks, what, error)


def gathered(value: Result, what: str) -> list[Result]:
    """Return the values of all ranks, in their order: plain data, and tensors in main memory."""
    now = _NOW.get()
    if now is None or now.ranks is None:
        return [value]
    found: list[Any] = [None] * now.ranks.count
    try:
        dist.all_gather_object(found, value, group=now.ranks.messages)
    except RuntimeError as error:
        _lost(now.ranks, what, error)
    return found


def gathered_numbers(values: list[int], what: str) -> list[list[int]]:
    """Return a few integers of each rank: less work than ``gathered``."""
    now = _NOW.get()
    if now is None or now.ranks is None:
        return [values]
    found = [torch.zeros(len(values), dtype=torch.int64) for _ in range(now.ranks.count)]
    try:
        dist.all_gather(found, torch.tensor(values), group=now.ranks.messages)
    except RuntimeError as error:
        _lost(now.ranks, what, error)
    return [one.tolist() for one in found]


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
    told = gathered((None if failed is None else f"{type(failed).__name__}: {_first_line(failed)}", value), what)
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
    absent = [torch.zeros_like(next(iter(one.values()))) if one else torch.zeros(0) for one in of_ranks]
    return {
        name: torch.cat([one.get(name, other) for one, other in zip(of_ranks, absent, strict=True)]) for name in names
    }


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


def _lost(ranks: Ranks, what: str, error: Exception) -> NoReturn:
    """Tell which collective failed, and why, if the rank that is to blame has told it."""
    cause = f"one of them has ended, hangs, or cannot be reached: {_first_line(error)}"
    with suppress(Exception):
        if _store().check([ranks.key]):
            cause = _store().get(ranks.key).decode(errors="replace")
    raise RankError(f"rank {ranks.rank} of {ranks.count} waited in vain for the others ({what}); {cause}") from error


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
