"""Find the image files in a folder, with their classes and splits, from its subfolders or from lists of files."""

import warnings
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from metarl.fewshot import SPLITS
from metarl.types import Split
from metarl_plugins import tables, trees
from metarl_plugins.tables import class_name

FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
"""Preferred names of the lists of each split, without suffix."""
LAYOUT = (
    "expected a folder for each class; or folders train, val and test of such folders; or files train.csv, val.csv and "
    "test.csv with the columns filename and label beside the images, or beside a folder images"
)
LISTS = ("", "split", "splits")
"""Folders in root that may hold the lists of the splits."""


class Listing(NamedTuple):
    """Image files with their classes and splits."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    """For each file, the index of its class in ``names``."""
    names: tuple[str, ...]
    """Names of the classes, in order."""
    classes: dict[Split, tuple[int, ...]] | None
    """The labels of each split; None if the folder does not say."""


Files = Mapping[Path, str]
"""Files with the names of their classes."""


def listed(root: Path) -> Listing:
    """List the images of a folder, and warn about files that were skipped.

    Raises ValueError for an unknown layout, for lists that are wrong, and for splits that share a class.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; {LAYOUT}")
    holder = _holder(root)
    lists = _lists(holder, ".csv")
    if lists:
        return _joined({split: tables.read(holder, table) for split, table in lists.items()})
    passed = trees.Passed()
    whole = trees.look(root, passed)
    place = trees.unwrapped(whole)
    splits = trees.splits(whole) or trees.splits(place)
    if not splits and (lists := _lists(holder, ".txt")):
        return _joined({split: tables.read(holder, table) for split, table in lists.items()})
    found = _of_splits(splits, passed) if splits else _joined({"train": _in_folders(place, passed)})
    passed.tell(root)
    return found if splits else found._replace(classes=None)


def _holder(root: Path) -> Path:
    """Return the folder with the lists of the splits: root, or the only folder in it."""
    if any(_lists(root, suffix) for suffix in (".csv", ".txt")):
        return root
    inner = [path for path in root.iterdir() if path.is_dir() and not trees.left_out(path.name)]
    return _holder(inner[0]) if len(inner) == 1 else root


def _lists(root: Path, suffix: str) -> dict[Split, Path]:
    """Return the lists of the splits, if any. Raises ValueError if a split has two lists."""
    for folder in (root / name for name in LISTS):
        named = [(path, trees.split_named(path.stem)) for path in sorted(folder.glob("*")) if _is(path, suffix)]
        found: dict[Split, Path] = {}
        for split in SPLITS:
            paths = [path for path, name in named if name == split]
            first = [path for path in paths if path.stem in FOLDERS[split]] or paths
            if len(first) > 1:
                raise ValueError(f"{first[0]} and {first[1]} are both lists of the {split} split: keep one")
            if first:
                found[split] = first[0]
        if found:
            return found
    return {}


def _is(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and path.is_file() and not trees.left_out(path.name)


def _of_splits(splits: Mapping[Split, trees.Folder], passed: trees.Passed) -> Listing:
    for folder in splits.values():
        bearing = folder.bearing()
        if len(bearing) == 1 and bearing[0].path.name.casefold() in trees.CONTAINERS:
            raise trees.unclear(folder, "images without folders for their classes")
    return _joined({split: _in_folders(folder, passed) for split, folder in splits.items()})


def _in_folders(root: trees.Folder, passed: trees.Passed) -> Files:
    """Return the images below each folder; every folder is a class."""
    empty = [folder.path.name for folder in root.folders if not folder.everything()]
    if empty or not root.folders:
        told = f"the folders {', '.join(empty[:5])} in it hold" if empty else "it holds"
        passed.tell(root.path)
        raise ValueError(f"{root.path} is no folder of classes: {told} no images; {LAYOUT}")
    passed.files += root.images
    return {file: class_name(name) for file, name in trees.classes(root)}


def _joined(splits: Mapping[Split, Files]) -> Listing:
    """Number the classes of all splits. Raises ValueError if two splits share a class or a file."""
    of_splits = {split: set(files.values()) for split, files in splits.items()}
    for what, found in (("classes", of_splits.values()), ("files", splits.values())):
        twice = sorted(str(one) for one, count in Counter(chain(*found)).items() if count > 1)
        if twice:
            raise ValueError(f"the splits share {len(twice)} {what}, such as {twice[0]}: each belongs to one split")
    names = tuple(sorted(set().union(*of_splits.values())))
    _warn_of_case(names)
    numbers = {name: number for number, name in enumerate(names)}
    files = {path: numbers[name] for found in splits.values() for path, name in found.items()}
    classes = {split: tuple(sorted(numbers[name] for name in found)) for split, found in of_splits.items()}
    return Listing(tuple(files), tuple(files.values()), names, classes)


def _warn_of_case(names: tuple[str, ...]) -> None:
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    pairs = [found for found in alike.values() if len(found) > 1]
    if pairs:
        told = f"{len(pairs)} classes have names that differ only in capital letters or blanks"
        warnings.warn(f"{told}, such as {pairs[0][0]!r} and {pairs[0][1]!r}: are they the same?", stacklevel=2)
