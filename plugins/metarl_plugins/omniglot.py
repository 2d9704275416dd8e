"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people (Lake et al., 2015, Science 350)."""

import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from metarl.fewshot import (
    EPISODE,
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
from metarl.files import expanded
from metarl.types import Batch, InputScale, Spec, Split
from metarl_plugins import caching, decoding, one_shot, trees
from metarl_plugins.alphabets import Alphabets
from metarl_plugins.images import read_images

CharacterSplit = Literal["random", "vinyals", "background"]
TestEpisodes = Literal["sampled", "alphabet", "lake"]
LARGEST = 2**24
"""Bytes of a drawing; they have some hundred."""
SIZE = 28
"""Width and height that the field uses; the files have 105."""
CHARACTERS = {"images_background": 964, "images_evaluation": 659}
"""Number of characters in each part of the data set."""
DRAWINGS = 20
"""Drawings of each character."""
RANDOM_SIZES = (1100, 100, 423)
"""Characters in train, validation and test: the MAML paper's 1200 and 423, where validation takes 100 of the 1200."""
VINYALS_VALIDATION = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST = (
    "Gurmukhi/character42", "Gurmukhi/character43", "Gurmukhi/character44", "Gurmukhi/character45", "Kannada", "Keble",
    "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti", "Syriac_(Serto)",
    "Tengwar", "Tibetan", "ULOG",
)  # fmt: skip
"""Alphabets, and four single characters, in the test list of Vinyals et al. (2016, https://arxiv.org/abs/1606.04080),
as https://github.com/jakesnell/prototypical-networks has it. The splits have 1028, 172 and 423 characters."""
LAYOUT = (
    "expected images_background.zip and images_evaluation.zip of https://github.com/brendenlake/omniglot (its folder "
    "python), or what they hold: images_background/ALPHABET/characterNN/*.png, images_evaluation/..."
)


class Drawings(NamedTuple):
    """The data set, in the order of the characters' names."""

    images: Tensor  # [item, 1, 28, 28] uint8, ink 255, paper 0
    labels: Tensor  # [item] which character
    characters: tuple[str, ...]  # "ALPHABET/characterNN"
    evaluation: tuple[bool, ...]  # which characters are from images_evaluation


@dataclass(frozen=True)
class Omniglot:
    """Omniglot: tell N handwritten characters apart by K drawings of each (28 x 28, ink 1, paper 0).

    Task parameters: ``classes`` ``[task, way]``, characters numbered by the order of their names, with rotations
    ``quarter_turns`` ``[task, way]``, and with alphabets ``alphabet`` ``[task]``. Nothing describes a task.
    """

    root: Path | None = None
    """Folder of the data set, with images_background and images_evaluation, as .zip or extracted; by default the folder
    omniglot in the one that the environment variable METARL_DATA names."""
    ways: Count = 5
    """Characters of a task."""
    shots: Count = 1
    """Support drawings of each character."""
    queries: Count | None = None
    """Query drawings of each character in meta-training; by default as many as shots, as in the MAML paper's code."""
    train_shots: Count | None = None
    """Support drawings of each character in meta-training (Reptile's paper: 10); by default as many as shots."""
    test_queries: Count | None = None
    """Query drawings of each character at validation and test; by default as many as shots, as in the MAML paper's
    code."""
    train_ways: Count | None = None
    """Characters of a task in meta-training (prototypical networks: 60); by default as many as ways."""
    rotations: Rotations = "train"
    """In which splits characters turned by 90, 180 and 270 degrees count as new ones: none, train (Reptile's code) or
    all (the MAML paper's code, Vinyals' lists)."""
    split: CharacterSplit = "random"
    """random: 1100 characters for training, 100 for validation, 423 for test, by split_seed; vinyals: the published
    1028, 172 and 423, by alphabets; background: Lake's own, images_evaluation (659) for test, and of images_background
    the published validation's alphabets (172) for validation and the others (792) for training."""
    split_seed: int = 0
    """Decides the random split, and what is chosen of alphabets."""
    alphabets: bool = False
    """An alphabet is a task, in all splits, as in Leap's paper (20 ways, 15 shots, 5 queries): always the same of its
    characters, numbered alike, with the drawings of the same people held out. Smaller alphabets are left out; with 20
    ways, 21 remain for training, 5 for validation and 20 for test. Needs split background."""
    test_episodes: TestEpisodes = "sampled"
    """Episodes at test. sampled: any characters, drawn by anybody. lake: the 20 published one-shot runs of Lake et al.,
    20 characters of one alphabet, drawn once by one person and to be told apart in the drawings of another; from
    all_runs.zip in the data's folder. alphabet: any number of episodes by the same protocol, which are not the
    published ones. Both need split background, 20 ways and 1 shot."""

    def __post_init__(self) -> None:
        check_episode(**{name: getattr(self, name) for name in EPISODE})
        if self.split not in get_args(CharacterSplit):
            raise ValueError(f"split={self.split!r}: expected one of {', '.join(get_args(CharacterSplit))}")
        if self.test_episodes not in get_args(TestEpisodes):
            raise ValueError(
                f"test_episodes={self.test_episodes!r}: expected one of {', '.join(get_args(TestEpisodes))}"
            )
        if self.alphabets:
            self._check_alphabets()
        if self.test_episodes != "sampled":
            self._check_one_shot()

    def _check_alphabets(self) -> None:
        if self.split != "background":
            raise ValueError(
                f"alphabets with split={self.split!r}: some of them would be in two splits; use background"
            )
        if is_ragged(**{name: getattr(self, name) for name in EPISODE}):
            raise ValueError("alphabets with a range of ways, shots or queries: a task is always the same; use numbers")

    def _check_one_shot(self) -> None:
        asked = f"test_episodes={self.test_episodes!r}"
        if self.split != "background":
            raise ValueError(f"{asked} with split={self.split!r}: its alphabets would be trained on; use background")
        if (self.ways, self.shots, self.test_queries or 1) != (one_shot.WAYS, 1, 1):
            told = f"ways={self.ways}, shots={self.shots}, test_queries={self.test_queries}"
            raise ValueError(f"{asked} with {told}: expected 20 ways, 1 shot and 1 query of each")
        if self.rotations == "all":
            raise ValueError(f"{asked} with rotations='all': nobody turned those drawings; use none or train")

    @property
    def spec(self) -> Spec:
        """A drawing in, one of the ways out."""
        ragged = is_ragged(**{name: getattr(self, name) for name in EPISODE})
        return Spec((1, SIZE, SIZE), most_ways(self.ways, self.train_ways), "classification", ragged=ragged)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> EpisodeTasks:
        """Sample tasks.

        Raises ValueError for fewer than one task, for a data set that is missing or incomplete, and for more ways or
        drawings than it has; also for more than 20 of Lake's runs, and if those are missing, and for more alphabets
        than validation and test have.
        """
        if split == "test" and self.test_episodes != "sampled":
            return self._one_shot(num_tasks, generator)
        if self.alphabets:
            return self._alphabets.sample(num_tasks, split, generator)
        return self._family.sample(num_tasks, split, generator)

    @property
    def input_scale(self) -> InputScale:
        """Whole numbers are divided by 255: ink is 255, paper 0."""
        return InputScale(decoding.WHITE)

    def read(self, files: Sequence[Path]) -> Tensor:
        """Return files of dark ink on light paper as inputs ``[item, 1, 28, 28]``: ink 1, paper 0.

        Raises ValueError for files that cannot be read.
        """
        return 1 - numbers(read_images(files, SIZE, "L"), decoding.WHITE)

    def check_split(self, split: Split) -> None:
        """Raise ValueError for a split that has classes, but cannot fill an episode."""
        if split == "test" and self.test_episodes != "sampled":
            self._one_shot(1, Generator())
        elif self.alphabets:
            self._alphabets.check_split(split)
        else:
            self._family.check_split(split)

    def _one_shot(self, num_tasks: int, generator: Generator) -> EpisodeTasks:
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        if self.test_episodes == "lake":
            return one_shot.published(located(self.root), SIZE, num_tasks)
        drawings = load(located(self.root))
        chosen = background_split(drawings)["test"]
        return one_shot.dealt(drawings.images, drawings.characters, chosen, DRAWINGS, num_tasks, generator)

    def fingerprint(self) -> str:
        """Return a digest of the drawings and their characters."""
        return self._family.fingerprint()

    def picture(self, tasks: EpisodeTasks, queries: Sequence[Batch], path: Path) -> Path:
        """Draw support and query drawings of the first tasks of an evaluation; return the path."""
        return picture(tasks, queries, path)

    @cached_property
    def _alphabets(self) -> Alphabets:
        return Alphabets(self._family, DRAWINGS, self.split_seed)

    @cached_property
    def _family(self) -> NWayKShot:
        drawings = load(located(self.root))
        count = len(drawings.characters)
        if self.split == "random":
            classes = split_classes(count, RANDOM_SIZES, self.split_seed)
        elif self.split == "vinyals":
            classes = vinyals_split(drawings.characters)
        else:
            classes = background_split(drawings)
        options: dict[str, Any] = {name: getattr(self, name) for name in EPISODE}
        options |= {"classes": classes, "names": drawings.characters, "scale": decoding.WHITE}
        return NWayKShot(drawings.images, drawings.labels, **options)


def vinyals_split(characters: Sequence[str]) -> dict[Split, tuple[int, ...]]:
    """Return the indices into ``characters`` of each split of Vinyals et al."""
    alphabets = [{character, character.partition("/")[0]} for character in characters]
    validation = tuple(index for index, names in enumerate(alphabets) if names & set(VINYALS_VALIDATION))
    test = tuple(index for index, names in enumerate(alphabets) if names & set(VINYALS_TEST))
    train = tuple(sorted(set(range(len(characters))) - {*validation, *test}))
    return {"train": train, "validation": validation, "test": test}


def background_split(drawings: Drawings) -> dict[Split, tuple[int, ...]]:
    """Return the characters of each split of Lake et al.; validation takes some alphabets of images_background."""
    parts: dict[Split, list[int]] = {"train": [], "validation": [], "test": []}
    for index, (character, evaluated) in enumerate(zip(drawings.characters, drawings.evaluation, strict=True)):
        held_out = character.partition("/")[0] in VINYALS_VALIDATION
        parts["test" if evaluated else "validation" if held_out else "train"].append(index)
    return {split: tuple(members) for split, members in parts.items()}


def located(root: Path | str | None) -> Path:
    """Return the folder of the data set. Raises ValueError if none is given, or if it does not hold Omniglot."""
    data = os.environ.get("METARL_DATA")
    if root is None and not data:
        raise ValueError(
            "where is Omniglot? Name its folder with --tasks.root (in Python: root), or set the environment variable "
            f"METARL_DATA to the folder that contains omniglot/; {LAYOUT}"
        )
    told = expanded(data or ".") / "omniglot" if root is None else expanded(root)
    for folder in (told, told / "python"):  # the latter in a clone of its repository
        if all(_part(folder, part) for part in CHARACTERS):
            return folder
    raise ValueError(f"{told} does not hold Omniglot; {LAYOUT}")


def _part(folder: Path, part: str) -> Path | None:
    """Return the archive or folder of a part of the data set; None if there is neither."""
    archive, extracted = folder / f"{part}.zip", folder / part
    if (extracted / part).is_dir():  # extracted into a folder of its name
        extracted = extracted / part
    return archive if archive.is_file() else extracted if extracted.is_dir() else None


def load(folder: Path) -> Drawings:
    """Return the data set, decoded once and cached. A process loads it once and shares it.

    Raises ValueError if files are missing or cannot be read.
    """
    parts = {part: found.absolute() for part in CHARACTERS if (found := _part(folder, part))}
    return _drawings(tuple(parts.items()), caching.key(SIZE, "parts", *(_digest(found) for found in parts.values())))


@lru_cache(maxsize=2)
def _drawings(parts: tuple[tuple[str, Path], ...], digest: str) -> Drawings:
    count = sum(CHARACTERS.values())
    shapes = {"images": (count * DRAWINGS, 1, SIZE, SIZE), "characters": (count,), "evaluation": (count,)}
    arrays = caching.cached("omniglot", digest, lambda: _decoded(dict(parts)), shapes)
    characters = tuple(arrays["characters"].tolist())
    labels = torch.arange(len(characters)).repeat_interleave(DRAWINGS)
    return Drawings(torch.from_numpy(arrays["images"]), labels, characters, tuple(arrays["evaluation"].tolist()))


def _digest(part: Path) -> str:
    if part.is_dir():
        return caching.fingerprint(part, sorted(_drawn(part)))
    with part.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _decoded(parts: Mapping[str, Path]) -> caching.Arrays:
    with ExitStack() as stack:
        readers: dict[str, Callable[[], bytes]] = {}
        for part, found in parts.items():
            drawings = _archived(stack, found) if found.suffix == ".zip" else _extracted(found)
            readers |= _complete(part, found, drawings)
        names = sorted(readers, key=lambda name: name.split("/")[1:])
        images = 255 - decoding.decode(names, lambda name: readers[name](), SIZE, "L")
    parts_of = {"/".join(name.split("/")[1:3]): name.split("/")[0] for name in names}
    evaluation = [parts_of[character] == "images_evaluation" for character in sorted(parts_of)]
    return {"images": images, "characters": np.array(sorted(parts_of)), "evaluation": np.array(evaluation)}


def _archived(stack: ExitStack, path: Path) -> dict[str, Callable[[], bytes]]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no zip archive, or was cut short: {error}; fetch it again") from error
    return {name: partial(_unpacked, archive, name) for name in archive.namelist()}


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > LARGEST:
        raise ValueError(f"{size} bytes unpacked, which no drawing has")
    return archive.read(name)


def _extracted(folder: Path) -> dict[str, Callable[[], bytes]]:
    return {path.relative_to(folder.parent).as_posix(): path.read_bytes for path in _drawn(folder)}


def _drawn(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() == ".png"]


def _complete(part: str, found: Path, readers: dict[str, Callable[[], bytes]]) -> dict[str, Callable[[], bytes]]:
    """Return the drawings among a part's files. Raises ValueError if some are missing."""
    drawings = {
        name: read
        for name, read in readers.items()
        if re.fullmatch(rf"{part}/[^/]+/[^/]+/[^/]+\.png", name, re.IGNORECASE)
        and not any(map(trees.left_out, name.split("/")))
    }
    counts = Counter(name.rpartition("/")[0] for name in drawings)
    few = sorted(character for character, count in counts.items() if count != DRAWINGS)
    if len(counts) != CHARACTERS[part] or few:
        told = f"; {few[0]} has {counts[few[0]]}" if few else ""
        raise ValueError(
            f"{found} holds {len(counts)} characters{told}: expected {CHARACTERS[part]} of {DRAWINGS} drawings each"
        )
    return drawings
