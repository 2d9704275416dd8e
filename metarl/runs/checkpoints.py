"""Checkpoints: tensors and plain values, loadable with ``torch.load(weights_only=True)``, with a hash of every byte.

The file is torch's own, a zip archive, and the hash is the archive's comment: readers of zip files pass over it, files
without one (of earlier versions, or written with ``torch.save``) are read all the same, and no byte is left out of it.
It finds damage; it is no signature.
"""

import contextlib
import hashlib
import io
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarl.files import temporary_beside, write_bytes
from metarl.runs import replacing
from metarl.runs.layout import BEST, BEST_EVALUATION, CHECKPOINT, CHECKPOINT_FORMAT, PREVIOUS, RunError
from metarl.types import Params

_MARK = b"metarl sha256 "
_COMMENT = len(_MARK) + 64
_END, _END_SIZE = b"PK\x05\x06", 22
"""How the last record of a zip archive begins, and its bytes; the last two tell the length of the comment after it."""

_whole: deque[tuple[int, ...]] = deque(maxlen=16)
"""Files that this process has written, or read and found to be whole."""
_SETTLED = 5_000_000_000
"""Nanoseconds after which another writer of a file shows in its time, on any file system."""

Checkpoint = str
"""``last``, ``best`` or ``validated``: the last parameters, those of the best training score, or those of the best
score on validation tasks; ``previous``, the checkpoint before the last; or the name of a file that ``KeepCheckpoints``
kept: ``checkpoint-100``."""
NAMED = {"last": CHECKPOINT, "best": BEST, "validated": BEST_EVALUATION, "previous": PREVIOUS}


def checkpoint(folder: Path, which: Checkpoint) -> Path:
    """Return a checkpoint's file. Raises RunError for an unknown one, or where no validation has kept any."""
    if which in NAMED:
        path = folder / NAMED[which]
        if which == "validated" and not path.exists():
            raise RunError(f"{folder} has no {BEST_EVALUATION}: none is kept without --validate-every in training")
        return path
    kept = {path.stem: path for path in sorted(folder.glob("checkpoint-*.pt"))}
    name = str(which).removesuffix(".pt")
    if name not in kept:
        there = f"; in {folder} there are also {', '.join(kept)}" if kept else ""
        raise RunError(f"checkpoint={which!r}: expected one of {', '.join(NAMED)} or checkpoint-ITERATION{there}")
    return kept[name]


def save_checkpoint(path: Path, contents: Mapping[str, Any], keep: Path | None = None) -> None:
    """Write tensors and plain values; what the file held before is kept as ``keep``, if it is whole."""
    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, **contents}, buffer)
    with buffer.getbuffer() as view:
        comment = _MARK + hashlib.sha256(view).hexdigest().encode()
    buffer.seek(-2, io.SEEK_END)
    buffer.write(len(comment).to_bytes(2, "little") + comment)
    if keep is not None:
        _keep(path, keep)
    write_bytes(path, buffer.getbuffer())
    now = time.time_ns()  # finer than the clock of file systems, so that no later writer leaves the same time
    with contextlib.suppress(OSError):
        os.utime(path, ns=(now, now))
        _remember(path.stat())


def _keep(path: Path, kept: Path) -> None:
    """Give a whole file a second name, in place of the older one there; a damaged one must not take its place."""
    try:
        if _identity(path.stat()) not in _whole:
            _check_hash(path.read_bytes())
    except (OSError, ValueError):
        return
    temporary = temporary_beside(kept)
    try:
        os.link(path, temporary)
        temporary.replace(kept)
    except OSError:  # no hard links here
        write_bytes(kept, path.read_bytes())
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _identity(file: os.stat_result) -> tuple[int, ...]:
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns


def _remember(file: os.stat_result) -> None:
    """Note that a file is whole: it need not be read and hashed again while nobody has written to it."""
    _whole.append(_identity(file))


