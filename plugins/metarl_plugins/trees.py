"""Trees of image folders: which folders are classes, which are splits, and which files to skip."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from PIL import Image

from metarl.fewshot import SPLITS
from metarl.types import Split

LEFT_OUT = {
    "__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
"""Files and folders that operating systems and tools leave behind. Names that begin with a dot are skipped too."""
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow registers but cannot read on its own."""
UNREAD = {".heic", ".heif", ".hif", ".jxl"}
"""Suffixes of photographs that Pillow cannot read. Skipping them silently would lose the pictures of many phones."""
DOCUMENTS = {
    ".cfg", ".csv", ".db", ".doc", ".docx", ".htm", ".html", ".ini", ".ipynb", ".json", ".log", ".m", ".md", ".pdf",
    ".py", ".rst", ".rtf", ".sh", ".toml", ".tsv", ".txt", ".url", ".xls", ".xlsx", ".xml", ".yaml", ".yml",
}  # fmt: skip
"""Suffixes of files that are obviously not pictures; they are skipped without a warning."""
WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "base": "train", "background": "train",
    "val": "validation", "valid": "validation", "validate": "validation", "validation": "validation",
    "dev": "validation",
    "test": "test", "testing": "test", "novel": "test", "evaluation": "test", "eval": "test",
}  # fmt: skip
"""Names of splits in the few-shot literature."""
FILLERS = {
    "classes", "data", "dataset", "files", "images", "image", "img", "imgs", "imagenet", "label", "labels", "list",
    "meta", "mini", "miniimagenet", "set", "split", "tiered", "tieredimagenet",
}  # fmt: skip
"""Words that may accompany them."""
CONTAINERS = {"data", "image", "images", "img", "imgs", "jpegimages", "pictures"}
"""Names of folders that hold all images rather than those of one class."""
SHOWN = 4
"""Number of folders that a drawing of a tree names at each level."""
FEW = 3
"""Up to this many folders with the same subfolders are taken for splits rather than classes."""


def suffixes() -> set[str]:
    """Return the suffixes of image files that Pillow can read here."""
    Image.init()
    known = Image.registered_extensions().items()
    return {suffix for suffix, name in known if name in Image.OPEN and name not in NO_PICTURES}


def left_out(name: str) -> bool:
    """Whether a file or folder is hidden or left by the operating system, and so not part of a data set."""
    return name.startswith(".") or name.casefold() in LEFT_OUT


def split_named(name: str) -> Split | None:
    """Return the split that a folder or list is named after, ignoring case; None for any other name."""
    words = [word for word in re.findall(r"[a-z]+", name.casefold()) if word not in FILLERS]
    found = re.fullmatch(r"(?:meta)?([a-z]+?)(?:set|data|images)?", words[0]) if len(words) == 1 else None
    return WORDS.get(found[1]) if found else None


@dataclass(frozen=True)
class Folder:
    """A folder with its images and subfolders."""

    path: Path
    images: tuple[Path, ...]
    folders: tuple["Folder", ...]

    def everything(self) -> list[Path]:
        """Return all images in it, at any depth, sorted."""
        return sorted([*self.images, *(file for folder in self.folders for file in folder.everything())])

    def bearing(self) -> list["Folder"]:
        """Return the folders in it that hold images at any depth."""
        return [folder for folder in self.folders if folder.everything()]


@dataclass
class Passed:
    """Files that were skipped."""

    files: list[Path] = field(default_factory=list)

    def tell(self, root: Path) -> None:
        """Warn about them. Raises ValueError for photographs that Pillow cannot read."""
        unread = [file for file in self.files if file.suffix.lower() in UNREAD]
        if unread:
            kind = unread[0].suffix.lower().removeprefix(".").upper()
            raise ValueError(
                f"{root} holds {len(unread)} photographs that cannot be read, such as {unread[0]}: Pillow knows no "
                f"{kind}; convert them to JPEG or PNG"
            )
        if self.files:
            told = f"{len(self.files)} files in {root} were passed over, such as {os.path.relpath(self.files[0], root)}"
            warnings.warn(f"{told}: no picture that Pillow reads, or in the folder of no class", stacklevel=2)


