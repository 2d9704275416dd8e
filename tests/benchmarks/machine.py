"""What measurements depend on, as JSON on standard output: python tests/benchmarks/machine.py [cpu|cuda]."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from metarl import runs

OTHERS = ("jax", "jaxlib", "higher", "torchopt", "warp-lang")


def machine(device: str) -> dict[str, Any]:
    told = {
        "processor": processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": runs.versions() | {name: version(name) for name in OTHERS},
        "revision": revision(),
    }
    if device == "cuda":
        chip = torch.cuda.get_device_properties(0)
        told |= {"chip": chip.name, "chip_memory_gib": round(chip.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return told


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def revision() -> str | None:
    """The commit that was measured; None outside a checkout, or without git."""
    try:
        ended = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return ended.stdout.strip() or None


if __name__ == "__main__":
    json.dump(machine(*sys.argv[1:]), sys.stdout)
