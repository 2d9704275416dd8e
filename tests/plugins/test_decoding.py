import io
import re

import numpy as np
import pytest
from PIL import Image

from metarl_plugins.decoding import decode


def encoded(pixels: np.ndarray, form: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


RED = np.full((6, 6, 3), (200, 30, 10), dtype=np.uint8)
RAMP = np.arange(36, dtype=np.uint8).reshape(6, 6)


def test_colour_and_grey() -> None:
    files = {"red": encoded(RED), "ramp": encoded(RAMP), "ink": encoded(RAMP > 17)}
    colour = decode(list(files), files.__getitem__, 6, "RGB")
    assert (colour.shape, colour.dtype) == ((3, 3, 6, 6), np.uint8)
    np.testing.assert_array_equal(colour[0, :, 2, 3], [200, 30, 10])
    np.testing.assert_array_equal(colour[1], [RAMP] * 3)
    grey = decode(list(files), files.__getitem__, 6, "L")
    np.testing.assert_array_equal(grey[1:], [[RAMP], [255 * (RAMP > 17)]])


def test_any_shape_is_brought_to_one() -> None:
    files = {"wide": encoded(np.repeat(RED, 5, axis=1)), "tall": encoded(np.repeat(RED, 3, axis=0), "bmp")}
    pixels = decode(list(files), files.__getitem__, 4, "RGB")
    assert pixels.shape == (2, 3, 4, 4)
    assert (pixels == np.array([200, 30, 10])[:, None, None]).all()


def test_unreadable_files_are_named() -> None:
    files = {"good.png": encoded(RED), "text.png": b"no image", "short.png": encoded(RED)[:40], "empty.png": b""}

    def read(name: str) -> bytes:
        if name not in files:
            raise FileNotFoundError("gone")
        return files[name]

    with pytest.raises(ValueError, match="cannot read") as caught:
        decode([*files, "absent.png"], read, 4, "RGB")
    assert re.findall(r"(\w+\.png) \(", str(caught.value)) == ["absent.png", "empty.png", "short.png", "text.png"]
    assert "absent.png (FileNotFoundError: gone), empty.png (no image of a known format)," in str(caught.value)
    with pytest.raises(
        ValueError, match=r"cannot read 0\.png \(.*4\.png \(.* and 3 more; mend, remove or fetch them again"
    ):
        decode([f"{number}.png" for number in range(8)], read, 4, "RGB")
