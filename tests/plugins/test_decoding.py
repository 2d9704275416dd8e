import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from metarl_plugins.decoding import CHANNELS, Reading, decode, decoded


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


def pillow(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def one(contents: bytes, mode: Any = "L", **options: Any) -> np.ndarray:
    """Decode one file to its own size."""
    with Image.open(io.BytesIO(contents)) as image:
        size = image.size[0]
    return decode(["a"], lambda _: contents, size, mode, **options)[0]


# Depth: white is 255 whatever the depth of a file.

DEEP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
EIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("form", ["png", "tiff", "ppm", "jpeg2000"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sixteen_bits_are_scaled(form: str, mode: Any) -> None:
    found = one(encoded(DEEP, form), mode)
    assert (found == EIGHT).all()


def test_tiffs_of_other_layouts(tmp_path: Path) -> None:
    big = Image.fromarray(DEEP.astype(">u2"))
    assert big.mode == "I;16B"
    np.testing.assert_array_equal(one(pillow(big, "tiff"))[0], EIGHT)
    np.testing.assert_array_equal(one(pillow(Image.fromarray(DEEP), "tiff", compression="tiff_lzw"))[0], EIGHT)
    white_is_zero = pillow(Image.fromarray(DEEP), "tiff", tiffinfo={262: 0})
    np.testing.assert_array_equal(one(white_is_zero)[0], 255 - EIGHT)
    told = pillow(Image.fromarray(DEEP // 16), "tiff", tiffinfo={281: 4095})  # MaxSampleValue
    np.testing.assert_array_equal(one(told)[0], EIGHT)


@pytest.mark.parametrize("depth", [10, 12, 14])
def test_fewer_bits_than_the_file_has_room_for(depth: int) -> None:
    white = 2**depth - 1
    values = np.rint(EIGHT / 255 * white).astype(np.uint16)
    for form in ("png", "tiff"):
        np.testing.assert_array_equal(one(encoded(values, form), depth=depth)[0], EIGHT)
    with pytest.raises(ValueError, match=r"it holds values from 0 to 65535, and white is \d+: is another depth"):
        one(encoded(DEEP), depth=depth)
    # Netpbm's files say themselves how deep they are.
    pgm = b"P5 16 16 %d\n" % white + values.astype(">u2").tobytes()
    assert np.abs(one(pgm)[0].astype(int) - EIGHT).max() <= 1


def test_dark_images_of_sixteen_bits_are_told() -> None:
    twelve = encoded(DEEP // 16)
    found = decoded(["a"], lambda _: twelve, Reading(16, "L"))
    assert found.notes == (
        "no 16-bit image is brighter than 4095 of 65535: if they hold 12 bits, give depth=12 (--tasks.depth)",
    )
    assert decoded(["a", "b"], {"a": twelve, "b": encoded(DEEP)}.__getitem__, Reading(16, "L")).notes == ()
    assert decoded(["a"], lambda _: twelve, Reading(16, "L", 12)).notes == ()


def test_few_levels_in_eight_bits() -> None:
    mask = np.eye(6, dtype=np.uint8)
    np.testing.assert_array_equal(one(encoded(mask), depth=1)[0], 255 * mask)
    np.testing.assert_array_equal(one(encoded(mask * 15), depth=4)[0], 255 * mask)
    np.testing.assert_array_equal(one(encoded(RAMP), depth=12)[0], RAMP)
    with pytest.raises(ValueError, match="it holds 35, and white is 15: is another depth right"):
        one(encoded(RAMP), depth=4)


def test_floats_by_their_range() -> None:
    unit, bytes_ = (EIGHT / 255).astype(np.float32), EIGHT.astype(np.float32)
    for values, options in ((unit, {}), (bytes_, {}), (unit, {"depth": 1}), (unit * 65535, {"depth": 16})):
        np.testing.assert_array_equal(one(encoded(values, "tiff"), **options)[0], EIGHT)
    np.testing.assert_array_equal(one(encoded(unit, "tiff"), "RGB"), [EIGHT] * 3)
    for wrong in (unit * 1.5, unit * 700, unit - 0.5):
        with pytest.raises(ValueError, match=r"its floats go from .* neither to 1 nor to 255: give depth"):
            one(encoded(wrong, "tiff"))
    with pytest.raises(ValueError, match="it holds numbers that are not finite"):
        one(encoded(np.where(unit > 0.5, np.nan, unit), "tiff"))
    files = {"a": encoded(unit, "tiff"), "b": encoded(bytes_, "tiff")}
    with pytest.raises(ValueError, match="floats of a go from 0 to 1, those of b to 255: give depth=1 or depth=8"):
        decode(["a", "b"], files.__getitem__, 16, "L")
    np.testing.assert_array_equal(one(encoded(0 * unit, "tiff")), 0)


def test_whole_numbers_of_32_bits_need_their_depth() -> None:
    values = encoded(EIGHT.astype(np.int32) * 16, "tiff")
    with pytest.raises(ValueError, match="its whole numbers, up to 4080, may have any depth: give depth"):
        one(values)
    np.testing.assert_array_equal(one(values, depth=12)[0], np.rint(EIGHT.astype(int) * 16 / 4095 * 255))


def test_colours_of_sixteen_bits() -> None:
    """Pillow cannot write them: the upper byte of each is its level."""
    rows = b"".join(b"\0" + bytes([200, 7, 30, 7, 10, 7]) * 2 for _ in range(2))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    np.testing.assert_array_equal(one(png, "RGB")[:, 0, 0], [200, 30, 10])
    with pytest.raises(ValueError, match="its colours of 16 bits are read as 8, too few of which depth=12 leaves"):
        one(png, "RGB", depth=12)


# What is transparent

INK = np.zeros((8, 8), dtype=np.uint8)
INK[2:5, 2:5] = 255  # the alpha of a black drawing


@pytest.mark.parametrize("form", ["png", "webp", "tiff"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_black_drawing_on_a_transparent_ground(form: str, mode: Any) -> None:
    black = np.zeros_like(INK)
    options = {"lossless": True} if form == "webp" else {}
    file = pillow(Image.fromarray(np.stack([black, black, black, INK], axis=2)), form, **options)
    np.testing.assert_array_equal(one(file, mode), [255 - INK] * CHANNELS[mode])
    np.testing.assert_array_equal(one(file, mode, ground="black"), 0)
    np.testing.assert_array_equal(one(file, mode, ground="#808080")[0], np.where(INK, 0, 128))


def test_transparency_in_other_forms() -> None:
    expected = 255 - INK
    grey = pillow(Image.merge("LA", [Image.new("L", (8, 8)), Image.fromarray(INK)]), "png")
    np.testing.assert_array_equal(one(grey)[0], expected)
    palette = Image.fromarray(np.where(INK, 1, 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    for form in ("png", "gif"):
        np.testing.assert_array_equal(one(pillow(palette, form, transparency=0))[0], expected)
    # The one colour that is transparent, in 8 and in 16 bits.
    np.testing.assert_array_equal(one(pillow(Image.fromarray(255 - INK), "png", transparency=0))[0], 255)
    deep = Image.fromarray(np.where(INK, 0, 300).astype(np.uint16))
    np.testing.assert_array_equal(one(pillow(deep, "png", transparency=300))[0], expected)
    half = pillow(Image.merge("LA", [Image.new("L", (8, 8)), Image.fromarray(INK // 255 * 51)]), "png")
    assert one(half)[0, 3, 3] == 204


@pytest.mark.parametrize("options", [{"depth": 0}, {"depth": 33}, {"ground": "whitish"}, {"ground": "#ffffff00"}])
def test_wrong_readings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(options))}=.*: expected a"):
        Reading(8, "L", **options).check()


# Orientation by EXIF

CORNERS = np.array([[10, 80], [160, 240]], dtype=np.uint8).repeat(16, 0).repeat(16, 1)
STORED = {
    1: CORNERS, 2: CORNERS[:, ::-1], 3: CORNERS[::-1, ::-1], 4: CORNERS[::-1], 5: CORNERS.T,
    6: np.rot90(CORNERS), 7: CORNERS.T[::-1, ::-1], 8: np.rot90(CORNERS, -1),
}  # fmt: skip
"""How a camera stores an upright picture, by the orientation that it writes beside it."""


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff", "tiff_lzw", "avif"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_upright(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    options: dict[str, Any] = {"compression": "tiff_lzw"} if form == "tiff_lzw" else {"quality": 95}
    if form == "avif" and not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    found = one(pillow(image, form.partition("_")[0], exif=exif, **options))[0]
    np.testing.assert_allclose(found[[8, 8, 24, 24], [8, 24, 8, 24]], [10, 80, 160, 240], atol=4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_is_none_turns_nothing() -> None:
    file = pillow(Image.fromarray(CORNERS), "jpeg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=95)
    np.testing.assert_allclose(one(file)[0], CORNERS, atol=4)


def test_digests_tell_pictures_not_files() -> None:
    other = RED.copy()
    other[0, 0] += 1
    files = {"a": encoded(RED), "b": encoded(RED, "bmp"), "c": encoded(other), "d": encoded(RAMP)}
    digests = decoded(list(files), files.__getitem__, Reading(4, "L")).digests
    assert len(np.unique(digests, axis=0)) == 3
    np.testing.assert_array_equal(digests[0], digests[1])
