"""A run's memory does not grow with its iterations: neither the process nor the number of live tensors."""

import ctypes
import gc
import os
import platform
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from metarl.algorithms.maml import MAML
from metarl.control.sampling import Sampling
from metarl.evaluation.scores import evaluate
from metarl.fewshot.classification import NWayKShot
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.outer.trpo import TRPO
from metarl.training.loop import Run
from metarl.training.settings import Settings
from metarl.types import Family
from metarl_envs.navigation import PointNavigation
from metarl_plugins.sinusoid import Sinusoid

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc how much memory it has given out"),
]

SETTLED, LAST = 200, 1000
"""Iterations after which memory is measured: caches are full by the first."""


class Memory(NamedTuple):
    """What a process holds, or how much more it does than before."""

    tensors: int
    objects: int
    """Everything that the garbage collector knows."""
    allocated: int
    """Bytes that malloc has given out: of tensors, and of graphs that no Python object shows."""
    resident: int
    """Bytes of RAM: coarse, because freed memory is kept and used again."""


ALLOWED = Memory(tensors=20, objects=100, allocated=50_000, resident=4_000_000)
"""How much may come in between; one small tensor left behind in each iteration takes 800 and 250,000 bytes."""


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2, of which two fields are used."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in names.split()]


def memory() -> Memory:
    gc.collect()
    objects = gc.get_objects()
    tensors = sum(issubclass(type(value), Tensor) for value in objects)
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    told = mallinfo()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Memory(tensors, len(objects), told.uordblks + told.hblkhd, pages * os.sysconf("SC_PAGE_SIZE"))


def digits() -> NWayKShot:
    """Ten classes of five made-up vectors."""
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    return NWayKShot(inputs, torch.arange(10).repeat_interleave(5), ways=2)


FAMILIES: dict[str, Callable[[], Family]] = {
    "regression": lambda: Sinusoid(shots=2, test_queries=3),
    "classification": digits,
    "control": lambda: PointNavigation(sampling=Sampling(episodes=2, horizon=3)),
}


def prepared(kind: str) -> Run:
    family = FAMILIES[kind]()
    algorithm = MAML(network=Network(hidden=(4,)))
    settings = Settings(meta_batch_size=2, device="cpu")
    return Run(algorithm, family, TRPO(cg_iterations=1, max_backtracks=1) if kind == "control" else Adam(), settings)


def training(kind: str) -> Callable[[], None]:
    run = prepared(kind)
    progress = run.first()

    def iterate() -> None:
        nonlocal progress
        progress, _ = run.iterate(progress)

    return iterate


def evaluation(kind: str) -> Callable[[], None]:
    run, seeds = prepared(kind), count()
    params = run.first().params

    def iterate() -> None:
        evaluate(run.learner, params, run.family, tasks=2, steps=1, seed=next(seeds))

    return iterate


def growth(iterate: Callable[[], object]) -> Memory:
    """How much more is held after iteration LAST than after SETTLED."""
    torch.set_num_threads(1)
    for _ in range(SETTLED):
        iterate()
    before = memory()
    for _ in range(LAST - SETTLED):
        iterate()
    return Memory(*(late - early for late, early in zip(memory(), before, strict=True)))


def small(found: Memory) -> bool:
    return all(more <= allowed for more, allowed in zip(found, ALLOWED, strict=True))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("work", [training, evaluation])
def test_nothing_grows(work, kind):
    found = growth(work(kind))
    if not small(found):  # a buffer that some library makes once comes once; a leak comes again
        found = growth(work(kind))
    assert small(found), found


def test_a_leak_of_one_small_tensor_is_noticed():
    kept: list[Tensor] = []
    found = growth(lambda: kept.append(torch.zeros(1)))
    assert found.tensors == LAST - SETTLED
    assert found.objects > ALLOWED.objects
    assert found.allocated > ALLOWED.allocated
