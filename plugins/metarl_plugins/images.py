"""N-way K-shot classification of any folder of images: mini-ImageNet (arXiv 1606.04080) and its like."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metarl.fewshot import (
    EPISODE,
    FRACTIONS,
    SPLITS,
    EpisodeTasks,
    NWayKShot,
    Rotations,
    check_counts,
    check_episode,
    most_ways,
    picture,
    split_classes,
)
from metarl.files import expanded
from metarl.types import Batch, Spec, Split
from metarl_plugins import caching, decoding

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""What image files end in; other files are passed over."""
FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
"""What the folder, and the .csv file, of a split may be called."""
LAYOUT = (
    "expected a folder for each class; or folders train, val and test of such folders; or files train.csv, val.csv and "
    "test.csv with the columns filename and label beside the images, or beside a folder images"
)


class Listing(NamedTuple):
    """Which image files there are, and of what."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    """Of each file: a position in names."""
    names: tuple[str, ...]
    """Of the classes, in order."""
    classes: dict[Split, tuple[int, ...]] | None
    """The labels of each split, where the folder tells them."""


@dataclass(frozen=True)
class Images:
    """A folder of images: tell N classes apart by K images of each (84 x 84, colour).

    The folder ``root`` holds a folder for each class; or folders ``train``, ``val`` and ``test`` of such folders; or
    files ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename`` and ``label`` beside the images or
    beside a folder ``images`` of them, as mini-ImageNet is published. All are decoded once, cached, and held as one
    tensor of uint8. Task parameters: ``classes`` ``[task, way]``, numbered by the order of their names, and with
    rotations ``quarter_turns`` ``[task, way]``. Nothing describes a task.
    """

    root: str | None = None
    """Folder of the images; it must be given."""
    size: int = 84
    """Width and height that images are brought to."""
    grey: bool = False
    """Grey instead of colour."""
    ways: int = 5
    """Classes of a task."""
    shots: int = 1
    """Support images of each class."""
    queries: int | None = 15
    """Query images of each class in meta-training (15: the MAML paper's); None: as many as shots."""
    train_shots: int | None = None
    """Support images of each class in meta-training (Reptile's paper: 15); by default as many as shots."""
    test_queries: int | None = None
    """Query images of each class at validation and test; by default as many as shots, as in the MAML paper's code."""
    train_ways: int | None = None
    """Classes of a task in meta-training (prototypical networks: 20 to 30); by default as many as ways."""
    rotations: Rotations = "none"
    """In which splits images turned by 90, 180 and 270 degrees count as new classes: none, train or all."""
    fractions: tuple[float, float, float] = FRACTIONS
    """Shares of the classes in train, validation and test, where the folder does not tell."""
    split_seed: int = 0
    """Decides which classes these are."""

    def __post_init__(self) -> None:
        check_counts(size=self.size)
        check_episode(**{name: getattr(self, name) for name in EPISODE})
        split_classes(100, self.fractions)

    @property
    def spec(self) -> Spec:
        """An image in, one of the ways out."""
        ways = most_ways(self.ways, self.train_ways)
        return Spec((decoding.CHANNELS[self._mode], self.size, self.size), ways, "classification")

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> EpisodeTasks:
        """Sample tasks.

        Raises ValueError for fewer than one task, for a folder that cannot be read, and for more ways or images than a
        split's classes have.
        """
        return self._family.sample(num_tasks, split, generator)

    def picture(self, tasks: EpisodeTasks, queries: Sequence[Batch], path: Path) -> Path:
        """Draw support and query images of the first tasks of an evaluation; return the path."""
        return picture(tasks, queries, path)

    @property
    def _mode(self) -> decoding.Mode:
        return "L" if self.grey else "RGB"

    @cached_property
    def _family(self) -> NWayKShot:
        if self.root is None:
            raise ValueError(f"which images? Name their folder with --tasks.root (in Python: root); {LAYOUT}")
        listing, pixels = load(expanded(self.root), self.size, self._mode)
        classes = listing.classes or split_classes(len(listing.names), self.fractions, self.split_seed)
        options = {name: getattr(self, name) for name in EPISODE}
        return NWayKShot(pixels, torch.tensor(listing.labels), classes=classes, names=listing.names, **options)


def load(root: Path, size: int, mode: decoding.Mode) -> tuple[Listing, Tensor]:
    """Return a folder's listing and pixels ``[item, channel, size, size]``; all who ask in one process share them.

    Raises ValueError for an unknown layout, and for files that cannot be read.
    """
    listing = listed(root)
    digest = caching.key(size, mode, caching.fingerprint(root, listing.files))
    return listing, _pixels(
        root.absolute(), tuple(file.relative_to(root) for file in listing.files), digest, size, mode
    )


@lru_cache(maxsize=2)
def _pixels(root: Path, files: tuple[Path, ...], digest: str, size: int, mode: decoding.Mode) -> Tensor:
    def make() -> caching.Arrays:
        names = [file.as_posix() for file in files]
        return {"images": decoding.decode(names, lambda name: (root / name).read_bytes(), size, mode)}

    return torch.from_numpy(caching.cached(root.resolve().name or "images", digest, make)["images"])


def listed(root: Path) -> Listing:
    """Return what a folder holds. Raises ValueError for an unknown layout, and for splits that share a class."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; {LAYOUT}")
    tables = {split: found for split in SPLITS if (found := _named(root, split, ".csv"))}
    folders = {split: found for split in SPLITS if (found := _named(root, split, ""))}
    if tables:
        return _joined({split: _tabulated(root, table) for split, table in tables.items()})
    if "train" in folders:
        return _joined({split: _in_folders(folder) for split, folder in folders.items()})
    return _joined({"train": _in_folders(root)})._replace(classes=None)


def _named(root: Path, split: Split, suffix: str) -> Path | None:
    found = (root / f"{name}{suffix}" for name in FOLDERS[split])
    return next((path for path in found if path.exists()), None)


Files = Mapping[Path, str]
"""Files, and the names of their classes."""


def _joined(splits: Mapping[Split, Files]) -> Listing:
    """Number the classes of all splits. Raises ValueError where two splits share one."""
    of_splits = {split: set(files.values()) for split, files in splits.items()}
    for what, found in (("classes", of_splits.values()), ("files", splits.values())):
        twice = sorted(str(one) for one, count in Counter(chain(*found)).items() if count > 1)
        if twice:
            raise ValueError(f"the splits share {len(twice)} {what}, such as {twice[0]}: each belongs to one split")
    names = tuple(sorted(set().union(*of_splits.values())))
    numbers = {name: number for number, name in enumerate(names)}
    files = {path: numbers[name] for found in splits.values() for path, name in found.items()}
    classes = {split: tuple(sorted(numbers[name] for name in found)) for split, found in of_splits.items()}
    return Listing(tuple(files), tuple(files.values()), names, classes)


def _in_folders(root: Path) -> Files:
    """Return the images below each folder, a class of its own."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {folder.name: _images(folder) for folder in folders}
    empty = [name for name, files in found.items() if not files]
    if empty or not found:
        told = f"the folders {', '.join(empty[:5])} in it hold" if empty else "it holds"
        raise ValueError(f"{root} is no folder of classes: {told} no images; {LAYOUT}")
    return {file: name for name, files in found.items() for file in files}


def _images(folder: Path) -> list[Path]:
    hidden = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(hidden)


def _tabulated(root: Path, table: Path) -> Files:
    """Return the images that a .csv file names, in root or in its folder ``images``."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"filename", "label"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{table} has the columns {rows.fieldnames}: expected filename and label")
        named = {row["filename"]: row["label"] for row in rows}
    folder = root / "images" if (root / "images").is_dir() else root
    absent = [name for name in named if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{table} names {absent[0]}, which {folder} lacks; {len(absent)} of {len(named)} are missing")
    return {folder / name: label for name, label in named.items()}
