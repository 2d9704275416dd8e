"""Writing a file whole or not at all."""

import contextlib
import csv
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shlex
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"metarl-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.tmp")
"""What files are called while they are written: by machine and process, so that no two writers share one."""


class WriteError(OSError):
    """A file could not be written: a matter of the disk or of a folder, which one line tells."""

    is_told = True
    """Commands print the message, and no traceback."""

    def __str__(self) -> str:
        """Return the message without the number of the error."""
        return str(self.strerror)


def check_regular(path: Path) -> None:
    """Raise ValueError for a path that is no file, such as a pipe, a device or a socket: reading it may never end."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # opening it tells why
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}: expected a file")


def expanded(path: Path | str) -> Path:
    """Return a path that a user gave, ``~`` standing for a home folder. Raises ValueError for one that cannot be."""
    if not os.fspath(path):
        raise ValueError("a path is empty; give a folder or a file ('.' is the working folder)")
    try:
        found = Path(path).expanduser()
        os.lstat(found)
    except (RuntimeError, ValueError) as error:  # nobody's home folder; a null character
        raise ValueError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"the path {str(path)[:40]}... cannot be: {error.strerror}") from error
    return found


def typed(path: Path) -> str:
    """Return a path as it is typed in a shell, in a command that users are told."""
    words = f"./{path}" if str(path).startswith("-") else str(path)
    return subprocess.list2cmdline([words]) if os.name == "nt" else shlex.quote(words)


def check_place(path: Path) -> None:
    """Raise ValueError where a file cannot come to be at a path, whose folders need not be there yet."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a file to write")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Raise ValueError where a folder cannot come to be, or cannot be written into."""
    found = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path())
    if not found.is_dir():
        kind = "a link to nothing" if found.is_symlink() else "a file"
        raise ValueError(f"nothing can be written into {folder}: {found} is {kind}")
    if not os.access(found, os.W_OK | os.X_OK):
        raise ValueError(f"nothing can be written into {folder}: no permission to write into {found}")


def write_json(path: Path, contents: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(contents, indent=2) + "\n").encode())


def write_bytes(path: Path, contents: bytes | memoryview) -> None:
    """Write a file so that, whatever happens, path holds either its old contents or all of the new ones.

    Of several processes that write it at once, the last one wins, whole.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        kept = "; what it held before is intact" if path.is_file() else ""
        told = f"could not write {path}: {error.strerror}{kept}"
        raise WriteError(error.errno, told) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def temporary_beside(path: Path) -> Path:
    """Return a name in a file's folder that nobody else writes to."""
    return path.with_name(f"metarl-{machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


@functools.cache
def machine() -> str:
    """Return what tells machines apart, and containers on one: only within it do process numbers mean the same."""
    parts = [socket.gethostname(), _told_by(Path("/etc/machine-id")), _namespace()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _told_by(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def read_table(path: Path, row: str) -> tuple[list[str], list[list[str]]]:
    """Return the names of a CSV file's columns, and the cells of each line after the first.

    ``row`` is what a line is called in errors. Raises ValueError for a file that cannot be read, or without rows, or
    with a line of another length.
    """
    try:
        check_regular(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in cells] for cells in csv.reader(file) if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    if len(lines) < 2:
        raise ValueError(f"{path} holds no {row}s: expected a line of names, then a line for each {row}")
    names, *rows = lines
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(names):
            raise ValueError(f"{path}, line {number}: {len(cells)} cells where {len(names)} were expected")
    return names, rows
