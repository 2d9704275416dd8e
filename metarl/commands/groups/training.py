"""``metarl train ... --seeds`` and ``metarl resume GROUP``: all runs of a group, in processes."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from metarl import runs
from metarl.cli import DONE, FAILED, INTERRUPTED, STOPPED_BY, Execute
from metarl.commands.groups.folder import claimed, go_on, member, read_group, standing, write_group
from metarl.commands.groups.processes import Ended, Work, train_all
from metarl.files import typed
from metarl.speed import resolve_device, usable_cpus

Begin = Callable[[int, Path], None]
"""``(seed, folder)``: make the run folder of a seed, or check that what is there can go on. Raises ValueError."""


class Manner(NamedTuple):
    """How a group is trained."""

    jobs: int | None = None
    iterations: int | None = None
    device: str | None = None
    quiet: bool = False
    words: Sequence[str] = ()
    """More words of the command line, for each process."""


def allowing(changes: bool, code: bool) -> tuple[str, ...]:
    """Return the words that allow a process what this one is allowed."""
    return (*(["--allow-changes"] if changes else []), *(["--allow-code"] if code else []))


def trained(folder: Path, seeds: Sequence[int], begin: Begin, manner: Manner, resume: bool) -> Execute:
    """Make the runs of a group, and return what trains them.

    Raises ValueError for seeds that are given twice, jobs below 1, and for the reasons of ``claimed`` and ``begin``.
    """
    _check(seeds, manner)
    shown, folder = folder, folder.absolute()  # families may change the working folder
    held = claimed(folder, resume)
    try:
        for seed in seeds:
            begin(seed, member(folder, seed))
        write_group(folder, seeds)
    except BaseException:
        held.release()
        with contextlib.suppress(OSError):  # it holds runs
            folder.rmdir()
        raise
    return _execute(folder, held, manner, shown)


def resumed(folder: Path, manner: Manner) -> Execute:
    """Return what goes on with all runs of a group. Raises RunError where one of them cannot."""
    _check((0,), manner)
    shown, folder = folder, folder.absolute()
    read_group(folder)
    return _execute(folder, runs.claim(folder, "training a group of seeds"), manner, shown)


def _check(seeds: Sequence[int], manner: Manner) -> None:
    if not seeds:
        raise ValueError("--seeds needs at least one seed, such as --seeds 0 1 2")
    if twice := sorted({seed for seed in seeds if list(seeds).count(seed) > 1}):
        raise ValueError(f"--seeds names {twice[0]} twice")
    if manner.jobs is not None and manner.jobs < 1:
        raise ValueError(f"--jobs {manner.jobs}: expected at least 1")


def _execute(folder: Path, held: runs.Claim, manner: Manner, shown: Path) -> Execute:
    try:
        works, jobs = _works(folder, manner)
    except BaseException:
        held.release()
        raise

    def execute() -> int:
        with held:
            return _finish(shown, train_all(works, jobs, manner.quiet), manner.quiet)

    return execute


def _works(folder: Path, manner: Manner) -> tuple[list[Work], int]:
    """Return what is left to do, and how many processes do it."""
    works, devices = list[Work](), set[str]()
    for seed, path in read_group(folder).runs.items():
        settings = runs.read_config(path)["settings"]
        reached, ends = standing(path), manner.iterations or int(settings["iterations"])
        devices.add(resolve_device(manner.device or settings["device"]).type)
        words = ["resume", str(path), "--quiet", "--iterations", str(ends), *manner.words]
        words += [] if manner.device is None else ["--device", manner.device]
        if reached < ends:
            works.append(Work(seed, path, reached, ends, words))
    usual = usable_cpus() if devices == {"cpu"} else 1  # a GPU's memory is for one training at a time, unless asked
    return works, manner.jobs or usual


def _finish(folder: Path, ended: Ended, quiet: bool) -> int:
    """Tell how the group ended. Return the exit code."""
    for told in ended.failed.values():
        print(f"metarl: {told}", file=sys.stderr)
    if ended.stopped:
        print(f"stopped; the checkpoints are saved. Go on with: {go_on(folder)}")
        return INTERRUPTED if ended.signal is None else STOPPED_BY + ended.signal
    if ended.failed:
        print(f"the other seeds are done; go on with: {go_on(folder)}", file=sys.stderr)
        return FAILED
    if not quiet:
        print(f"done: {folder}. Next: metarl evaluate {typed(folder)}")
    return DONE
