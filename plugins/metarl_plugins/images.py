"""N-way K-shot classification of any folder of images: mini-ImageNet (arXiv 1606.04080) and its like."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from metarl.fewshot import (
    EPISODE,
    FRACTIONS,
    Count,
    EpisodeTasks,
    NWayKShot,
    Rotations,
    check_episode,
    is_ragged,
    most_ways,
    numbers,
    picture,
    split_classes,
)
from metarl.files import check_regular, expanded
from metarl.types import Batch, InputScale, Spec, Split, Units
from metarl_plugins import caching, decoding
from metarl_plugins.decoding import Reading
from metarl_plugins.listing import LAYOUT, Listing, listed

Copies = Literal["warn", "refuse", "allow"]
"""What to do about a picture that appears more than once."""


BYTES_OF_A_PIXEL, LEAST_BYTES = 16, 2**24
"""Four channels of 32 bits are the most that a pixel takes; small pictures have room for what tells of them."""


@dataclass(frozen=True)
class Images:
    """A folder of images: tell N classes apart by K images of each (84 x 84, colour).

    The folder ``root`` holds a folder for each class, or folders ``train``, ``val`` and ``test`` of such folders, or
    files ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename`` and ``label`` (mini-ImageNet's
    form; the images are beside them or in a folder ``images``). All images are decoded once, cached, and held as one
    uint8 tensor. Pillow's Lanczos filter resizes them, width and height separately. Task parameters:
    ``classes`` ``[task, way]``, numbered by the order of their names, and with rotations ``quarter_turns``
    ``[task, way]``. Nothing describes a task.
    """

    root: Path | None = None
    """Folder of the images; it must be given."""
    size: int = 84
    """Width and height of the resized images."""
    grey: bool = False
    """Grey instead of colour."""
    depth: int | None = None
    """Bits of a pixel's value, so that white is 2**depth - 1, where files do not say: 12 bits in files of 16; floats
    (1: from 0 to 1); few levels in 8 bits."""
    ground: str = "white"
    """Colour behind what is transparent, such as white, black or #808080."""
    copies: Copies = "warn"
    """What to do about a picture that appears more than once: warn, refuse or allow."""
    ways: Count = 5
    """Classes of a task, or a range, such as 5 20, from which each task draws."""
    shots: Count = 1
    """Support images of each class, or a range, such as 1 10, from which each class of each task draws."""
    queries: Count | None = 15
    """Query images of each class in meta-training (15: the MAML paper's); None: as many as shots."""
    train_shots: Count | None = None
    """Support images of each class in meta-training (Reptile's paper: 15); by default as many as shots."""
    test_queries: Count | None = None
    """Query images of each class at validation and test; by default as many as shots, as in the MAML paper's code."""
    train_ways: Count | None = None
    """Classes of a task in meta-training (prototypical networks: 20 to 30); by default as many as ways."""
    rotations: Rotations = "none"
    """In which splits images turned by 90, 180 and 270 degrees count as new classes: none, train or all."""
    drop_small: bool = False
    """Leave out classes with fewer images than support and query take; a warning says how many."""
    normalise: bool = False
    """Subtract the mean of each channel over the training classes' images, and divide by its standard deviation."""
    fractions: tuple[float, float, float] = FRACTIONS
    """Shares of the classes in train, validation and test, where the folder does not tell."""
    split_seed: int = 0
    """Decides which classes these are."""
    max_pixels: int = decoding.MOST_PIXELS
    """Pixels that a picture may have; by default 8192 x 8192. Files that tell of more are refused unread."""

    def __post_init__(self) -> None:
        self._reading.check()
        if self.copies not in get_args(Copies):
            raise ValueError(f"copies={self.copies!r}: expected one of {', '.join(get_args(Copies))}")
        check_episode(**{name: getattr(self, name) for name in EPISODE})
        split_classes(100, self.fractions)
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels}: expected at least 1")

    @property
    def spec(self) -> Spec:
        """An image in, one of the ways out."""
        ways = most_ways(self.ways, self.train_ways)
        ragged = is_ragged(**{name: getattr(self, name) for name in EPISODE})
        return Spec((decoding.CHANNELS[self._mode], self.size, self.size), ways, "classification", ragged=ragged)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> EpisodeTasks:
        """Sample tasks.

        Raises ValueError for fewer than one task, for a folder that cannot be read, and for more ways or images than a
        split's classes have.
        """
        return self._family.sample(num_tasks, split, generator)

    @property
    def input_scale(self) -> InputScale:
        """Whole numbers are divided by 255."""
        return InputScale(decoding.WHITE)

    def read(self, files: Sequence[Path]) -> Tensor:
        """Return image files as inputs ``[item, channel, size, size]``, read as the folder's own are.

        Raises ValueError for files that cannot be read.
        """
        pixels = read_images(files, self.size, self._mode, self.depth, self.ground, max_pixels=self.max_pixels)
        return numbers(pixels, decoding.WHITE)

    def units(self) -> Units:
        """Return the units of inputs: mean and standard deviation of each channel, if they are used."""
        return self._family.units() if self.normalise else Units()

    def with_units(self, units: Units) -> "Images":
        """Return the family in the units of another one, such as that of training."""
        if units == Units() and not self.normalise:
            return self
        copy = replace(self, normalise=units.inputs is not None)
        vars(copy)["_family"] = self._family.with_units(units)
        return copy

    def check_split(self, split: Split) -> None:
        """Raise ValueError for a split that has classes, but cannot fill an episode."""
        self._family.check_split(split)

    def fingerprint(self) -> str:
        """Return a digest of the pictures at their full size, and of their classes."""
        listing = listed(self._folder)
        digests = _pictures(self._folder, listing.files, self._reading, self.max_pixels).digests
        told = hashlib.sha256(repr((listing.names, listing.labels, listing.classes)).encode())
        told.update(digests.tobytes())
        return told.hexdigest()

    def picture(self, tasks: EpisodeTasks, queries: Sequence[Batch], path: Path) -> Path:
        """Draw support and query images of the first tasks of an evaluation; return the path."""
        return picture(tasks, queries, path)

    @property
    def _mode(self) -> decoding.Mode:
        return "L" if self.grey else "RGB"

    @property
    def _reading(self) -> Reading:
        return Reading(self.size, self._mode, self.depth, self.ground)

    @property
    def _folder(self) -> Path:
        if self.root is None:
            raise ValueError(f"which images? Name their folder with --tasks.root (in Python: root); {LAYOUT}")
        return expanded(self.root)

    @cached_property
    def _family(self) -> NWayKShot:
        listing, pixels = load(self._folder, *self._reading, self.copies, self.max_pixels)
        classes = listing.classes or split_classes(len(listing.names), self.fractions, self.split_seed)
        options = {name: getattr(self, name) for name in (*EPISODE, "drop_small", "normalise")}
        labels = torch.tensor(listing.labels)
        return NWayKShot(pixels, labels, classes=classes, names=listing.names, scale=decoding.WHITE, **options)


