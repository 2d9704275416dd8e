"""Image files, decoded once into one array of pixels."""

import hashlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError
from tqdm import tqdm

from metarl_plugins import levels, trees

Mode = Literal["L", "RGB"]
"""Grey or colour, by Pillow's names."""
WHITE = 255
CHANNELS: dict[Mode, int] = {"L": 1, "RGB": 3}
MOST_PIXELS = 2**26
"""Pixels of a picture, 8192 x 8192: decoding takes several times as many bytes. Larger ones are refused unread."""
NAMED = 5
"""How many unreadable files an error names."""
ORIENTATION = 0x112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a picture upright, for each EXIF orientation."""


class Reading(NamedTuple):
    """How to turn image files into pixels."""

    size: int
    """Pixels on both sides."""
    mode: Mode
    depth: int | None = None
    """If the file does not say which value is white, it is ``2**depth - 1``."""
    ground: str = "white"
    """Colour behind transparent pixels, by Pillow's name."""

    def check(self) -> None:
        """Raise ValueError for invalid options."""
        if self.size < 1:
            raise ValueError(f"size={self.size}: expected at least 1")
        if self.depth is not None and self.depth not in levels.DEPTHS:
            raise ValueError(f"depth={self.depth}: expected a number of bits from 1 to {levels.DEPTHS[-1]}")
        try:
            opaque = len(ImageColor.getrgb(self.ground)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise ValueError(f"ground={self.ground!r}: expected a colour, such as white, black or #ff8800")


class Decoded(NamedTuple):
    """Decoded images, with notes for the user."""

    pixels: np.ndarray  # [item, channel, size, size] uint8
    digests: np.ndarray  # [item, 16] uint8, equal for files that show the same picture
    notes: tuple[str, ...]
    """Notes to show to the user."""


def decode(
    names: Sequence[str],
    read: Callable[[str], bytes],
    size: int,
    mode: Mode,
    depth: int | None = None,
    ground: str = "white",
) -> np.ndarray:
    """Return the pixels of ``decoded``, ``[item, channel, size, size]`` uint8."""
    return decoded(names, read, Reading(size, mode, depth, ground)).pixels


def decoded(
    names: Sequence[str], read: Callable[[str], bytes], reading: Reading, max_pixels: int = MOST_PIXELS
) -> Decoded:
    """Return the images whose files have these names.

    Each image is turned upright (EXIF), scaled to 8 bits, composited on the ground colour if it is transparent, and
    resized to ``size`` x ``size`` (Lanczos). A terminal shows a progress bar.

    Raises:
        ValueError: some files cannot be read, or say that they have more than ``max_pixels``; their names.
    """
    formats = [name for name in _known() if name not in trees.NO_PICTURES]
    size, mode, *_ = reading
    pixels = np.empty((len(names), CHANNELS[mode], size, size), dtype=np.uint8)
    digests = np.empty((len(names), 16), dtype=np.uint8)
    unreadable: list[str] = []
    seen = levels.Seen()

    def fill(index: int) -> None:
        try:
            with Image.open(io.BytesIO(read(names[index])), formats=formats) as image:
                flat = _flat(image, names[index], reading, seen)
            digests[index] = np.frombuffer(_digest(flat), dtype=np.uint8)
            small = flat.convert(mode).resize((size, size), Image.Resampling.LANCZOS)
            pixels[index] = np.asarray(small).reshape(size, size, CHANNELS[mode]).transpose(2, 0, 1)
        except Image.DecompressionBombError:
            unreadable.append(f"{names[index]} (more than {max_pixels} pixels; max_pixels allows more)")
        except UnidentifiedImageError:  # its message is only an address in memory
            unreadable.append(f"{names[index]} (no image of a known format)")
        except Exception as error:  # Pillow may raise anything on damaged files
            unreadable.append(f"{names[index]} ({type(error).__name__}: {error})")

    # Pillow releases the GIL while it decodes.
    with _at_most(max_pixels), ThreadPoolExecutor(os.cpu_count()) as threads:
        done = threads.map(fill, range(len(names)))
        for _ in tqdm(done, "decoding images", len(names), disable=None, leave=False):
            pass
    _refuse(unreadable)
    return Decoded(pixels, digests, tuple(seen.notes()))


def _refuse(unreadable: Sequence[str]) -> None:
    if unreadable:
        more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        raise ValueError(f"cannot read {', '.join(sorted(unreadable)[:NAMED])}{more}; mend, remove or fetch them again")


def _known() -> list[str]:
    Image.init()
    return list(Image.OPEN)


_limiting = threading.Lock()


@contextmanager
def _at_most(pixels: int) -> Iterator[None]:
    """Let Pillow refuse pictures by their header. It warns from its limit on, and refuses from twice that on."""
    with _limiting, warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels / 2  # type: ignore[assignment]
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _flat(image: Image.Image, name: str, reading: Reading, seen: levels.Seen) -> Image.Image:
    """Return an opaque image of 8 bits, upright."""
    levels.note_depth(image)
    image.load()  # first, so that a truncated file is reported as such
    upright = _turned(levels.eight_bits(image, name, reading.depth, seen), _orientation(image))
    if not upright.has_transparency_data:
        return upright.convert("RGB") if upright.mode in ("P", "LAB", "HSV") else upright
    clear = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, reading.ground), clear).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata are no reason to refuse the picture
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _digest(image: Image.Image) -> bytes:
    told = hashlib.blake2b(repr((image.mode, image.size)).encode(), digest_size=16)
    told.update(image.tobytes())
    return told.digest()
