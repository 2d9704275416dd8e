"""A run folder: config.json, progress.csv, checkpoint.pt, best.pt, evaluation.json, pictures, TensorBoard events.

It needs nothing else to be resumed or evaluated. Files are written to a temporary neighbour, synced and renamed, so
that a crash or a full disk leaves the last good one as it was.
"""

import contextlib
import io
import json
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from metarl.files import write_bytes, write_json
from metarl.runs import replacing
from metarl.runs.errors import RunError
from metarl.runs.layout import (
    BEST,
    BEST_EVALUATION,
    CHECKPOINT,
    CONFIG,
    EVALUATION,
    FORMAT,
    GROUPS,
    RECORDED_PACKAGES,
)
from metarl.runs.lock import EVALUATION_LOCK, Claim, claim
from metarl.types import Params

Checkpoint = Literal["last", "best", "validated"]
"""The last parameters, those of the best training score, or those of the best score on validation tasks."""


def create(
    folder: Path, config: Mapping[str, Any], overwrite: bool = False, first: Mapping[str, Any] | None = None
) -> Claim:
    """Make a run folder and write its configuration, and the checkpoint of iteration 0 if one is given.

    A run that stands there is set aside, see ``replacing``. Nothing else is moved or deleted. Returns the lock of the
    folder, which nobody else may write into until it is released.

    Raises:
        RunError: the configuration is not plain data; the folder holds a run, and overwrite is off; it holds other
            files, and no run; it cannot be written to; or another process does. Then everything is as it was.
    """
    record = {"format": FORMAT, **_recordable(config), "versions": versions(), "git": _git_revision()}
    replacing.check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = "it is a link to nothing" if folder.is_symlink() and not folder.exists() else error.strerror
        raise RunError(f"cannot make the run folder {folder}: {kind}") from error
    held = claim(folder, "training")
    try:
        replacing.check_free(folder)
        replacing.put_back(folder)
        _begin(folder, record, overwrite, first)
    except OSError as error:
        held.release()
        raise RunError(f"cannot begin a run in {folder}: {error.strerror}; nothing there was lost") from error
    except BaseException:
        held.release()
        raise
    return held


def _begin(folder: Path, record: Mapping[str, Any], overwrite: bool, first: Mapping[str, Any] | None) -> None:
    with contextlib.ExitStack() as stack:
        if (folder / CONFIG).exists():
            _check_replaced(folder, overwrite)
            stack.enter_context(claim(folder, "replacing the run", EVALUATION_LOCK))
        stack.enter_context(replacing.replaced(folder))
        write_json(folder / CONFIG, record)
        if first is not None:
            save_checkpoint(folder / CHECKPOINT, first)


def _recordable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as it will be read back. Raises RunError, with the first value that cannot be."""
    for section, values in config.items():
        for name, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise RunError(
                    f"{section} cannot be recorded in a run folder: {name}={value!r} is of type "
                    f"{type(value).__name__}; use plain numbers and strings, such as int(...) of a NumPy integer"
                ) from error
    return dict(config)


def _check_replaced(folder: Path, overwrite: bool) -> None:
    """Raise RunError unless the run in a folder may be replaced."""
    try:
        read_config(folder)
    except RunError as error:
        raise RunError(
            f"{folder} holds a {CONFIG} that does not tell of a run, and nothing is overwritten ({error}); choose "
            "another folder with --out, or remove that file"
        ) from error
    if not overwrite:
        raise RunError(
            f"{folder} already holds a run; choose another folder with --out, go on with it by "
            f"'metarl resume {folder}', or replace it with --overwrite"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's configuration. Raises RunError where there is none."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder} holds no run: {CONFIG} is missing{replacing.told(folder)}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise RunError(f"{folder / CONFIG} has format {found}; this version reads {FORMAT}")
    absent = [name for name in (*GROUPS, "settings") if not isinstance(config.get(name), dict)]
    if absent:
        raise RunError(f"{folder / CONFIG} is damaged: it does not tell the {' and the '.join(absent)} of the run")
    return config


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Read a run's evaluation. Raises RunError where there is none, or none that can be read."""
    try:
        contents = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / EVALUATION} cannot be read: {error}") from error
    if not isinstance(contents, dict) or "metrics" not in contents:
        raise RunError(f"{folder / EVALUATION} is not an evaluation: it holds no metrics")
    return contents


def checkpoint(folder: Path, which: Checkpoint) -> Path:
    """Return a checkpoint's file. Raises RunError for an unknown one, or where no validation has kept any."""
    names = {"last": CHECKPOINT, "best": BEST, "validated": BEST_EVALUATION}
    if which not in names:
        raise RunError(f"checkpoint={which!r}: expected one of {', '.join(names)}")
    if which == "validated" and not (folder / BEST_EVALUATION).exists():
        raise RunError(f"{folder} has no {BEST_EVALUATION}: none is kept without --validate-every in training")
    return folder / names[which]


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write tensors and plain values, loadable with ``torch.load(weights_only=True)``."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **contents}, buffer)
    write_bytes(path, buffer.getbuffer())


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", fields: Sequence[str] = ("iteration", "params")
) -> dict[str, Any]:
    """Read a checkpoint. Raises RunError where it is missing, cut short, not one of metarl's, or lacks a field."""
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        missing = f"{path} does not exist: the run has not saved a checkpoint yet{replacing.told(path.parent)}"
        raise RunError(missing) from None
    except Exception as error:  # bytes that are no checkpoint make torch raise anything, KeyError for one
        cause = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise RunError(f"{path} cannot be read; it may be cut short or no checkpoint at all ({cause})") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise RunError(f"{path} is not a checkpoint of this version of metarl")
    if lacking := [name for name in fields if name not in contents]:
        raise RunError(f"{path} is no whole checkpoint: it lacks {', '.join(lacking)}; train anew, or take another one")
    return contents


def check_architecture(expected: Params, found: Params, path: Path) -> None:
    """Raise RunError unless two sets of parameters have the same names, shapes and types."""
    ours = {name: f"{value.dtype} {tuple(value.shape)}" for name, value in expected.items()}
    theirs = {name: f"{value.dtype} {tuple(value.shape)}" for name, value in found.items()}
    if ours != theirs:
        names = [name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name)]
        first = names[0]
        raise RunError(
            f"{path} was written for another architecture: {first} is {theirs.get(first, 'absent')} there and "
            f"{ours.get(first, 'absent')} in this configuration ({len(set(names))} parameters differ)"
        )


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return {"metarl": _version("metarl-toolkit")} | {name: _version(name) for name in RECORDED_PACKAGES}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_revision() -> str | None:
    """Return the commit of metarl's own checkout; None where it was installed from a wheel."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None
