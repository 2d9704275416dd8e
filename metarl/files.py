"""Writing a file whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, contents: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(contents, indent=2) + "\n").encode())


def write_bytes(path: Path, contents: bytes | memoryview) -> None:
    """Write a file so that, whatever happens, path holds either its old contents or all of the new ones."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        told = f"could not write {path}: {error.strerror}; what it held before is intact"
        raise OSError(error.errno, told) from error
    finally:
        if temporary.exists():
            temporary.unlink()
