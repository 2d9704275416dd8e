"""Where episodes are saved: a file, or a data set of Minari; and reading them back."""

import importlib.util
from pathlib import Path
from typing import Any

from metarl.evaluation import Evaluation
from metarl.files import check_place, expanded
from metarl.trained.deploy.playing import Episode
from metarl.trained.recorded import archive, datasets
from metarl.trained.recorded.episodes import recording

MINARI = "minari:"
"""What the name of a data set of Minari begins with here: ``minari:namespace/name-v0``."""
SUFFIX = ".npz"


def check_recording(place: Path | str, replace: bool = False) -> None:
    """Raise ValueError where episodes cannot be saved: before they are played.

    ``replace`` allows a file that is there. A data set of Minari is never replaced.
    """
    name = _dataset(place)
    if name is not None:
        _check_installed(place)
        datasets.check(name)
        return
    path = expanded(place)
    if path.suffix != SUFFIX:
        raise ValueError(f"{place}: expected a file that ends in {SUFFIX}, or {MINARI}NAME-v0 for a data set of Minari")
    if path.exists() and not replace:
        raise ValueError(f"{place} exists: nothing is overwritten; choose another file")
    check_place(path)


def save_rollouts(place: Path | str, found: Evaluation, family: Any) -> Path:
    """Save the episodes that an evaluation of a family has played; return where they are.

    A ``place`` that ends in ``.npz`` is a file of arrays, which is replaced where it exists; ``minari:NAME-v0`` is a
    data set of Minari, in Minari's own folder. Of episodes that ended early, only the real steps are saved.

    Raises:
        ValueError: another place, Minari is not installed or has a data set of this name, or there are no episodes: the
            family is one of labelled examples, or this process holds a share of the tasks only.
        WriteError: the disk is full, or the folder cannot be written to. What the file held before is intact.
    """
    check_recording(place, replace=True)
    recorded = recording(found, family)
    name = _dataset(place)
    return archive.write(expanded(place), recorded) if name is None else datasets.write(name, recorded)


def load_episodes(place: Path | str, task: int | None = None, deterministic: bool = False) -> list[list[Episode]]:
    """Return the saved episodes of one task: a list for each adaptation step, 0, 1, ..., as ``Trained.adapt_to`` takes.

    The last list shows what came out of the adaptation to the others: ``adapt_to(load_episodes(place)[:-1])`` leads to
    the policy that played it. ``task`` is the task's number, and may be left out if there is one only.
    ``deterministic`` asks for the episodes in which the policy took its most likely actions.

    Raises:
        ValueError: it does not exist, is damaged, is of another form, or has no such episodes.
    """
    name = _dataset(place)
    if name is None:
        return archive.read(place, task, deterministic)
    _check_installed(place)
    return datasets.read(name, task, deterministic)


def _check_installed(place: Path | str) -> None:
    if any(importlib.util.find_spec(package) is None for package in ("minari", "h5py")):
        raise ValueError(
            f"{place}: Minari is not installed: pip install 'metarl-toolkit[minari]', or use a file that ends in "
            f"{SUFFIX}"
        )


def are_saved(place: Path | str) -> bool:
    """Return whether a name is one of saved episodes: of a file, or of a data set of Minari."""
    return _dataset(place) is not None or Path(place).suffix == SUFFIX


def _dataset(place: Path | str) -> str | None:
    """Return the name of a data set of Minari; None for a file."""
    text = str(place)
    return text.removeprefix(MINARI) if text.startswith(MINARI) else None
