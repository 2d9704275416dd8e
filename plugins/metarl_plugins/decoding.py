"""Image files, decoded once into one array of pixels."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

Mode = Literal["L", "RGB"]
"""Grey or colour, by Pillow's names."""
CHANNELS: dict[Mode, int] = {"L": 1, "RGB": 3}
NAMED = 5
"""How many unreadable files an error names."""


def decode(names: Sequence[str], read: Callable[[str], bytes], size: int, mode: Mode) -> np.ndarray:
    """Return the images whose files have these names, ``[item, channel, size, size]`` uint8.

    Each is squeezed or stretched to ``size`` on both sides (Lanczos). A terminal shows a bar meanwhile.

    Raises:
        ValueError: some files cannot be read; their names.
    """
    pixels = np.empty((len(names), CHANNELS[mode], size, size), dtype=np.uint8)
    unreadable: list[str] = []

    def fill(index: int) -> None:
        try:
            pixels[index] = _decoded(read(names[index]), size, mode)
        except UnidentifiedImageError:  # whose message is an address in memory
            unreadable.append(f"{names[index]} (no image of a known format)")
        except Exception as error:  # bytes that are no image make Pillow raise anything
            unreadable.append(f"{names[index]} ({type(error).__name__}: {error})")

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow lets other threads run while it decodes
        done = threads.map(fill, range(len(names)))
        for _ in tqdm(done, "decoding images", len(names), disable=None, leave=False):
            pass
    if unreadable:
        more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        raise ValueError(f"cannot read {', '.join(sorted(unreadable)[:NAMED])}{more}; mend, remove or fetch them again")
    return pixels


def _decoded(contents: bytes, size: int, mode: Mode) -> np.ndarray:
    with Image.open(io.BytesIO(contents)) as image:
        small = image.convert(mode).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small).reshape(size, size, CHANNELS[mode]).transpose(2, 0, 1)
