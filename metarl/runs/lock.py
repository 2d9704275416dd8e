"""Lock files: one process at a time may write into a folder. Reading needs no lock.

A lock file names its process. It is created atomically by a hard link, which also works on network file systems.
Without hard links, it is created exclusively. A lock is stale if its process no longer runs. Only the machine of that
process can know this, so a lock from another machine stays until somebody removes it.
"""

import contextlib
import errno
import gc
import json
import os
import secrets
import subprocess
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metarl.files import TEMPORARY, machine, temporary_beside
from metarl.runs.layout import RunError

RUN_LOCK, EVALUATION_LOCK = "run.lock", "evaluation.lock"
"""Locks for training and for evaluation. A run can be evaluated while it trains."""
_TRIES = 8
_ENDED = "ended"
"""The start time of a zombie: a process that has ended, but whose parent has not yet read its exit code."""
_PROBE = 4096
"""A lock is padded to this size, one page, so that writing it fails on a full disk."""


class Claim:
    """A lock that this process holds. ``release`` removes it, and so does the deletion of the object."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.token = path, token
        self._end = weakref.finalize(self, _release, path, token, os.getpid())

    def release(self) -> None:
        """Remove the lock file, if it is still this lock's."""
        self._end()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def is_lock(name: str) -> bool:
    """Return whether a file name is that of a lock, or of a lock for removing a stale lock."""
    return any(name == lock or name.startswith(f"{lock}-") for lock in (RUN_LOCK, EVALUATION_LOCK))


def claim(folder: Path, doing: str, name: str = RUN_LOCK) -> Claim:
    """Take the lock of an existing folder, and remove temporary files that killed processes left there.

    Raises:
        RunError: another process holds the lock, the folder is not writable, or its name is not UTF-8.
    """
    path = folder.absolute() / name  # absolute, because environments may change the working directory
    check_text(folder.absolute())
    try:
        token = _take(path, doing) or _take_from_garbage(path, doing)
    except OSError as error:
        raise RunError(f"cannot write into {folder}: {error.strerror}") from error
    if token is None:
        raise RunError(f"{folder} is in use: {_holder(path)}")
    held = Claim(path, token)
    _sweep(folder)
    return held


def check_text(folder: Path) -> None:
    """Raise RunError for a path that is no text, as TensorBoard needs; other programs may name files by any bytes."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(folder).decode(errors="backslashreplace")
        raise RunError(f"{shown} is not valid UTF-8, so no run can be kept there: choose another folder") from None


def _take_from_garbage(path: Path, doing: str) -> str | None:
    """Try again if this process itself holds the lock: the object that holds it may be garbage already."""
    owner = _read(path)
    if owner is None or owner.get("process") != os.getpid():
        return None
    gc.collect()
    return _take(path, doing)


def _take(path: Path, doing: str) -> str | None:
    """Return the token of a new lock; None if another process holds the lock."""
    for _ in range(_TRIES):
        token = secrets.token_hex(8)
        if _create(path, _record(token, doing)):
            return token
        owner = _read(path)
        if owner is not None and not _stale(owner):
            return None
        if owner is None and path.exists():
            return None  # it cannot be read, so its owner is unknown
        if owner is not None:
            _break(path, owner)
    return None


def _break(path: Path, owner: Mapping[str, Any]) -> None:
    """Remove a stale lock. A second lock, named after the stale one, lets only one process at a time do this."""
    right = path.with_name(f"{path.name}-{owner['token']}")
    token = _take(right, "removing a stale lock")
    if token is not None:
        with Claim(right, token):
            if (_read(path) or {}).get("token") == owner["token"]:  # else another process was faster
                path.unlink()


def _create(path: Path, text: bytes) -> bool:
    """Create a file with its contents atomically. Return False if it exists already."""
    temporary = temporary_beside(path)
    try:
        _write_new(temporary, text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS also reports this if it made the link but its answer was lost (open(2), O_EXCL): count the links.
            return temporary.stat().st_nlink > 1
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
                raise
            return _create_exclusively(path, text)
        return True
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _create_exclusively(path: Path, text: bytes) -> bool:
    try:
        _write_new(path, text)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _write_new(path: Path, text: bytes) -> None:
    with path.open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _record(token: str, doing: str) -> bytes:
    pid = os.getpid()
    owner = {
        "token": token, "doing": doing, "host": os.uname().nodename if hasattr(os, "uname") else "", "process": pid,
        "machine": machine(), "started": process_start(pid), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }  # fmt: skip
    return json.dumps(owner).encode().ljust(_PROBE - 1) + b"\n"


def _read(path: Path) -> dict[str, Any] | None:
    """Return the record of a lock's owner; None if there is no lock, or it is damaged."""
    try:
        with path.open("rb") as file:
            owner = json.loads(file.read(2 * _PROBE))
    except (OSError, ValueError, RecursionError):
        return None
    kinds = {"token": str, "machine": str, "process": int, "doing": str, "host": str, "since": str}
    if not isinstance(owner, dict) or any(type(owner.get(name)) is not kind for name, kind in kinds.items()):
        return None
    return owner if owner["token"].isalnum() and owner["process"] > 0 else None


def _stale(owner: Mapping[str, Any]) -> bool:
    """Return whether a lock's process is known to have ended."""
    if owner["machine"] != machine():
        return False
    if not alive(owner["process"]):
        return True
    started = process_start(owner["process"])
    return None not in (started, owner.get("started")) and started != owner["started"]


def alive(process: int) -> bool:
    """Return whether a process of this machine may be running; True if that is unknown."""
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # it belongs to another user
    return True


def process_start(process: int) -> str | None:
    """Return the start time of a process, as a text that never changes; None if it is unknown.

    Process numbers are reused. The start time distinguishes a process from a later one with the same number.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None if os.path.isdir("/proc/self") or os.name == "nt" else _start_by_ps(process)
    # After the name in parentheses: the state, and 19 fields later the start time in ticks since boot (proc(5)).
    return _ENDED if fields[0] in "ZX" else f"{boot} {fields[19]}"


def _start_by_ps(process: int) -> str | None:
    command = ["ps", "-o", "lstart=", "-p", str(process)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    except OSError:
        return None
    return found.stdout.strip() or None


def holder(folder: Path) -> str | None:
    """Return who trains in a folder now, as far as can be told; None if nobody does."""
    owner = _read(folder / RUN_LOCK)
    return None if owner is None or _stale(owner) else _named(owner)


def _named(owner: Mapping[str, Any]) -> str:
    return f"process {owner['process']} on {owner['host']} is {owner['doing']} there since {owner['since']}"


def _holder(path: Path) -> str:
    owner = _read(path)
    if owner is None:
        return f"{path} cannot be read as a lock; if no process writes there, remove that file"
    holder = _named(owner)
    if owner["machine"] == machine():
        return f"{holder}; wait for it, stop it, or choose another folder"
    return f"{holder}; wait for it, or, if it has ended, remove {path}"


def _release(path: Path, token: str, process: int) -> None:
    """Remove a lock, unless another process holds it now, or this process is a child of the one that took it."""
    if os.getpid() == process and (_read(path) or {}).get("token") == token:
        with contextlib.suppress(OSError):
            path.unlink()


def _sweep(folder: Path) -> None:
    """Remove temporary files of killed processes of this machine."""
    for path in _unfinished(folder):
        with contextlib.suppress(OSError):
            path.unlink()


def _unfinished(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        found = TEMPORARY.fullmatch(path.name)
        if found and found["machine"] == machine() and not alive(int(found["process"])):
            yield path
