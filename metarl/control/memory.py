"""Whether a rollout fits into memory, before it is begun."""

import math
import os
from pathlib import Path

import torch

from metarl.types import Spec

ASKED = 2**28
"""Bytes below which nobody asks."""
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""The limit of a container."""
INFO = Path("/proc/meminfo")


def check_memory(spec: Spec, lanes: int, horizon: int) -> None:
    """Raise ValueError where the observations of a rollout are more than the memory of this machine."""
    item = torch.empty(0).element_size()
    needed = 2 * lanes * (horizon + 1) * math.prod(spec.input_shape) * item  # step by step, then stacked
    if needed < ASKED:
        return
    there = available()
    if there is not None and needed > there:
        raise ValueError(
            f"{lanes} episodes of {horizon} steps with observations of shape {spec.input_shape} need "
            f"{needed / 2**30:.1f} GiB, and {there / 2**30:.1f} GiB of memory are free: sample fewer or shorter "
            "episodes (sampling.episodes, sampling.horizon), fewer tasks, or smaller observations"
        )


def available() -> int | None:
    """Return the bytes of memory that can still be had; None where this is not known."""
    found = list[int]()
    if LIMIT.is_file() and (limit := LIMIT.read_text("utf-8").strip()).isdigit():
        found.append(int(limit))
    if INFO.is_file():
        lines = (line.split() for line in INFO.read_text("utf-8").splitlines())
        found += [1024 * int(words[1]) for words in lines if words and words[0] == "MemAvailable:"]
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)
