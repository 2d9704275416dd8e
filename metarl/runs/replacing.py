"""Replacing a run: the old one is set aside until the new one has a checkpoint, and restored if that fails.

Its files are moved one by one into a folder inside the run folder, the configuration last, and back in the same order.
So at any moment, one of the two folders contains the configuration of a run that can be restored, and a crash in
between is detected.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from metarl.files import TEMPORARY
from metarl.runs.layout import CHECKPOINT, CONFIG, RunError, written
from metarl.runs.lock import is_lock

ASIDE = "metarl-replaced-{}"
_ASIDE = re.compile(r"metarl-replaced-(\d+)")
_SHOWN = 3
"""Most file names in an error message."""


def check_free(folder: Path) -> None:
    """Raise RunError if a folder contains files but no run: they belong to the user."""
    if not folder.is_dir() or os.path.lexists(folder / CONFIG) or _asides(folder):
        return
    found = sorted(path.name for path in folder.iterdir() if not _left_behind(path.name))
    if found:
        shown = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        raise RunError(
            f"{folder} is not empty and contains no run ({shown}): a run needs its own folder; choose another with "
            "--out"
        )


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[None]:
    """Set aside the run in a folder, if any, while a new one starts there. If that fails, restore the old run."""
    try:
        if (folder / CONFIG).exists():
            _set_aside(folder)
    except BaseException:
        put_back(folder)
        raise
    try:
        yield
    except BaseException:
        for name in (CONFIG, CHECKPOINT):
            (folder / name).unlink(missing_ok=True)
        put_back(folder)
        raise


def _set_aside(folder: Path) -> None:
    last = _asides(folder)[-1:]
    aside = folder / ASIDE.format(_number(last[0]) + 1 if last else 1)
    aside.mkdir()
    _move(folder, aside)


def put_back(folder: Path) -> None:
    """Restore a run that was set aside, if no new run replaced it because of a crash or an error."""
    if unfinished(folder):
        aside = _asides(folder)[-1]
        _move(aside, folder)
        _remove_empty(aside)


def unfinished(folder: Path) -> bool:
    """Return whether a run was set aside only partly, or was not replaced by a new one."""
    last = _asides(folder)[-1:]
    return bool(last) and not ((last[0] / CONFIG).exists() and (folder / CONFIG).exists())


def settle(folder: Path) -> None:
    """Delete the runs that were set aside, once the run in a folder has its own checkpoint."""
    for aside in _asides(folder):
        for name in written(aside, _baseline(aside)):
            (aside / name).unlink(missing_ok=True)
        _remove_empty(aside)


def aside_note(folder: Path) -> str:
    """Return, as the end of a sentence, where the replaced run is, if the new one has no checkpoint yet."""
    if not (asides := _asides(folder)):
        return ""
    if (asides[-1] / CONFIG).exists():
        return f"; the run that it was to replace is kept in {asides[-1]}"
    return f"; some of its files are in {asides[-1]}: replacing it was interrupted, and 'metarl resume' restores them"


def _asides(folder: Path) -> list[Path]:
    """Return the folders of the runs that were set aside, oldest first."""
    try:
        return sorted((path for path in folder.iterdir() if _ASIDE.fullmatch(path.name)), key=_number)
    except OSError:
        return []


def _number(aside: Path) -> int:
    found = _ASIDE.fullmatch(aside.name)
    assert found is not None
    return int(found[1])


def _left_behind(name: str) -> bool:
    return is_lock(name) or bool(TEMPORARY.fullmatch(name))


def _baseline(folder: Path) -> bool:
    """Return whether a folder contains a baseline."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "baseline" in config


def _move(source: Path, target: Path) -> None:
    baseline = _baseline(source) or _baseline(target)
    for name in written(source, baseline):
        (target / name).parent.mkdir(exist_ok=True)
        (source / name).replace(target / name)


def _remove_empty(aside: Path) -> None:
    for folder in (aside / "adaptation", aside):
        with contextlib.suppress(OSError):  # other files in it are the user's
            folder.rmdir()
