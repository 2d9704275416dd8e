"""A long run whose memory and handles must not grow, and many kills after which a run must give the same bits.

    python tests/benchmarks/soak.py --iterations 2000 --kills 200

Kills are SIGKILL at random times. Each process is a fork of this one, so that a trial takes no time for imports.
"""

import argparse
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metarl import runs
from metarl.algorithms import MAML
from metarl.networks import Network
from metarl.plugins import load
from metarl.training import Iteration, Settings, resume, train

ALGORITHM = MAML(network=Network(hidden=(8,)))
SETTLED = 200
"""Iterations after which memory and handles are first measured."""


def settings(iterations: int) -> Settings:
    return Settings(iterations, 2, device="cpu", log_every=1, checkpoint_every=5)


def resident() -> int:
    """Return the resident memory of this process in KiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def grown(iterations: int) -> dict[str, int]:
    """Return memory in KiB and open handles early and late in one run."""
    found: dict[str, int] = {}

    def look(iteration: Iteration) -> None:
        number = iteration.progress.iteration
        if number in (min(SETTLED, iterations // 2), iterations):
            gc.collect()
            time_of = "late" if number == iterations else "early"
            found[f"memory_{time_of}_KiB"], found[f"handles_{time_of}"] = resident(), handles()

    with tempfile.TemporaryDirectory() as folder:
        train(ALGORITHM, load("tasks", "sinusoid")(), settings=settings(iterations), out=folder, callbacks=[look])
    return found


def killed(work: Callable[[], Any], after: float | None) -> bool:
    """Run in a fork. Kill it after some seconds; return whether that was before it had ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a run failed; its traceback is above")
    return os.WIFSIGNALED(status)


def differing(kills: int, iterations: int, seed: int) -> dict[str, int]:
    """Kill runs at random times, go on with each until it has ended, and count those that ended otherwise."""
    chance, family = random.Random(seed), load("tasks", "sinusoid")()
    counts = {"kills": 0, "runs": 0, "runs_that_differ": 0, "kills_before_the_first_checkpoint": 0}
    with tempfile.TemporaryDirectory() as place:
        whole, folder = Path(place) / "whole", Path(place) / "run"

        def begin(out: Path, number: int = iterations) -> None:
            train(ALGORITHM, family, settings=settings(number), out=out)

        begin(Path(place) / "imports", 1)  # in this process, for all forks
        began = time.monotonic()
        killed(lambda: begin(whole), None)
        seconds, expected = time.monotonic() - began, contents(whole)
        while counts["kills"] < kills:
            shutil.rmtree(folder, ignore_errors=True)
            counts["runs"] += 1
            while not ended(folder, iterations):
                goes_on = (folder / "config.json").exists()
                after = chance.uniform(0, 1.2 * seconds) if counts["kills"] < kills else None
                if killed((lambda: resume(folder)) if goes_on else (lambda: begin(folder)), after):
                    counts["kills"] += 1
                    counts["kills_before_the_first_checkpoint"] += not (folder / "checkpoint.pt").exists()
            counts["runs_that_differ"] += contents(folder) != expected
            print(json.dumps(counts), file=sys.stderr, flush=True)
    return counts


def ended(folder: Path, iterations: int) -> bool:
    path = folder / "checkpoint.pt"
    return path.exists() and runs.load_progress(path)["iteration"] == iterations


def contents(folder: Path) -> tuple[bytes, list[str]]:
    """Return the bits of the parameters and of the outer update's state, and the metrics but for times."""
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    rows = (folder / "progress.csv").read_text().splitlines()
    kept = [index for index, name in enumerate(rows[0].split(",")) if not name.startswith("time/")]
    numbers = [",".join(row.split(",")[index] for index in kept) for row in rows]
    return repr(bits(saved)).encode(), numbers


def bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    return {name: bits(part) for name, part in value.items()} if isinstance(value, dict) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--killed-iterations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(json.dumps(grown(chosen.iterations)), flush=True)
    print(json.dumps(differing(chosen.kills, chosen.killed_iterations, chosen.seed)), flush=True)


if __name__ == "__main__":
    main()