def _check_hash(contents: bytes) -> None:
    """Raise ValueError where a file is no whole zip archive, or its hash is that of other contents."""
    if contents[-_END_SIZE:].startswith(_END) and contents[-2:] == b"\0\0":
        return  # without a hash
    end = contents[-_COMMENT - _END_SIZE :]
    said = _COMMENT.to_bytes(2, "little") + _MARK
    if not (end.startswith(_END) and end[_END_SIZE - 2 :].startswith(said)):
        raise ValueError("its end is missing")
    digest = hashlib.sha256(memoryview(contents)[: -_COMMENT - 2])
    digest.update(b"\0\0")
    if digest.hexdigest().encode() != end[-64:]:
        raise ValueError("its hash is that of other contents")


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint. Raises RunError where it is missing, damaged, cut short, or not one of metarl's."""
    try:
        with path.open("rb") as file:
            found, data = os.fstat(file.fileno()), file.read()
        _check_hash(data)
        if found.st_mtime_ns < time.time_ns() - _SETTLED:
            _remember(found)
        contents = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except FileNotFoundError:
        missing = (
            f"{path} does not exist: the run has not saved a checkpoint yet{replacing.told(path.parent)}{_offer(path)}"
        )
        raise RunError(missing) from None
    except Exception as error:  # bytes that are no checkpoint make torch raise anything, KeyError for one
        cause = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise RunError(
            f"{path} cannot be read; it may be cut short, damaged or no checkpoint at all ({cause}){_offer(path)}"
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != CHECKPOINT_FORMAT:
        raise RunError(f"{path} is not a checkpoint of this version of metarl")
    return contents


def _offer(path: Path) -> str:
    """Tell, as the end of a sentence, of the checkpoint before the last one, if that can be read instead."""
    previous = path.with_name(PREVIOUS)
    if path.name != CHECKPOINT or not previous.exists():
        return ""
    try:
        iteration = load_progress(previous)["iteration"]
    except RunError:
        return ""
    return f"; the one before it, of iteration {iteration}, is whole: rename {previous} to {CHECKPOINT} to take it"


def load_progress(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of where a run stands. Raises RunError as ``load_checkpoint``, or where it tells nonsense."""
    saved = load_checkpoint(path, device)
    iteration, refused, best = (saved.get(name, "missing") for name in ("iteration", "refused", "best"))
    params: Any = saved.get("params")
    checks = {
        "iteration": type(iteration) is int and 0 <= iteration < 2**53,
        "refused": type(refused) is int and 0 <= refused < 2**53,
        "best": best is None or type(best) in (int, float),
        "params": _is_named(params) and all(isinstance(value, Tensor) for value in params.values()),
        "outer": _is_named(saved.get("outer")),
    }
    for name, holds in checks.items():
        if not holds:
            found = repr(saved[name])[:80] if name in saved else "missing"
            raise RunError(f"{path} is damaged: {name} is {' '.join(found.split())}{_offer(path)}")
    for name, value in saved["params"].items():
        if not bool(torch.isfinite(value).all()):
            raise RunError(f"{path} holds numbers that are not finite, in the parameter {name}{_offer(path)}")
    return saved


def _is_named(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(name, str) for name in values)


def check_state(expected: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    """Raise RunError where the state of an outer update is none that could follow from its first, ``expected``."""
    for name, value in expected.items():
        if name not in found:
            raise RunError(f"{path} is damaged, or of another outer update: it lacks {name} of its state")
        ours, theirs = (_kind(one) for one in (value, found[name]))
        if value is not None and ours != theirs:  # None stands for what the first update will find out
            raise RunError(
                f"{path} is damaged, or of another outer update: {name} of its state is {theirs}, not {ours}"
            )
    for name, number in _numbers("", found):
        if math.isnan(number) if isinstance(number, float) else bool(torch.isnan(number).any()):
            raise RunError(f"{path} is damaged: {name} of the outer update's state is not a number")


def _kind(value: Any) -> str:
    """Say what a value of a state is; plain numbers and tensors of one number stand for each other in compiled runs."""
    if isinstance(value, Tensor) and value.ndim:
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, dict):
        return str({str(name): _kind(part) for name, part in value.items()})
    return "a number" if isinstance(value, Tensor | int | float) else type(value).__name__


def _numbers(name: str, value: Any) -> Iterator[tuple[str, Tensor | float]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(f"{name}.{key}".strip("."), part)
    elif isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()):
        yield name, value


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
