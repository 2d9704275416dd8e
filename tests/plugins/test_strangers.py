"""Data sets of strangers: what never ends, what does not fit into memory, and what would lie elsewhere."""

import io
import os
import resource
import socket
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarl import cli
from metarl_plugins import decoding, images, omniglot
from metarl_plugins.images import Images, read_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abcdef":
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(2):
            colour = (40 * "abcdef".index(name), 100 * number, 7)
            Image.new("RGB", (8, 8), colour).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


def family(root: Path, **options: int) -> Images:
    return Images(root=root, size=8, ways=2, queries=1, **options)  # type: ignore[arg-type]


def png(width: int, height: int) -> bytes:
    """Return the beginning of a picture that says it has this size, with few bytes of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


def odd(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is short
        socket.socket(socket.AF_UNIX).bind(path.name)
        os.chdir(here)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_is_no_file_is_named_and_refused(root: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    odd(root / "c" / "1.png", kind)
    with pytest.raises(ValueError, match=rf"c/1.png is a {kind}: expected a file"):
        family(root).check_split("train")
    words = ["train", "maml", "images", "--tasks.root", str(root), "--tasks.ways", "2", "--iterations", "1"]
    assert cli.main([*words, "--out", str(root.parent / "run")]) == 2
    assert "c/1.png" in capsys.readouterr().err
    for split, names in {"train": "ab", "val": "cd", "test": "ef"}.items():
        (root / f"{split}.csv").write_text("filename,label\n" + "".join(f"{one}/1.png,{one}\n" for one in names))
    with pytest.raises(ValueError, match=r"names c/1\.png, which .* lacks"):
        family(root).check_split("train")
    with pytest.raises(ValueError, match=r"1\.png"):
        read_images([root / "c" / "1.png"])


def test_omniglot_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    for part in omniglot.CHARACTERS:
        (tmp_path / part / "Alphabet" / "character01").mkdir(parents=True)
    os.mkfifo(tmp_path / "images_background" / "Alphabet" / "character01" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png is a pipe"):
        omniglot.load(tmp_path)


def test_bombs_are_refused_by_their_header(root: Path) -> None:
    """In a process that may not have the memory of one."""
    (root / "c" / "1.png").write_bytes(png(38_000, 38_000))
    code = (
        "import resource, sys; from metarl_plugins.images import Images; from pathlib import Path\n"
        f"family = Images(root=Path({str(root)!r}), size=8, ways=2, queries=1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    family.check_split('train')\nexcept ValueError as error:\n    print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    asked = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    told, megabytes = asked.stdout.splitlines()
    assert "c/1.png (more than 67108864 pixels; max_pixels allows more)" in told
    assert int(megabytes) < 200
    assert resource.getrusage(resource.RUSAGE_SELF)


def test_the_limit_is_exact_and_can_be_raised(root: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.new("RGB", (20, 11), "red").save(root / "c" / "1.png")
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"c/1.png \(more than 219 pixels"):
        family(root, max_pixels=219).check_split("train")
    family(root, max_pixels=220).check_split("train")
    assert before == Image.MAX_IMAGE_PIXELS
    assert not [one for one in recwarn if issubclass(one.category, Image.DecompressionBombWarning)]
    with pytest.raises(ValueError, match="max_pixels=0: expected at least 1"):
        family(root, max_pixels=0)


def test_a_picture_that_pillow_warns_of_is_read_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns of more, and refuses more than 200
    Image.new("RGB", (20, 20), "red").save(tmp_path / "1.png")
    with warnings.catch_warnings(action="error"):
        pixels = read_images([tmp_path / "1.png"], size=2)
    assert pixels.tolist() == [[[[255] * 2] * 2, [[0] * 2] * 2, [[0] * 2] * 2]]


def test_files_larger_than_any_picture_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LEAST_BYTES", 1000)
    with (root / "c" / "1.png").open("ab") as file:
        file.truncate(2**33)  # without using the disk
    with pytest.raises(ValueError, match=r"c/1.png \(ValueError: more than 1600 bytes; max_pixels allows more"):
        family(root, max_pixels=100).check_split("train")


def test_programs_are_no_pictures(tmp_path: Path) -> None:
    """Pillow would run Ghostscript for PostScript, whatever the file is called."""
    (tmp_path / "1.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ValueError, match=r"1\.png \(no image of a known format\)"):
        read_images([tmp_path / "1.png"])


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside.png", "images_background/../../x/outside.png"])
def test_archives_leave_nothing_outside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inner" / "omniglot"
    folder.mkdir(parents=True)
    for part in omniglot.CHARACTERS:
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            archive.writestr(name, b"x")
            archive.writestr(f"{part}/Alphabet/character01/0001_01.png", b"x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="holds 1 characters"):
        omniglot.load(folder)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/outside.png").exists()


def test_a_member_that_unpacks_to_more_than_a_drawing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(omniglot, "CHARACTERS", {"images_background": 1})
    buffer = io.BytesIO()
    Image.new("L", (105, 105)).save(buffer, "png")
    small = buffer.getvalue()
    with zipfile.ZipFile(tmp_path / "images_background.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"images_background/A/c/{number}.png", bytes(2**24 + 1) if number == 3 else small)
    with pytest.raises(ValueError, match=r"c/3\.png \(ValueError: 16777217 bytes unpacked"):
        omniglot.load(tmp_path)


def test_decoding_keeps_pixels(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    found = decoding.decode(["1.png"], lambda name: (tmp_path / name).read_bytes(), 4, "RGB")
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), pixels)
