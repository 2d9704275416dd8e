"""Trainings in processes of their own, some at a time, with one progress bar for all."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from metarl import runs
from metarl.cli import DONE, INTERRUPTED, STOPPED_BY
from metarl.runs.logger import read_progress
from metarl.speed import usable_cpus
from metarl.training import stop_on_interrupt

POLL = 0.5
"""Seconds between looks at the processes."""
SHOWN = 4
"""How many seeds' progress fits beside the bar."""
Process = subprocess.Popen[bytes]
THREADS = ("METARL_CPUS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Work(NamedTuple):
    """A run that is to be trained further."""

    seed: int
    folder: Path
    begins: int
    """Iterations that it has."""
    ends: int
    """Iterations that it is to have."""
    words: Sequence[str]
    """The command line of metarl that does it."""

    @property
    def log(self) -> Path:
        """Where what the process prints goes; removed when it ends well."""
        return self.folder.with_name(f"{self.folder.name}.log")


class Ended(NamedTuple):
    """How all trainings ended."""

    failed: Mapping[int, str]
    """Why, by seed."""
    stopped: bool
    signal: int | None


def train_all(works: Sequence[Work], jobs: int, quiet: bool) -> Ended:
    """Train in ``jobs`` processes at a time, each with its share of the CPUs. Ctrl-C stops all, after an iteration."""
    share = max(1, usable_cpus() // min(jobs, max(1, len(works))))
    waiting, running, failed = deque(works), dict[int, Process](), dict[int, str]()
    by_seed, stopped, asked = {work.seed: work for work in works}, False, False
    bar = _bar(works, quiet)
    try:
        with stop_on_interrupt() as stop:
            while waiting or running:
                while waiting and len(running) < jobs and not stop.is_set():
                    work = waiting.popleft()
                    running[work.seed] = _start(work, share)
                if stop.is_set() and not asked:
                    asked, stopped = True, True
                    waiting.clear()
                    _signal(running, signal.SIGTERM)  # a background job's children may ignore SIGINT
                time.sleep(POLL)
                _show(bar, [by_seed[seed] for seed in by_seed])
                for seed, code in _ended(running):
                    stopped |= _report(by_seed[seed], code, failed, bar, quiet)
        return Ended(failed, stopped, stop.signal)
    finally:
        bar.close()
        _signal(running, signal.SIGTERM)
        for process in running.values():
            process.wait()


def _start(work: Work, share: int) -> Process:
    limits = {name: str(min(share, _number(os.environ.get(name), share))) for name in THREADS}
    with work.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "metarl", *work.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | limits,
            # A group of its own, so that Ctrl-C reaches this process alone, which passes it on once.
            start_new_session=True,
        )


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() and int(text) > 0 else default


def _signal(running: Mapping[int, Process], number: int) -> None:
    for process in running.values():
        if process.poll() is None:
            process.send_signal(number)


def _ended(running: dict[int, Process]) -> list[tuple[int, int]]:
    codes = [(seed, code) for seed, process in running.items() if (code := process.poll()) is not None]
    for seed, _ in codes:
        del running[seed]
    return codes


def _report(work: Work, code: int, failed: dict[int, str], bar: "tqdm[None]", quiet: bool) -> bool:
    """Tell how a training ended. Return whether it was stopped."""
    if code == DONE:
        work.log.unlink(missing_ok=True)
        if not quiet:
            bar.write(f"seed {work.seed}: done ({work.ends} iterations)", file=sys.stdout)
        return False
    if code in (INTERRUPTED, -signal.SIGTERM) or code > STOPPED_BY:
        work.log.unlink(missing_ok=True)
        return True
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    lines = work.log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    failed[work.seed] = f"seed {work.seed} failed ({how}): {told.removeprefix('metarl: ')}; see {work.log}"
    return False


def _bar(works: Sequence[Work], quiet: bool) -> "tqdm[None]":
    total, begun = sum(work.ends for work in works), sum(work.begins for work in works)
    hidden = quiet or not works or not sys.stderr.isatty()
    return tqdm(total=total, initial=begun, disable=hidden, unit="it", dynamic_ncols=True, desc="all seeds")


def _show(bar: "tqdm[None]", works: Sequence[Work]) -> None:
    if bar.disable:
        return
    reached = {work.seed: (_reached(work), work.ends) for work in works}
    open_ones = {seed: f"{now}/{ends}" for seed, (now, ends) in reached.items() if now < ends}
    bar.set_postfix({f"seed {seed}": told for seed, told in list(open_ones.items())[:SHOWN]}, refresh=False)
    bar.update(sum(now for now, _ in reached.values()) - bar.n)


def _reached(work: Work) -> int:
    """Return the last iteration in a run's rows, which are more recent than its checkpoint."""
    try:
        rows = read_progress(work.folder / runs.PROGRESS)
    except runs.RunError:
        return work.begins  # it is being written
    return max(work.begins, int(rows[-1]["iteration"])) if rows else work.begins
