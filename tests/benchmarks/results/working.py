"""The queue: trainings that are not done, two at a time, each in a process of one thread and the lowest priority."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rows import HERE, Job
from store import KEPT, all_finished, collect, put_back, read, ship

from metarl import runs
from metarl.cli import DONE, main

WORK = Path("runs") / "results"
"""Where trainings are, until they are collected."""
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM}
PAUSE = 0.5
"""Seconds between two looks at the workers."""


class State(NamedTuple):
    """How far a training is."""

    done: bool
    told: str


def state(job: Job, work: Path = WORK, home: Path = KEPT) -> State:
    """Return how far a training is, from the store and from the folder where it is trained."""
    kept = read(job, home)
    if kept is not None and kept["finished"] and all_finished(job.also, home):
        return State(True, "done")
    stands, of = _standing(work / job.name)
    if of is None and kept is not None and kept["finished"]:
        return State(False, "scored, but not as other rows: to be trained anew")
    if of is None and kept is not None:
        stands, of = kept["collected"]["iteration"], kept["collected"]["iterations"]
    if of is None:
        return State(False, "not trained yet")
    return State(False, f"stands at iteration {stands} of {of}")


def _standing(folder: Path) -> tuple[int, int | None]:
    if not (folder / runs.CONFIG).exists():
        return 0, None
    of = runs.read_config(folder)["settings"]["iterations"]
    path = folder / runs.CHECKPOINT
    return (runs.load_progress(path)["iteration"] if path.exists() else 0), of


def run(job: Job, work: Path = WORK, home: Path = KEPT) -> int:
    """Train, or go on with, one training; then collect it. Return the exit code of the command that ended it."""
    os.nice(19)
    folder = work / job.name
    if not (folder / runs.CONFIG).exists():
        put_back(job, folder, home)
    stands, of = _standing(folder)
    if of is None:
        code = main(["train", *job.row.words, "--seed", str(job.seed), "--out", str(folder), "--quiet"])
    elif stands < of:
        code = main(["resume", str(folder), "--quiet"])
    else:
        code = DONE
    if code != DONE:
        return code
    print(f"collected {collect(folder, job, home)}")
    if job.row.ships is not None and (shipped := ship(job, home)) is not None:
        print(f"ships as {shipped}")
    return DONE


Start = Callable[[Job, Path], "subprocess.Popen[bytes]"]


def start(job: Job, work: Path = WORK) -> "subprocess.Popen[bytes]":
    """Start a training in a process of its own, whose words go into a file beside its folder."""
    work.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE), "one", job.row.name, str(job.seed), "--work", str(work)]
    with (work / f"{job.name}.log").open("ab") as log:
        # A session of its own: Ctrl-C reaches this process only, which then stops its workers in order.
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def work_through(queue: list[Job], workers: int = 2, work: Path = WORK, home: Path = KEPT, begin: Start = start) -> int:
    """Work through a queue until it is empty or this process is told to stop. Return how many trainings failed.

    SIGINT and SIGTERM stop the workers, which save their checkpoints first. A training that failed is not tried again
    by this call. One that another process is working on fails at once, by the lock of its folder.
    """
    waiting = [job for job in queue if not state(job, work, home).done]
    active: list[tuple[Job, subprocess.Popen[bytes]]] = []
    failed, stopping = 0, False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        for _, process in active:
            process.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while active or (waiting and not stopping):
            while waiting and len(active) < workers and not stopping:
                job = waiting.pop(0)
                print(f"{time.strftime('%H:%M')} {job.name}: {state(job, work, home).told}", flush=True)
                active.append((job, begin(job, work)))
                if stopping:  # the signal came while the process was begun
                    active[-1][1].terminate()
            time.sleep(PAUSE)
            ended = [(job, process) for job, process in active if process.poll() is not None]
            active = [pair for pair in active if pair not in ended]
            failed += sum(_told(job, process.returncode, work) for job, process in ended)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed


def _told(job: Job, code: int, work: Path) -> int:
    """Print how a training ended; return 1 if it failed."""
    if code == DONE:
        print(f"{time.strftime('%H:%M')} {job.name}: done", flush=True)
        return 0
    if code in STOPPED or -code in (signal.SIGINT, signal.SIGTERM):
        print(f"{time.strftime('%H:%M')} {job.name}: stopped; `make results` goes on with it", flush=True)
        return 0
    print(f"{time.strftime('%H:%M')} {job.name}: failed with exit code {code}; see {work / job.name}.log", flush=True)
    return 1
