"""Imports that do not look into the working folder."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_working_folder() -> Iterator[None]:
    """Import packages that metarl uses by name from where packages are installed, not from the working folder."""
    before = list(sys.path)
    sys.path[:] = [path for path in before if not _is_here(path)]
    try:
        yield
    finally:
        added = [path for path in sys.path if path not in before]
        sys.path[:] = before + added


def _is_here(path: object) -> bool:
    try:
        return isinstance(path, str) and (not path or os.path.samefile(path, os.getcwd()))
    except OSError:  # it is no folder, or the working folder was deleted
        return False