def load(
    root: Path,
    size: int,
    mode: decoding.Mode,
    depth: int | None = None,
    ground: str = "white",
    copies: Copies = "warn",
    max_pixels: int = decoding.MOST_PIXELS,
) -> tuple[Listing, Tensor]:
    """Return a folder's listing and pixels ``[item, channel, size, size]``. A process loads them once and shares them.

    Raises ValueError for an unknown layout, for files that cannot be read and, if asked, for pictures that appear more
    than once.
    """
    listing = listed(root)
    found = _pictures(root, listing.files, Reading(size, mode, depth, ground), max_pixels)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    told = _repeated(root, listing, found.digests) if copies != "allow" else None
    if told and copies == "refuse":
        raise ValueError(told)
    if told:
        warnings.warn(told, stacklevel=2)
    return listing, found.pixels


class Pictures(NamedTuple):
    """The contents of image files."""

    pixels: Tensor  # [item, channel, size, size] uint8
    digests: np.ndarray  # [item, 16] uint8, equal for files that show the same picture
    notes: tuple[str, ...]


def _pictures(root: Path, files: tuple[Path, ...], reading: Reading, max_pixels: int) -> Pictures:
    digest = caching.key(tuple(reading), caching.fingerprint(root, files))
    place = root.absolute()
    full = (place / file.relative_to(root) if file.is_relative_to(root) else file for file in files)
    return _pixels(place, tuple(full), digest, reading, max_pixels)


