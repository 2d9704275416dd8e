"""Imports that do not look into the working folder."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


def optional(package: str, needs: str, extra: str) -> Any:
    """Return a package that only some use, from where packages are installed.

    ``needs`` says who needs what. Raises ValueError, with how to install it, if it is not there.
    """
    try:
        with without_working_folder():
            return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f'{needs}: pip install "metarl-toolkit[{extra}]"') from error


def _is_here(path: object) -> bool:
    try:
        return isinstance(path, str) and (not path or os.path.samefile(path, os.getcwd()))
    except OSError:  # it is no folder, or the working folder was deleted
        return False
