"""A small Pillow canvas for rendering environments. It draws at twice the size, for smooth edges."""

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BLACK, WHITE, GREY, LIGHT_GREY = (0, 0, 0), (255, 255, 255), (130, 130, 130), (215, 215, 215)
BLUE, GREEN, RED = (0, 114, 178), (0, 158, 115), (213, 94, 0)
"""From Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/."""

SCALE = 2


class Canvas:
    """A white square. Lengths and positions are in pixels of the finished image; y points down."""

    def __init__(self, pixels: int):
        self._image = Image.new("RGB", (pixels * SCALE, pixels * SCALE), WHITE)
        self._draw = ImageDraw.Draw(self._image)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """Fill a rectangle."""
        self._draw.rectangle([left * SCALE, top * SCALE, right * SCALE, bottom * SCALE], fill=fill)

    def line(self, start: tuple[float, float], end: tuple[float, float], fill: Colour, width: float = 1) -> None:
        """Draw a straight line."""
        self._draw.line([value * SCALE for value in (*start, *end)], fill=fill, width=round(width * SCALE))

    def circle(self, centre: tuple[float, float], radius: float, fill: Colour, outline: Colour = BLACK) -> None:
        """Draw a disc with an outline."""
        x, y = centre
        box = [value * SCALE for value in (x - radius, y - radius, x + radius, y + radius)]
        self._draw.ellipse(box, fill=fill, outline=outline, width=SCALE)

    def text(
        self, at: tuple[float, float], words: str, size: int = 14, fill: Colour = BLACK, anchor: str = "mm"
    ) -> None:
        """Write text. ``anchor`` is Pillow's: the point of the text that lies at ``at``, by default its middle."""
        self._draw.text((at[0] * SCALE, at[1] * SCALE), words, fill=fill, font=_font(size * SCALE), anchor=anchor)

    def array(self) -> np.ndarray[Any, Any]:
        """Return the image, ``[pixels, pixels, 3]`` uint8."""
        return np.asarray(self._image.reduce(SCALE))


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
