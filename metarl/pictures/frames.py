"""What environments render, as pictures ``[height, width, 3]`` in uint8."""

from typing import Any

import numpy as np
from PIL import Image

Frame = np.ndarray[Any, Any]
"""``[height, width, 3]`` uint8."""
CHANNELS = (1, 3, 4)


def frame_of(rendered: Any, height: int | None = None) -> Frame:
    """Return what an environment rendered as a frame, resized to a height.

    Takes arrays ``[height, width]`` or with 1, 3 or 4 channels before or after that, of integers up to 255, of numbers
    in [0, 1], or of booleans; and lists of frames, of which the last is the newest. Transparency is dropped.

    Raises ValueError for anything else.
    """
    if isinstance(rendered, list | tuple) and rendered and not isinstance(rendered[-1], list | tuple):
        rendered = rendered[-1]  # of several frames, not of a frame's rows
    pixels = _bytes(_channels_last(np.asarray(rendered), rendered))
    picture = Image.fromarray(pixels if pixels.shape[-1] > 1 else pixels[..., 0]).convert("RGB")
    if height is not None:
        width = max(1, round(picture.width * height / picture.height))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _channels_last(array: Frame, rendered: Any) -> Frame:
    if array.dtype.kind in "buif" and array.size:
        if array.ndim == 2:
            return array[..., None]
        if array.ndim == 3 and array.shape[-1] in CHANNELS:
            return array
        if array.ndim == 3 and array.shape[0] in CHANNELS and array.shape[0] < min(array.shape[1:]):
            return np.moveaxis(array, 0, -1)
    found = type(rendered).__name__ if array.ndim == 0 or not array.size else f"{array.dtype} {array.shape}"
    raise ValueError(f"render() returned {found}, no picture: expected an array [height, width, 3] of uint8")


def _bytes(array: Frame) -> Frame:
    """Return pixels in uint8. Numbers that are all in [0, 1] are shares of full brightness."""
    if array.dtype == np.uint8:
        return array
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 255):
        raise ValueError(f"render() returned pixels from {low} to {high}: expected 0 to 255, or 0 to 1")
    shares = array.dtype.kind == "b" or (array.dtype.kind == "f" and high <= 1)
    return np.asarray(np.rint(array.astype(float) * (255 if shares else 1)), dtype=np.uint8)
