"""Commands for one run, for each run of a group."""

from collections.abc import Callable
from pathlib import Path

from metarl.cli import DONE, Execute
from metarl.commands.groups.folder import is_group, read_group

OfOne = Callable[[Path, Path | None], Execute]
"""``(run, out) -> execute``: prepare a command for one run folder and what it writes."""


def one_or_each(folder: Path, out: Path | None, prepare: OfOne) -> Execute:
    """Prepare a command for a run, or for every run of a group, which then write ``NAME-seed-N`` instead of NAME."""
    return each(folder, out, prepare) if is_group(folder) else prepare(folder, out)


def each(folder: Path, out: Path | None, prepare: OfOne) -> Execute:
    """Prepare a command for every run of a group. All are checked before the first is executed."""
    prepared = [
        prepare(path, None if out is None else out.with_name(f"{out.stem}-seed-{seed}{out.suffix}"))
        for seed, path in read_group(folder).runs.items()
    ]

    def execute() -> int:
        for one in prepared:
            code = one()
            if code != DONE:
                return code
        return DONE

    return execute
