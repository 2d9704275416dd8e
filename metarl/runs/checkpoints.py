"""Checkpoints: tensors and plain values, loadable with ``torch.load(weights_only=True)``, with a hash of all bytes.

The file has torch's own format, a zip archive. The hash is the archive's comment, which readers of zip files ignore.
Files without a hash (from earlier versions, or written with ``torch.save``) can be read too. The hash detects damage.
It is not a signature.
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

from metarl.files import check_regular, temporary_beside, write_bytes
from metarl.runs import replacing
from metarl.runs.layout import BEST, BEST_EVALUATION, CHECKPOINT, CHECKPOINT_FORMAT, PREVIOUS, RunError
from metarl.runs.migration import migrated_checkpoint
from metarl.types import Params

_MARK = b"metarl sha256 "
_COMMENT = len(_MARK) + 64
_END, _END_SIZE = b"PK\x05\x06", 22
"""First bytes and size of the last record of a zip archive. Its last two bytes are the length of the comment that
follows (PKWARE's APPNOTE, 4.3.16)."""

_whole: deque[tuple[int, ...]] = deque(maxlen=16)
"""Files that this process has written, or read and found to be whole."""
_SETTLED = 5_000_000_000
"""Nanoseconds after which another writer of a file shows in its time, on any file system."""

Checkpoint = str
"""``last``: the last parameters; ``best``: those with the best training score; ``validated``: those with the best score
on validation tasks; ``previous``: the checkpoint before the last; or a file of ``KeepCheckpoints``, such as
``checkpoint-100``."""
NAMED = {"last": CHECKPOINT, "best": BEST, "validated": BEST_EVALUATION, "previous": PREVIOUS}


def checkpoint(folder: Path, which: Checkpoint) -> Path:
    """Return the path of a checkpoint. Raises RunError for an unknown name, and for a run without validation."""
    if which in NAMED:
        path = folder / NAMED[which]
        if which == "validated" and not path.exists():
            raise RunError(f"{folder} has no {BEST_EVALUATION}: only training with --validate-every writes it")
        return path
    kept = {path.stem: path for path in sorted(folder.glob("checkpoint-*.pt"))}
    name = str(which).removesuffix(".pt")
    if name not in kept:
        others = f"; {folder} also has {', '.join(kept)}" if kept else ""
        raise RunError(f"checkpoint={which!r}: expected one of {', '.join(NAMED)} or checkpoint-ITERATION{others}")
    return kept[name]


def save_checkpoint(path: Path, contents: Mapping[str, Any], keep: Path | None = None) -> None:
    """Write tensors and plain values. The previous checkpoint is kept as ``keep``, unless it is damaged."""
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
    """Give a file a second name, in place of an older file. Do nothing if the file is missing or damaged."""
    try:
        if _identity(path.stat()) not in _whole:
            _check_hash(path.read_bytes())
    except (OSError, ValueError):
        return
    temporary = temporary_beside(kept)
    try:
        os.link(path, temporary)
        temporary.replace(kept)
    except OSError:  # this file system has no hard links
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
    """Raise ValueError unless a file is a complete zip archive whose hash, if it has one, is right."""
    if contents[-_END_SIZE:].startswith(_END) and contents[-2:] == b"\0\0":
        return  # a comment of length 0: no hash
    end = contents[-_COMMENT - _END_SIZE :]
    comment = _COMMENT.to_bytes(2, "little") + _MARK
    if not (end.startswith(_END) and end[_END_SIZE - 2 :].startswith(comment)):
        raise ValueError("its end is missing")
    # The hash was computed before the comment was added, when the length of the comment was still 0.
    digest = hashlib.sha256(memoryview(contents)[: -_COMMENT - 2])
    digest.update(b"\0\0")
    if digest.hexdigest().encode() != end[-64:]:
        raise ValueError("its hash does not match its contents")


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint. Raises RunError if it is missing, damaged or truncated, or was not written by metarl."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            found, data = os.fstat(file.fileno()), file.read()
        _check_hash(data)
        if found.st_mtime_ns < time.time_ns() - _SETTLED:
            _remember(found)
        contents = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except FileNotFoundError:
        hint = f"{replacing.aside_note(path.parent)}{_previous_note(path)}"
        raise RunError(f"{path} does not exist: the run has not saved a checkpoint yet{hint}") from None
    except Exception as error:  # for other files, torch may raise anything, such as KeyError
        cause = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise RunError(
            f"{path} cannot be read; it may be truncated, damaged, or not a checkpoint ({cause}){_previous_note(path)}"
        ) from error
    written = contents.get("format") if isinstance(contents, dict) else None
    if type(written) is not int or not 1 <= written <= CHECKPOINT_FORMAT:
        raise RunError(f"{path} is not a checkpoint of this version of metarl")
    return migrated_checkpoint(contents)


def _previous_note(path: Path) -> str:
    """Return, as the end of a sentence, how to use the checkpoint before the last one, if that can be read."""
    previous = path.with_name(PREVIOUS)
    if path.name != CHECKPOINT or not previous.exists():
        return ""
    try:
        iteration = load_progress(previous)["iteration"]
    except RunError:
        return ""
    return f"; the one before it, of iteration {iteration}, is intact: to use it, rename {previous} to {CHECKPOINT}"


def load_progress(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of a training run. Raises RunError like ``load_checkpoint``, and for invalid values."""
    saved = load_checkpoint(path, device)
    iteration, refused, best = (saved.get(name, "missing") for name in ("iteration", "refused", "best"))
    params: Any = saved.get("params")
    checks = {
        "iteration": type(iteration) is int and 0 <= iteration < 2**53,
        "refused": type(refused) is int and 0 <= refused < 2**53,
        "best": best is None or type(best) in (int, float),
        "params": _are_tensors(params),
        "buffers": _are_tensors(saved.get("buffers")),
        "outer": _is_named(saved.get("outer")),
    }
    for name, holds in checks.items():
        if not holds:
            found = repr(saved[name])[:80] if name in saved else "missing"
            raise RunError(f"{path} is damaged: {name} is {' '.join(found.split())}{_previous_note(path)}")
    for name, value in (saved["params"] | saved["buffers"]).items():
        if not bool(torch.isfinite(value).all()):
            raise RunError(f"{path} has numbers that are not finite in the parameter {name}{_previous_note(path)}")
    return saved


def digests(params: Params) -> dict[str, str]:
    """Return a digest of each parameter's numbers, type and shape, by its name, in the order of names."""
    return {name: _digest(params[name].detach().cpu()) for name in sorted(params)}


def _digest(value: Tensor) -> str:
    told = hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode())
    told.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return told.hexdigest()


def _are_tensors(values: Any) -> bool:
    return _is_named(values) and all(isinstance(value, Tensor) for value in values.values())


def _is_named(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(name, str) for name in values)


def check_state(expected: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    """Raise RunError unless a state of an outer update has the form of its initial state, ``expected``."""
    for name, value in expected.items():
        if name not in found:
            raise RunError(f"{path} is damaged, or was written by another outer update: its state has no {name}")
        ours, theirs = (_kind(one) for one in (value, found[name]))
        if value is not None and ours != theirs:  # None: the first update sets the value
            raise RunError(
                f"{path} is damaged, or was written by another outer update: {name} of its state is {theirs}, not "
                f"{ours}"
            )
    for name, number in _numbers("", found):
        if math.isnan(number) if isinstance(number, float) else bool(torch.isnan(number).any()):
            raise RunError(f"{path} is damaged: {name} of the outer update's state is not a number")


def _kind(value: Any) -> str:
    """Describe the type of a value in a state. In compiled runs, a tensor of one number may replace a plain number."""
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
