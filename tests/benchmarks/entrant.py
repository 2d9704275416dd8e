"""One contestant of the speed suite, in a process of its own: prepares itself, then works whenever it is told to.

Orders come as lines of JSON on standard input, answers go as lines of JSON to standard output; ``contest.py`` gives
them. A process of its own keeps peak memory, threads and memory settings apart.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

OPTIONAL = ("higher", "torchopt", "jax", "jaxlib", "mujoco_warp", "warp")
"""Libraries that may be missing: who needs them is left out."""


class Entrant(NamedTuple):
    """Work to be timed."""

    work: Callable[[int], Mapping[str, float] | None]
    """Does the work once, given a number that differs each time; returns numbers about it, such as seconds of parts."""
    told: dict[str, Any] = {}  # noqa: RUF012  # a NamedTuple's default, never written to
    """What the results depend on, and counts."""
    device: str = "cpu"
    processes: bool = False
    """Whether other processes work for it: their processor time cannot be told from that of strangers."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    sys.path.append(str(Path(__file__).parents[1]))
    module, _, function = sys.argv[1].partition(":")
    arguments = json.loads(sys.argv[2])
    try:
        make = getattr(importlib.import_module(module), function)
        start = peak("cpu")
        entrant = make(**arguments)
    except ModuleNotFoundError as error:
        if (missing := (error.name or "").partition(".")[0]) not in OPTIONAL:
            raise
        tell({"absent": f"{missing} is not installed"})
        return
    forget_peak(entrant.device)
    tell({"told": entrant.told})
    for line in sys.stdin:
        tell(turn(entrant, **json.loads(line)))
    tell({"peak_bytes": peak(entrant.device), "start_bytes": start if entrant.device == "cpu" else 0})


def turn(entrant: Entrant, first: int, count: int, threads: int | None) -> dict[str, Any]:
    """Work ``count`` times; return seconds of each, and of all processors: in all, and those that strangers took."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    busy, own, began = busy_seconds(), time.process_time(), time.perf_counter()
    runs = [timed(entrant, first + index) for index in range(count)]
    processors = (time.perf_counter() - began) * (os.cpu_count() or 1)
    strangers = None if entrant.processes else busy_seconds() - busy - (time.process_time() - own)
    seconds, numbers = zip(*runs, strict=True)
    return {"seconds": seconds, "numbers": numbers, "strangers": strangers, "processors": processors}


def timed(entrant: Entrant, number: int) -> tuple[float, Mapping[str, float]]:
    synchronise(entrant.device)
    began = time.perf_counter()
    numbers = entrant.work(number)
    synchronise(entrant.device)
    return time.perf_counter() - began, numbers or {}


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def busy_seconds() -> float:
    """Seconds that all processors of this machine have worked or were taken away; 0 where Linux does not tell."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, steal = map(int, path.read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def forget_peak(device: str) -> None:
    """Forget the peak of memory so far, where Linux can: what preparations took for a while does not count."""
    forget = Path("/proc/self/clear_refs")
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif forget.exists():
        forget.write_text("5")


def peak(device: str) -> int:
    """Peak memory in bytes: what torch and Warp allocated on the GPU, or what the process held in main memory."""
    if device == "cuda":
        import torch

        by_warp = sys.modules["warp"].get_mempool_used_mem_high("cuda") if "warp" in sys.modules else 0
        return torch.cuda.max_memory_allocated() + by_warp
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
