"""Image files, decoded once into one array of pixels."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError
from tqdm import tqdm

from metarl_plugins import levels

Mode = Literal["L", "RGB"]
"""Grey or colour, by Pillow's names."""
WHITE = 255
CHANNELS: dict[Mode, int] = {"L": 1, "RGB": 3}
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


def decoded(names: Sequence[str], read: Callable[[str], bytes], reading: Reading) -> Decoded:
    """Return the images whose files have these names.

    Each image is turned upright (EXIF), scaled to 8 bits, composited on the ground colour if it is transparent, and
    resized to ``size`` x ``size`` (Lanczos). A terminal shows a progress bar.

    Raises:
        ValueError: some files cannot be read; their names.
    """
    size, mode, *_ = reading
    pixels = np.empty((len(names), CHANNELS[mode], size, size), dtype=np.uint8)
    digests = np.empty((len(names), 16), dtype=np.uint8)
    unreadable: list[str] = []
    seen = levels.Seen()

    def fill(index: int) -> None:
        try:
            with Image.open(io.BytesIO(read(names[index]))) as image:
                flat = _flat(image, names[index], reading, seen)
            digests[index] = np.frombuffer(_digest(flat), dtype=np.uint8)
            small = flat.convert(mode).resize((size, size), Image.Resampling.LANCZOS)
            pixels[index] = np.asarray(small).reshape(size, size, CHANNELS[mode]).transpose(2, 0, 1)
        except UnidentifiedImageError:  # its message is only an address in memory
            unreadable.append(f"{names[index]} (no image of a known format)")
        except Exception as error:  # Pillow may raise anything on damaged files
            unreadable.append(f"{names[index]} ({type(error).__name__}: {error})")

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow releases the GIL while it decodes
        done = threads.map(fill, range(len(names)))
        for _ in tqdm(done, "decoding images", len(names), disable=None, leave=False):
            pass
    if unreadable:
        more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        raise ValueError(f"cannot read {', '.join(sorted(unreadable)[:NAMED])}{more}; mend, remove or fetch them again")
    return Decoded(pixels, digests, tuple(seen.notes()))


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