@lru_cache(maxsize=2)
def _pixels(root: Path, files: tuple[Path, ...], digest: str, reading: Reading, max_pixels: int) -> Pictures:
    return _kept(root.resolve().name or "images", root, files, digest, reading, max_pixels)


def _kept(name: str, root: Path, files: Sequence[Path], digest: str, reading: Reading, max_pixels: int) -> Pictures:
    """Return the pictures of files, from the cache where they are in it."""
    count = len(files)
    shapes = {"images": (count, decoding.CHANNELS[reading.mode], reading.size, reading.size), "digests": (count, 16)}
    arrays = caching.cached(name, digest, lambda: _decoded(root, files, reading, max_pixels), shapes)
    return Pictures(torch.from_numpy(arrays["images"]), arrays["digests"], tuple(arrays["notes"].tolist()))


def _decoded(root: Path, files: Sequence[Path], reading: Reading, max_pixels: int) -> caching.Arrays:
    names = [_called(file, root) for file in files]
    places = dict(zip(names, files, strict=True))
    found = decoding.decoded(names, lambda name: _contents(places[name], max_pixels), reading, max_pixels)
    return {"images": found.pixels, "digests": found.digests, "notes": np.array(found.notes, dtype=np.str_)}


def _contents(file: Path, max_pixels: int) -> bytes:
    """Return a file's bytes. Raises ValueError for one that is no file, or has more than any such picture takes."""
    check_regular(file)
    most = max(BYTES_OF_A_PIXEL * max_pixels, LEAST_BYTES)
    if file.stat().st_size > most:
        raise ValueError(f"more than {most} bytes; max_pixels allows more")
    return file.read_bytes()


def read_images(
    files: Sequence[Path | str],
    size: int = 84,
    mode: decoding.Mode = "RGB",
    depth: int | None = None,
    ground: str = "white",
    cache: str | None = None,
    max_pixels: int = decoding.MOST_PIXELS,
) -> Tensor:
    """Return image files as ``[item, channel, size, size]`` uint8, read as ``Images`` reads them.

    For your own families. With ``cache``, a name for the data set, the files are decoded once, and later processes
    read them from the cache.

    Raises:
        ValueError: an option is wrong, there are no files, or some cannot be read.
    """
    reading = Reading(size, mode, depth, ground)
    reading.check()
    if not files:
        raise ValueError("which images? The list of files is empty")
    full = [Path(os.path.abspath(expanded(file))) for file in files]
    if absent := [file for file in full if not file.is_file()]:
        raise ValueError(f"there is no file {absent[0]}; {len(absent)} of {len(full)} are missing")
    root = Path(os.path.commonpath([file.parent for file in full]))
    if cache is None:
        arrays = _decoded(root, full, reading, max_pixels)
        found = Pictures(torch.from_numpy(arrays["images"]), arrays["digests"], tuple(arrays["notes"].tolist()))
    else:
        found = _kept(
            cache, root, full, caching.key(tuple(reading), caching.fingerprint(root, full)), reading, max_pixels
        )
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    return found.pixels


def _called(file: Path, root: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def _repeated(root: Path, listing: Listing, digests: np.ndarray) -> str | None:
    """Return a warning for pictures that appear in several files, the most harmful kind first; None without any."""
    of_label = {label: split for split, labels in (listing.classes or {}).items() for label in labels}
    first: dict[bytes, int] = {}
    found: dict[str, list[tuple[int, int]]] = {"in two splits": [], "in two classes": [], "twice in a class": []}
    for item, digest in enumerate(map(bytes, digests)):
        other = first.setdefault(digest, item)
        if other != item:
            one, two = listing.labels[other], listing.labels[item]
            apart = "in two classes" if of_label.get(one) == of_label.get(two) else "in two splits"
            found["twice in a class" if one == two else apart].append((other, item))
    if not any(found.values()):
        return None
    counts = ", ".join(f"{len(pairs)} {where}" for where, pairs in found.items() if pairs)
    pair = next(pairs for pairs in found.values() if pairs)[0]
    names = " and ".join(_called(listing.files[item], root) for item in pair)
    total = sum(map(len, found.values()))
    return f"{total} files show the same picture as another one ({counts}), such as {names}: scores may be too good"
