"""Arrays that took long to make, kept in a folder of the user's between processes."""

import hashlib
import os
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from metarl.files import expanded

Arrays = dict[str, np.ndarray]
FORMAT = 1
"""Part of every key: raised when what is cached changes its form."""


def folder() -> Path:
    """Return the cache folder: METARL_CACHE, else ``metarl`` in XDG_CACHE_HOME, else ``~/.cache/metarl``."""
    if os.environ.get("METARL_CACHE"):
        return expanded(os.environ["METARL_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "metarl"


def key(*parts: object) -> str:
    """Return a short digest of whatever the arrays depend on."""
    return hashlib.blake2b(repr((FORMAT, *parts)).encode(), digest_size=16).hexdigest()


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Return a digest of files' names below root, sizes and times of change: quicker than one of what they hold."""
    found = ((file, file.stat()) for file in files)
    return key([(file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns) for file, stat in found])


def cached(name: str, digest: str, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays cached under a name and a digest; where there are none, make and cache them.

    A damaged file is made anew, and where nothing can be written the arrays are returned all the same, both with a
    warning.
    """
    path = folder() / f"{name}-{digest}.npz"
    try:
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    # What damaged bytes may raise: no zip file or a wrong checksum; no array; an end too early.
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        warnings.warn(f"the cached {path} cannot be read and is made anew: {error}", stacklevel=2)
    arrays = make()
    try:
        _write(path, arrays)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written ({error}): the next process starts over; METARL_CACHE may name another folder",
            stacklevel=2,
        )
    return arrays


def _read(path: Path) -> Arrays:
    # Reading to the end of each member compares it with its checksum. NumPy leaves damaged files open that it opened.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _write(path: Path, arrays: Arrays) -> None:
    """Write to a neighbour of a name of its own, as several processes may write, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
