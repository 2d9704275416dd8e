"""JSON files of a run folder. They contain a checksum. Reading checks it, and limits the size and depth of a file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarl.files import check_regular, write_json
from metarl.runs.layout import RunError

CHECKSUM = "sha256"
"""The key of a record's checksum. Records of earlier versions have none and can still be read."""
LARGEST, DEEPEST = 2**28, 50
"""Limits on bytes and on levels of nesting. The files that metarl writes are far smaller."""


def write_record(path: Path, contents: Mapping[str, Any]) -> None:
    """Write an object as JSON with its checksum, atomically."""
    write_json(path, {**contents, CHECKSUM: _checksum(contents)})


def read_record(path: Path) -> Any:
    """Read JSON; return an object without its checksum.

    Raises:
        FileNotFoundError, NotADirectoryError: the file does not exist.
        RunError: it cannot be read, or the object has changed since it was written.
    """
    contents = read_json(path)
    if not isinstance(contents, dict) or CHECKSUM not in contents:
        return contents
    checksum = contents.pop(CHECKSUM)
    if checksum != _checksum(contents):
        raise RunError(
            f"{path} has changed since it was written: it is damaged, or was edited by hand; if you edited it, remove "
            f'the entry "{CHECKSUM}" from it'
        )
    return contents


def read_json(path: Path) -> Any:
    """Read JSON without checking a checksum. Raises the same errors as ``read_record``."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        contents = json.loads(text.decode("utf-8"))
        if _is_deep(contents):
            raise ValueError(f"lists and objects are nested more than {DEEPEST} deep")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except RecursionError as error:
        raise RunError(f"{path} cannot be read: lists and objects are nested too deep") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    return contents


def _checksum(contents: Mapping[str, Any]) -> str:
    read_back = json.loads(json.dumps(contents))  # as it will be read: tuples become lists, and so on
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def _is_deep(contents: Any) -> bool:
    level = [contents]
    for _ in range(DEEPEST):
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [inner for part in parts for inner in part]
        if not level:
            return False
    return True