def look(path: Path, passed: Passed, above: tuple[tuple[int, int], ...] = ()) -> Folder:
    """Return a folder with its contents; links are followed, but not in circles."""
    stat, known = path.stat(), suffixes()
    here = (*above, (stat.st_dev, stat.st_ino))
    images, folders = [], []
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        place = path / entry.name
        if left_out(entry.name):
            continue
        if entry.is_dir():
            inside = entry.stat()
            if (inside.st_dev, inside.st_ino) not in here:
                folders.append(look(place, passed, here))
        elif place.suffix.lower() in known and entry.is_file():
            images.append(place)
        elif place.suffix.lower() not in DOCUMENTS:
            passed.files.append(place)
    return Folder(path, tuple(images), tuple(folders))


def splits(root: Folder) -> dict[Split, Folder] | None:
    """Return the folders of the splits, if any.

    Raises ValueError if two folders belong to one split, or if there are other folders beside them.
    """
    named = [(folder, split_named(folder.path.name)) for folder in root.folders]
    known = [(folder, split) for folder, split in named if split]
    # A single folder called "train" may be a class: a vehicle, which has images in it.
    if len({split for _, split in known}) < 2 and not any(folder.bearing() for folder, _ in known):
        return None
    inner = {split: folder if of_characters(folder) else unwrapped(folder) for folder, split in known}
    found = {split: inner[split] for split in SPLITS if split in inner}
    others = [folder for folder, split in named if not split and folder.everything()]
    if len(found) < len(known) or others:
        raise unclear(root, "splits and folders beside them" if others else "two folders of one split")
    return found


def of_characters(folder: Folder) -> bool:
    """Whether a folder is a part of Omniglot, whose classes are the innermost folders."""
    return folder.path.name.casefold() in ("images_background", "images_evaluation")


def unwrapped(folder: Folder) -> Folder:
    """Return the folder that holds the classes: enter folders whose only content is a folder of folders."""
    inner = folder.bearing()
    if folder.images or len(inner) != 1 or inner[0].images:
        return folder
    return unwrapped(inner[0])


def classes(root: Folder) -> Iterator[tuple[Path, str]]:
    """Yield images with the names of their classes, which are the folders in root.

    Raises ValueError if there are none, or if the folders look like splits or groups of classes.
    """
    bearing = root.bearing()
    if of_characters(root):
        yield from _leaves(root, "")
        return
    _check_level(root, bearing)
    for folder in bearing:
        for file in folder.everything():
            yield file, folder.path.name


def _leaves(folder: Folder, name: str) -> Iterator[tuple[Path, str]]:
    for inner in folder.folders:
        yield from _leaves(inner, f"{name}/{inner.path.name}" if name else inner.path.name)
    for file in folder.images if name else ():
        yield file, name


def _check_level(root: Folder, bearing: Sequence[Folder]) -> None:
    """Raise ValueError if every folder holds only folders of images, which look like the real classes."""
    if any(folder.images for folder in bearing):
        return
    inner = [{one.path.name for one in folder.bearing()} for folder in bearing]
    if max(map(len, inner), default=0) < 2:
        return
    # Where all hold folders of the same names, these may be the parts of a class: sessions, cameras.
    same = all(one & other for one, other in combinations(inner, 2))
    if len(inner) <= FEW or not same:
        raise unclear(root, "folders of folders of images")


def unclear(root: Folder, what: str) -> ValueError:
    """Return an error that shows the tree."""
    return ValueError(
        f"{root.path} holds {what}, and it is not clear which of them are the classes; seen: {shown(root)}; call the "
        "folders of the splits train, val and test, and keep a folder for each class in each of them"
    )


def shown(folder: Folder, depth: int = 2) -> str:
    """Return the upper levels of a tree on one line: ``a/{b (3 images), c (4 images)}``."""
    inner = folder.bearing()
    told = [shown(one, depth - 1) for one in inner[:SHOWN]] if depth else []
    if len(inner) > SHOWN and depth:
        told.append(f"{len(inner) - SHOWN} more")
    if folder.images or not inner:
        told.append(f"{len(folder.images)} images")
    elif not depth:
        told.append(f"{len(inner)} folders")
    return f"{folder.path.name}/{{{', '.join(told)}}}"
