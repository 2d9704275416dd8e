"""Who may write into a folder: one process at a time, by a lock file that tells which. Readers do not ask.

The file is made whole and at once, by a hard link, which holds on network file systems too; where there are no hard
links it is created exclusively. A lock is stale where its process is gone: that can be told on the machine that it ran
on, and nowhere else, so the lock of another machine stands until somebody removes it.
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
"""Of what trains in a folder, and of what evaluates into one: an evaluation may go on beside training."""
_TRIES = 8
_ENDED = "ended"
"""What is told of a process that has ended, and whose parent has not yet asked how."""
_PROBE = 4096
"""A lock is padded to a page, so that a disk without room for any file is found out."""


class Claim:
    """A lock that this process holds; it is released by ``release``, or when nobody refers to it any more."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.token = path, token
        self._end = weakref.finalize(self, _release, path, token, os.getpid())

    def release(self) -> None:
        """Remove the lock, if it is still this one."""
        self._end()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def is_lock(name: str) -> bool:
    """Return whether a file of this name is a lock, or the right to remove a stale one."""
    return any(name == lock or name.startswith(f"{lock}-") for lock in (RUN_LOCK, EVALUATION_LOCK))


def claim(folder: Path, doing: str, name: str = RUN_LOCK) -> Claim:
    """Take the lock of a folder, which must exist, and remove what killed writers have left there.

    Raises:
        RunError: another process holds it, nothing can be written there, or its name is not UTF-8.
    """
    path = folder.absolute() / name  # environments may change the working folder
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
    """Try again where this process itself holds the lock, perhaps for what nobody refers to any more."""
    owner = _read(path)
    if owner is None or owner.get("process") != os.getpid():
        return None
    gc.collect()
    return _take(path, doing)


def _take(path: Path, doing: str) -> str | None:
    """Return the token of a new lock, or None where another process holds it."""
    for _ in range(_TRIES):
        token = secrets.token_hex(8)
        if _create(path, _told(token, doing)):
            return token
        owner = _read(path)
        if owner is not None and not _stale(owner):
            return None
        if owner is None and path.exists():
            return None  # it cannot be read: whose it is, nobody knows
        if owner is not None:
            _break(path, owner)
    return None


def _break(path: Path, owner: Mapping[str, Any]) -> None:
    """Remove a stale lock. Of several processes that want to, one has the right to, by a lock named after the stale."""
    right = path.with_name(f"{path.name}-{owner['token']}")
    token = _take(right, "removing a stale lock")
    if token is not None:
        with Claim(right, token):
            if (_read(path) or {}).get("token") == owner["token"]:  # else somebody has been faster
                path.unlink()


def _create(path: Path, text: bytes) -> bool:
    """Create a file with its contents at once; return False where there is one."""
    temporary = temporary_beside(path)
    try:
        _write_new(temporary, text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return temporary.stat().st_nlink > 1  # NFS says so, too, where the answer to a link that it made was lost
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


def _told(token: str, doing: str) -> bytes:
    pid = os.getpid()
    owner = {
        "token": token, "doing": doing, "host": os.uname().nodename if hasattr(os, "uname") else "", "process": pid,
        "machine": machine(), "started": process_start(pid), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }  # fmt: skip
    return json.dumps(owner).encode().ljust(_PROBE - 1) + b"\n"


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a lock tells of its owner; None where there is none, or it is damaged."""
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
    """Return whether a lock's process is known to be gone."""
    if owner["machine"] != machine():
        return False
    if not alive(owner["process"]):
        return True
    started = process_start(owner["process"])
    return None not in (started, owner.get("started")) and started != owner["started"]


def alive(process: int) -> bool:
    """Return whether a process of this machine may be alive; True where that cannot be told."""
    if os.name == "nt":  # there, signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # it is somebody else's
    return True


def process_start(process: int) -> str | None:
    """Return when a process began, as a text that is the same whenever it is asked for; None where nothing tells.

    Numbers of processes come again: the time tells a process from a later one of the same number.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None if os.path.isdir("/proc/self") or os.name == "nt" else _start_by_ps(process)
    return _ENDED if fields[0] in "ZX" else f"{boot} {fields[19]}"


def _start_by_ps(process: int) -> str | None:
    command = ["ps", "-o", "lstart=", "-p", str(process)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    except OSError:
        return None
    return found.stdout.strip() or None


def _holder(path: Path) -> str:
    owner = _read(path)
    if owner is None:
        return f"{path} cannot be read as a lock; if nothing writes there, remove that file"
    told = f"process {owner['process']} on {owner['host']} is {owner['doing']} there since {owner['since']}"
    if owner["machine"] == machine():
        return f"{told}; wait for it, stop it, or choose another folder"
    return f"{told}; wait for it, or, if it is gone, remove {path}"


def _release(path: Path, token: str, process: int) -> None:
    """Remove a lock, unless it is another's by now, or this is a child of the process that took it."""
    if os.getpid() == process and (_read(path) or {}).get("token") == token:
        with contextlib.suppress(OSError):
            path.unlink()


def _sweep(folder: Path) -> None:
    """Remove files that killed processes of this machine were writing."""
    for path in _unfinished(folder):
        with contextlib.suppress(OSError):
            path.unlink()


def _unfinished(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        found = TEMPORARY.fullmatch(path.name)
        if found and found["machine"] == machine() and not alive(int(found["process"])):
            yield path
