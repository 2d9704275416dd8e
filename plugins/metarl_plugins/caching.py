"""A cache on disk, in the user's cache folder, for arrays that are slow to make."""

import hashlib
import os
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
FORMAT = 2
"""Part of every key. Raise it when the cached form, or the way files are read, changes."""
READ_WHOLE = (2000, 2**26)
"""Most files, and most bytes in all, that are read in full for a fingerprint. Beyond, only some beginnings are."""
BEGINNING = 2**12


def folder() -> Path:
    """Return the cache folder: METARL_CACHE, else ``metarl`` in XDG_CACHE_HOME, else ``~/.cache/metarl``.

    Raises OSError where there is no home folder, as in a container that runs as an unknown user.
    """
    told, home = os.environ.get("METARL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(told).expanduser() if told else Path(home or "~/.cache").expanduser() / "metarl"
    except RuntimeError as error:
        raise OSError(f"there is no home folder to cache in ({error})") from error


def key(*parts: object) -> str:
    """Return a short digest of everything that the arrays depend on."""
    return hashlib.blake2b(repr((FORMAT, *parts)).encode(), digest_size=16).hexdigest()


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Return a digest of files: their names relative to root, sizes, modification times and contents.

    If the files are many or large, only some beginnings are read. Then the location of root counts too, so that two
    folders with the same file names are never confused.
    """
    found = [(file, file.stat()) for file in files]
    told = [(_relative(file, root), stat.st_size, stat.st_mtime_ns) for file, stat in found]
    most, bytes_ = READ_WHOLE
    if len(found) <= most and sum(size for _, size, _ in told) <= bytes_:
        return key(told, _contents(file for file, _ in found))
    some = [file for file, _ in found[:: -(-len(found) // most)]]
    return key(told, str(root.resolve()), root.stat().st_ino, _contents(some, BEGINNING))


def _relative(file: Path, root: Path) -> str:
    return Path(os.path.relpath(file, root)).as_posix()


def _contents(files: Iterable[Path], most: int = -1) -> str:
    told = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as opened:
            told.update(hashlib.blake2b(opened.read(most)).digest())
    return told.hexdigest()


def cached(
    name: str, digest: str, make: Callable[[], Arrays], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Arrays:
    """Return the arrays cached under a name and a digest; if there are none, make and cache them.

    A file that is damaged, or whose arrays do not have ``shapes``, is made anew with a warning. If the cache cannot be
    written, a warning says so and the arrays are returned.
    """
    try:
        path = folder() / f"{name}-{digest}.npz"
    except OSError as error:
        warnings.warn(f"nothing is cached: {error}; METARL_CACHE may name a folder", stacklevel=2)
        return make()
    try:
        return _checked(_read(path), shapes or {})
    except (FileNotFoundError, NotADirectoryError):
        pass
    # What damaged files raise: no zip file or a wrong checksum, no array, an early end.
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


def _checked(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, not {shape}")
    return arrays


def _read(path: Path) -> Arrays:
    # Reading to the end of each member compares it with its checksum. NumPy leaves damaged files open that it opened.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _write(path: Path, arrays: Arrays) -> None:
    """Write to a temporary file with a unique name, as several processes may write, then rename it."""
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
