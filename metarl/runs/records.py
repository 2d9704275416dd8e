"""JSON files of a run folder: written with a checksum in them, and read with it, of files of a sane size and depth."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarl.files import write_json
from metarl.runs.layout import RunError

CHECKSUM = "sha256"
"""The entry of a record that holds its checksum; records of earlier versions have none, and are read all the same."""
LARGEST, DEEPEST = 2**28, 50
"""Bytes, and levels of lists and objects within each other: what writes these files stays far below both."""


def write_record(path: Path, contents: Mapping[str, Any]) -> None:
    """Write an object as JSON, atomically, with its checksum."""
    write_json(path, {**contents, CHECKSUM: _checksum(contents)})


def read_record(path: Path) -> Any:
    """Read JSON, and an object without its checksum.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        RunError: it cannot be read, or an object has changed since it was written.
    """
    contents = read_json(path)
    if not isinstance(contents, dict) or CHECKSUM not in contents:
        return contents
    checksum = contents.pop(CHECKSUM)
    if checksum != _checksum(contents):
        raise RunError(
            f"{path} has changed since it was written: it is damaged, or was edited by hand; if you edited it, remove "
            f'its entry "{CHECKSUM}"'
        )
    return contents


def read_json(path: Path) -> Any:
    """Read JSON, without a look at any checksum. Raises as ``read_record``."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        contents = json.loads(text.decode("utf-8"))
        if _is_deep(contents):
            raise ValueError(f"lists and objects stand in each other more than {DEEPEST} deep")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except RecursionError as error:
        raise RunError(f"{path} cannot be read: lists and objects stand in each other too deep") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    return contents


def _checksum(contents: Mapping[str, Any]) -> str:
    read_back = json.loads(json.dumps(contents))  # tuples as lists, and so on
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def _is_deep(contents: Any) -> bool:
    level = [contents]
    for _ in range(DEEPEST):
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [inner for part in parts for inner in part]
        if not level:
            return False
    return True
