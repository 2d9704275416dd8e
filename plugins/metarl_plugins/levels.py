"""Grey levels of image files: which value is white, and how to scale it to 8 bits."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes with more than 8 bits. Its own ``convert`` clips them."""
SIXTEEN_BITS_AT_MOST = ("PPM", "PNG", "JPEG2000")
"""Formats that Pillow scales to 16 bits, whatever mode it reports."""
BITS, PHOTOMETRIC, MAXIMUM = 258, 262, 281
"""Tags of TIFF: bits of a value, whether 0 is white, and the largest value."""
DEEP = "metarl: colours of 16 bits"
TOLERANCE = 0.01
"""Share by which floats may leave their range, because resampling overshoots."""
DEPTHS = range(1, 33)


@dataclass
class Seen:
    """What was seen in the files of a data set, all of which must be scaled alike."""

    brightest: int = 0
    """Largest value in the 16-bit files whose depth had to be assumed."""
    floats: dict[int, str] = field(default_factory=dict)
    """Depths that the floats suggest (1: from 0 to 1, 8: to 255), with an example file of each."""

    def notes(self) -> list[str]:
        """Return notes for the user. Raises ValueError for floats on two scales."""
        if len(self.floats) > 1:
            raise ValueError(
                f"the floats of {self.floats[1]} go from 0 to 1, those of {self.floats[8]} to 255: give depth=1 or "
                "depth=8 (--tasks.depth) for all"
            )
        if 0 < self.brightest < 2**13:
            bits = max(8, self.brightest.bit_length())
            return [
                f"no 16-bit image is brighter than {self.brightest} of 65535: if they hold {bits} bits, give "
                f"depth={bits} (--tasks.depth)"
            ]
        return []


def eight_bits(image: Image.Image, name: str, depth: int | None, seen: Seen) -> Image.Image:
    """Scale an image to 8 bits.

    White is ``2**depth - 1``. Without ``depth`` it is what the file says, else 65535 for 16 bits, and 1 or 255 for
    floats, depending on their range. Files of 8 bits are scaled only if ``depth`` is smaller. Raises ValueError for
    values beyond white, and if white is unknown without ``depth``.
    """
    if image.mode not in WIDE:
        _note_colour(image, depth, seen)
        return _fewer(image, depth) if depth is not None and depth < 8 and image.mode in ("L", "LA", "RGB") else image
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    if np.issubdtype(values.dtype, np.floating):
        white = float(_white(depth or _depth_of_floats(values, name, seen)))
        slack = TOLERANCE * white
    else:
        white, slack = float(_white(depth) if depth else _white_of_integers(image, values, seen)), 0.0
    low, high = values.min(), values.max()
    if low < -slack or high > white + slack:
        raise ValueError(f"it holds values from {low:g} to {high:g}, and white is {white:g}: is another depth right?")
    if _tags(image).get(PHOTOMETRIC) == 0:
        values = white - values.astype(np.float64)  # Pillow turns only 8 bits
    return _opaque(image, np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8))


def _note_colour(image: Image.Image, depth: int | None, seen: Seen) -> None:
    """Note colours of 16 bits: Pillow keeps the upper 8, which is right only if all 16 are used."""
    if not image.info.get(DEEP):
        return
    if depth is not None and depth < 16:
        raise ValueError(f"its colours of 16 bits are read as 8, too few of which depth={depth} leaves: save it as 8")
    seen.brightest = max(seen.brightest, 257 * max(map(_brightest, image.split()[:3])))


def _brightest(band: Image.Image) -> int:
    return int(np.asarray(band).max())


def note_depth(image: Image.Image) -> None:
    """Note, before an image is loaded, whether its file holds colours of 16 bits."""
    raw = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.info[DEEP] = image.mode not in WIDE and (raw or max(_tags(image).get(BITS, (8,))) > 8)


def _opaque(image: Image.Image, levels: np.ndarray) -> Image.Image:
    """Return levels as an image, with the file's transparent value made transparent."""
    grey, clear = Image.fromarray(levels), image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    return Image.merge("LA", [grey, Image.fromarray(np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8))])


def _fewer(image: Image.Image, depth: int) -> Image.Image:
    """Scale the few levels of an 8-bit image, except alpha, to the full range."""
    white, bands = _white(depth), list(image.split())
    for index, band in enumerate(bands):
        if not (image.mode == "LA" and index == 1):
            if _brightest(band) > white:
                raise ValueError(f"it holds {_brightest(band)}, and white is {white}: is another depth right?")
            bands[index] = band.point([round(min(level, white) * 255 / white) for level in range(256)])
    stretched = Image.merge(image.mode, bands)
    stretched.info = image.info
    return stretched


def _white(depth: int) -> int:
    return (1 << depth) - 1


def _white_of_integers(image: Image.Image, values: np.ndarray, seen: Seen) -> int:
    tags = _tags(image)
    found = tags.get(MAXIMUM, 0)
    largest = int(found[0] if isinstance(found, tuple) else found)
    if largest > 1:
        return largest
    if image.mode == "I" and image.format not in SIXTEEN_BITS_AT_MOST:
        raise ValueError(f"its whole numbers, up to {values.max()}, may have any depth: give depth (--tasks.depth)")
    bits = int(tags.get(BITS, (16,))[0])
    if bits < 16:
        return _white(bits)
    if image.format not in ("PPM", "JPEG2000"):  # which say how deep they are
        seen.brightest = max(seen.brightest, int(values.max()))
    return 65535


def _depth_of_floats(values: np.ndarray, name: str, seen: Seen) -> int:
    low, high = float(values.min()), float(values.max())
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        if high > 0:
            seen.floats[1] = name
        return 1
    if low >= -TOLERANCE * 255 and 2 < high <= 255 * (1 + TOLERANCE):
        seen.floats[8] = name
        return 8
    raise ValueError(
        f"its floats go from {low:g} to {high:g}, neither to 1 nor to 255: give depth (--tasks.depth), white is "
        "2**depth - 1"
    )


def _tags(image: Image.Image) -> dict[int, Any]:
    return dict(getattr(image, "tag_v2", {}))
