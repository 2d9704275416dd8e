"""A run folder: config.json, progress.csv, checkpoint.pt, best.pt, evaluation.json, pictures, TensorBoard events.

Resuming or evaluating a run needs nothing else. Each file is written to a temporary file beside it, synced and renamed.
So a crash or a full disk does not damage the previous file.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

from metarl import plugins, safety
from metarl.files import typed, write_bytes
from metarl.runs import replacing
from metarl.runs.checkpoints import save_checkpoint
from metarl.runs.layout import CHECKPOINT, CONFIG, CURVE, EVALUATION, FORMAT, GROUPS, PAST, RECORDED_PACKAGES, RunError
from metarl.runs.lock import EVALUATION_LOCK, Claim, check_text, claim
from metarl.runs.migration import migrated
from metarl.runs.records import read_record, write_record


def create(
    folder: Path, config: Mapping[str, Any], overwrite: bool = False, first: Mapping[str, Any] | None = None
) -> Claim:
    """Create a run folder. Write its configuration and, if given, the checkpoint of iteration 0.

    An existing run is set aside (see ``replacing``). Nothing else is moved or deleted. Return the lock of the folder:
    no other process can write there until it is released.

    Raises:
        RunError: the configuration is not plain data; the folder contains a run, and overwrite is off; it contains
            other files but no run; it is not writable; another process holds its lock; or it is called pretrained:NAME.
            Then nothing is changed.
    """
    record = {"format": FORMAT, **_recordable(config), "versions": versions(), "git": _git_revision()}
    check_name(folder)
    replacing.check_free(folder)
    check_text(folder.absolute())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = "it is a broken link" if folder.is_symlink() and not folder.exists() else error.strerror
        raise RunError(f"cannot create the run folder {folder}: {cause}") from error
    held = claim(folder, "training")
    try:
        replacing.check_free(folder)
        replacing.put_back(folder)
        _begin(folder, record, overwrite, first)
    except OSError as error:
        held.release()
        raise RunError(f"cannot start a run in {folder}: {error.strerror}; no file there was lost") from error
    except BaseException:
        held.release()
        raise
    return held


def check_name(folder: Path) -> None:
    """Raise RunError for a folder that no command would find again: pretrained:NAME stands for a run of a package."""
    if plugins.is_pretrained(folder.name):
        raise RunError(
            f"{folder.name} stands for a run that a package ships, not for a folder: choose another with --out"
        )


def _begin(folder: Path, record: Mapping[str, Any], overwrite: bool, first: Mapping[str, Any] | None) -> None:
    with contextlib.ExitStack() as stack:
        if (folder / CONFIG).exists():
            _check_replaced(folder, overwrite)
            stack.enter_context(claim(folder, "replacing the run", EVALUATION_LOCK))
        stack.enter_context(replacing.replaced(folder))
        write_record(folder / CONFIG, safety.signed(record))
        if first is not None:
            save_checkpoint(folder / CHECKPOINT, first)


def _recordable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as a dict. Raises RunError, naming the first value, if it is not JSON."""
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
    """Raise RunError unless the run in a folder can and may be replaced."""
    try:
        read_config(folder)
    except RunError as error:
        raise RunError(
            f"{folder} contains a {CONFIG} that is not a run's, so nothing is overwritten ({error}); choose another "
            "folder with --out, or remove that file"
        ) from error
    if not overwrite:
        raise RunError(
            f"{folder} already contains a run; choose another folder with --out, continue the run (metarl "
            f"resume {typed(folder)}), or replace it with --overwrite"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's configuration. Raises RunError if there is none, or if it is damaged."""
    config = migrated(_recorded(folder))
    config.pop(safety.SIGNATURE, None)
    return config


def trusted_config(folder: Path, allow_code: bool) -> dict[str, Any]:
    """Read a run's configuration, to rebuild the run.

    Raises RunError as ``read_config`` does, and if the configuration names code that is neither an installed plugin's
    nor allowed, in a run that was not trained here by this user.
    """
    record = _recorded(folder)
    try:
        safety.check_code(folder, record, GROUPS, allow_code)
    except safety.UnknownCode as error:
        raise RunError(str(error)) from None
    config = migrated(record)
    config.pop(safety.SIGNATURE, None)
    return config


def rewrite_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a changed configuration, signed if the one before it was."""
    was_signed = safety.is_signed(_recorded(folder))
    write_record(folder / CONFIG, safety.signed(config) if was_signed else config)


def _recorded(folder: Path) -> dict[str, Any]:
    try:
        config = read_record(folder / CONFIG)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder} contains no run: {CONFIG} is missing{replacing.aside_note(folder)}") from None
    found = config.get("format") if isinstance(config, dict) else None
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise RunError(f"{folder / CONFIG} has format {found}; this version reads 1 to {FORMAT}")
    absent = [name for name in (*GROUPS, "settings") if not isinstance(config.get(name), dict)]
    if absent:
        raise RunError(f"{folder / CONFIG} is damaged: it lacks {' and '.join(absent)}")
    return dict(config)


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Read a run's evaluation. Raises RunError if there is none, or if it cannot be read."""
    return read_evaluation_file(folder / EVALUATION)


def read_evaluation_file(path: Path) -> dict[str, Any]:
    """Read an evaluation that was written elsewhere. Raises RunError as ``read_evaluation`` does."""
    try:
        contents = read_record(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(contents, dict) or not isinstance(contents.get("metrics"), dict):
        raise RunError(f"{path} is not an evaluation: it has no metrics")
    wrong = [name for name, values in contents["metrics"].items() if "/step_" in name and not _is_summary(values)]
    wrong += [name for name in ("tasks", "split") if contents.get(name) is None]
    wrong += [name for name, holds in WRITTEN.items() if contents.get(name) is not None and not holds(contents[name])]
    if wrong:
        raise RunError(f"{path} is damaged: {wrong[0]} is not what an evaluation writes")
    return contents


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(type(number) in (int, float) for number in values)


def _is_summary(values: Any) -> bool:
    if not isinstance(values, dict):
        return False
    ends: list[Any] = [values.get(name) for name in ("low", "mean", "high")]
    low, mean, high = ends
    if not _are_numbers(ends) or not _are_numbers(values.get("per_task", [])):
        return False
    # Where the mean is not finite, an end is nan. An interval over seeds is a bootstrap's, and need not hold the mean.
    return not (low > high or ("seeds" not in values and (low > mean or mean > high)))


def _are_summaries(values: object) -> bool:
    return isinstance(values, dict) and all(map(_is_summary, values.values()))


WRITTEN: dict[str, Callable[[Any], bool]] = {
    "tasks": _is(int),
    "split": _is(str),
    "seed": _is(int),
    "steps": _is(int),
    "iteration": _is(int),
    "episodes": _is(int),
    "schedule": _are_numbers,
    "checkpoint": _is(str),
    "batch_norm": _is(str),
    "algorithm": _is(dict),
    "family": _is(dict),
    "definition": _is(dict),
    "versions": _is(dict),
    "parameters": _is(dict),
    "strata": _is(list),
    "seeds": _is(list),
    "environment_steps": _are_numbers,
    "references": _are_summaries,
}
"""What an evaluation holds under its names, where it does; None counts as nothing."""


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """Read the scores of the evaluations during training, if there are any. Raises RunError for a damaged file."""
    path = folder / CURVE
    try:
        points = read_record(path)
    except FileNotFoundError:
        return []
    for point in points if isinstance(points, list) else [None]:
        numbers = [point.get(name) for name in ("iteration", "score")] if isinstance(point, dict) else []
        if [type(number) for number in numbers] not in ([int, float], [int, int]):
            raise RunError(f"{path} is damaged: it holds no list of iterations and scores; move it away to go on")
    return list(points)


def write_evaluation(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """Write a run's evaluation. Keep the one before it under a number, unless it is the same; return where."""
    path = folder / EVALUATION
    kept = _unused(folder, PAST) if path.exists() and not _holds(path, record) else None
    if kept is not None:
        write_bytes(kept, path.read_bytes())
    write_record(path, record)
    return kept


def _unused(folder: Path, pattern: str) -> Path:
    return next(path for path in map(folder.__truediv__, map(pattern.format, count(1))) if not os.path.lexists(path))


def _holds(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        return bool(read_record(path) == json.loads(json.dumps(record)))
    except RunError:
        return False


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {"metarl": _version("metarl-toolkit")} | {name: _version(name) for name in RECORDED_PACKAGES}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_revision() -> str | None:
    """Return the commit of metarl's own checkout; None if it was installed from a wheel."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None
