import os
import shutil
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from metarl.cli import main
from metarl.types import Spec
from metarl_plugins import images
from metarl_plugins.images import Images, listed, load, read_images

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paint(path: Path, red: int, blue: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 12, 3), (red, 128, blue), dtype=np.uint8)).save(path)


def red(name: str) -> int:
    return 40 * NAMES.index(name) + 20


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARL_CACHE", str(tmp_path / "cache"))
    images._pixels.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of six classes with four images each: red tells the class and blue the image."""
    for name in NAMES:
        for number in range(4):
            paint(tmp_path / "animals" / name / f"{number}.png", red(name), 50 * number + 10)
    return tmp_path / "animals"


def check_episodes(family: Images, names: dict[Any, tuple[str, ...]]) -> None:
    """Check that the images of every split are of its classes, and labelled so."""
    for split, expected in names.items():
        tasks = family.sample(40, split, generator())
        classes = tasks.parameters["classes"]
        assert {NAMES[label] for label in classes.flatten().tolist()} == set(expected)
        drawn = tasks.draw("support", generator())
        inputs, targets = drawn.inputs, drawn.targets
        assert inputs.shape[2:] == (3, 84, 84)
        wanted = torch.tensor([red(name) for name in NAMES])[classes.gather(1, targets)]
        torch.testing.assert_close(inputs[:, :, 0, 40, 40] * 255, wanted.float())
        assert torch.allclose(inputs[:, :, 1] * 255, torch.tensor(128.0))


def test_a_folder_of_class_folders(root: Path) -> None:
    (root / "ant" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    (root / "ant" / "._0.png").write_bytes(b"no image")
    family = Images(str(root), ways=2, queries=2, fractions=(2 / 6, 2 / 6, 2 / 6))
    parts = family._family.classes
    assert parts is not None
    assert sorted(len(part) for part in parts.values()) == [2, 2, 2]
    check_episodes(family, {split: tuple(NAMES[label] for label in part) for split, part in parts.items()})
    assert family.spec == Spec((3, 84, 84), 2, "classification", 0)


def move_to_splits(root: Path, validation: str) -> None:
    for index, name in enumerate(NAMES):
        split = ("train", validation, "test")[index // 2]
        (root / split).mkdir(exist_ok=True)
        (root / name).rename(root / split / name)


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_folders_of_the_splits(root: Path, validation: str) -> None:
    move_to_splits(root, validation)
    family = Images(str(root), ways=2, queries=2)
    check_episodes(family, {"train": ("ant", "bee"), "validation": ("cat", "dog"), "test": ("eel", "fox")})


@pytest.mark.parametrize("folder", ["", "images"])
def test_split_files(root: Path, folder: str) -> None:
    (root / folder).mkdir(exist_ok=True)
    rows: dict[str, list[str]] = {name: [] for name in NAMES}
    for name in NAMES:
        for path in sorted((root / name).iterdir()):
            path.rename(root / folder / f"{name}{path.name}")
            rows[name].append(f"{name}{path.name},{name}")
        (root / name).rmdir()
    for split, names in (("train", NAMES[:3]), ("val", ()), ("test", NAMES[3:])):
        lines = ["filename,label", *(row for name in names for row in rows[name])]
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    family = Images(str(root), ways=2, queries=2)
    check_episodes(family, {"train": NAMES[:3], "test": NAMES[3:]})
    with pytest.raises(ValueError, match="the validation split has 0 classes, but a task takes 2"):
        family.sample(1, "validation", generator())


def test_grey_and_size(root: Path) -> None:
    family = Images(str(root), size=8, grey=True, ways=2, queries=1, rotations="train")
    assert family.spec == Spec((1, 8, 8), 2, "classification", 0)
    tasks = family.sample(3, "train", generator())
    assert tasks.inputs.dtype == torch.uint8
    assert tasks.draw("query", generator()).inputs.shape == (3, 2, 1, 8, 8)
    assert set(tasks.parameters) == {"classes", "quarter_turns"}


def test_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pixels = load(root, 84, "RGB")
    assert load(root, 84, "RGB")[1] is pixels
    images._pixels.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(images.decoding, "decode", None)
        assert torch.equal(load(root, 84, "RGB")[1], pixels)
    paint(root / "ant" / "0.png", 7, 7)
    images._pixels.cache_clear()
    assert load(root, 84, "RGB")[1][0, :, 0, 0].tolist() == [7, 128, 7]
    paint(root / "ant" / "4.png", 8, 8)
    images._pixels.cache_clear()
    assert len(load(root, 84, "RGB")[1]) == 25


def test_a_changed_folder_is_noticed_by_the_next_family(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, and wherever the process stands; what an older family holds stays as it was."""
    options: dict[str, Any] = {"size": 8, "ways": 2, "queries": 1, "fractions": (1.0, 0.0, 0.0)}
    monkeypatch.chdir(root.parent)
    old = Images(root.name, **options).sample(1, "train", generator()).inputs
    for number in range(4, 6):
        paint(root / "ant" / f"{number}.png", red("ant"), number)
    new = Images(root.name, **options).sample(1, "train", generator()).inputs
    assert (len(old), len(new)) == (24, 26)
    (root.parent / "elsewhere").mkdir()
    paint(root.parent / "elsewhere" / root.name / "ant" / "0.png", 1, 1)
    paint(root.parent / "elsewhere" / root.name / "bee" / "0.png", 1, 2)
    monkeypatch.chdir(root.parent / "elsewhere")
    assert len(load(Path(root.name), 8, "RGB")[1]) == 2


def test_the_order_of_split_files_is_that_of_the_pixels(root: Path) -> None:
    """The same files in another order are other pixels to the cache."""
    rows = [f"{name}/0.png,{name}" for name in NAMES]
    for lines in (rows, rows[::-1]):
        (root / "train.csv").write_text("\n".join(["filename,label", *lines]) + "\n")
        listing, pixels = load(root, 8, "RGB")
        wanted = [red(listing.names[label]) for label in listing.labels]
        assert pixels[:, 0, 4, 4].tolist() == wanted


def test_all_tasks_share_one_tensor(root: Path) -> None:
    families = (Images(str(root), ways=2, queries=1), Images(str(root), ways=3, queries=2))
    assert len({family.sample(1, "train", generator()).inputs.data_ptr() for family in families}) == 1


def test_a_picture(root: Path, tmp_path: Path) -> None:
    family = Images(str(root), ways=2, queries=2)
    tasks = family.sample(2, "train", generator())
    queries = [tasks.draw("query", generator())]
    with Image.open(family.picture(tasks, queries, tmp_path / "tasks.png")) as picture:
        assert picture.size[0] > 500


def test_unreadable_images_are_named(root: Path) -> None:
    (root / "bee" / "1.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"cannot read bee/1.png \(no image of a known format\); mend, remove or fetch them again"
    ):
        Images(str(root)).sample(1, "train", generator())


def test_too_few_images_and_classes(root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"class 'ant' of the train split has 4 items, but support and query together take 5 of each"
    ):
        Images(str(root), ways=2, queries=4, fractions=(1.0, 0.0, 0.0)).sample(1, "train", generator())
    with pytest.raises(ValueError, match="the train split has 4 classes, but a task takes 5"):
        Images(str(root), queries=1).sample(1, "train", generator())


def test_splits_that_share(root: Path) -> None:
    move_to_splits(root, "val")
    shutil.copytree(root / "train" / "ant", root / "test" / "ant")
    with pytest.raises(ValueError, match="the splits share 1 classes, such as ant: each belongs to one split"):
        listed(root)
    shutil.rmtree(root / "test" / "ant")
    for split, label in (("train", "ant"), ("test", "bee")):
        (root / f"{split}.csv").write_text(f"filename,label\ntrain/ant/0.png,{label}\n")
    with pytest.raises(ValueError, match=r"the splits share 1 files, such as .*ant/0.png: each belongs to one split"):
        listed(root)


def test_folders_that_are_none(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"which images\? Name their folder with --tasks.root .*expected a folder for each"
    ):
        Images().sample(1, "train", generator())
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere; expected a folder for each class"):
        listed(tmp_path / "nowhere")
    (root / "gnu").mkdir()
    with pytest.raises(ValueError, match="is no folder of classes: the folders gnu in it hold no images"):
        listed(root)
    with pytest.raises(ValueError, match="is no folder of classes: it holds no images"):
        listed(root / "ant")


def test_wrong_split_files(root: Path) -> None:
    (root / "train.csv").write_text("file,label\n0.png,ant\n")
    with pytest.raises(ValueError, match=r"train.csv has the columns \['file', 'label'\]: expected filename and label"):
        listed(root)
    (root / "train.csv").write_text("filename,label\nant/0.png,ant\nant/9.png,ant\n")
    with pytest.raises(ValueError, match=r"train.csv names ant/9.png, which .*animals lacks; 1 of 2 are missing"):
        listed(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0: expected at least 1"),
        ({"ways": 1}, "ways=1"),
        ({"queries": 0}, "queries=0"),
        ({"fractions": (0.5, 0.5, 0.5)}, "expected fractions that sum to 1"),
        ({"depth": 0}, "depth=0: expected a number of bits from 1 to 32"),
        ({"ground": "clear"}, "ground='clear': expected a colour, such as white"),
        ({"copies": "no"}, "copies='no': expected one of warn, refuse, allow"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images(**options)


# How pictures are read


def test_depth_and_ground_are_options(root: Path) -> None:
    values = np.full((8, 8), 2048, dtype=np.uint16)
    clear = np.zeros((8, 8, 4), dtype=np.uint8)
    for name in NAMES:
        shutil.rmtree(root / name)
    for number, name in enumerate(NAMES[:2]):
        (root / name).mkdir()
        Image.fromarray(values + 1000 * number).save(root / name / "deep.png")
        Image.fromarray(np.pad(clear, ((0, 0), (0, number), (0, 0)))).save(root / name / "clear.png")
    _, pixels = load(root, 8, "L", 12, "#404040")
    assert pixels[:, 0, 4, 4].tolist() == [64, round(2048 / 4095 * 255), 64, round(3048 / 4095 * 255)]
    with pytest.warns(UserWarning, match="no 16-bit image is brighter than 3048 of 65535: if they hold 12 bits, give"):
        assert load(root, 8, "L")[1][:, 0, 4, 4].tolist() == [255, 8, 255, 12]
    images._pixels.cache_clear()
    with pytest.warns(UserWarning, match="no 16-bit image"):  # from the cache, too
        load(root, 8, "L")
    family = Images(
        str(root), size=8, grey=True, depth=12, ground="black", ways=2, queries=1, fractions=(1.0, 0.0, 0.0)
    )
    inputs = family.sample(1, "train", generator()).inputs
    assert sorted(inputs[:, 0, 4, 4].tolist()) == [0, 0, 128, 190]


# The cache


def test_data_sets_that_look_alike_do_not_share_pixels(tmp_path: Path) -> None:
    """Names, sizes and times of the files are the same."""
    means = []
    for place, level in (("one", 10), ("other", 200), ("other", 90)):
        for name in ("a", "b"):
            path = tmp_path / place / "data" / name / "0.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), level + (name == "b"), np.uint8)).save(path)
            os.utime(path, ns=(10, 10))
        images._pixels.cache_clear()
        means.append(float(load(tmp_path / place / "data", 8, "RGB")[1][0].float().mean()))
    assert means == [10, 200, 90]


# What is no picture of a class

LITTER = (".ipynb_checkpoints", ".thumbnails", ".Trash-1000", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")


@pytest.mark.parametrize("name", LITTER)
def test_hidden_folders_and_copies_are_no_part_of_the_data(root: Path, name: str) -> None:
    expected = listed(root)
    shutil.copytree(root / "ant", root / name / "ant")
    shutil.copytree(root / "bee", root / "bee" / name)
    shutil.copytree(root / "cat", root / "cat" / name / "deeper")
    (root / "dog" / ".0.png.swp.png").write_bytes(b"no image")
    (root / "dog" / "Thumbs.db").write_bytes(b"no image")
    assert listed(root) == expected


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "tga", "JPG", "qoi", "pcx"])
def test_all_kinds_that_pillow_reads_are_taken(root: Path, suffix: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(root / "ant" / f"4.{suffix}")
    listing = listed(root)
    assert len(listing.files) == 25
    assert load(root, 8, "RGB")[1][4].float().mean() == pytest.approx(7, abs=2)


def test_files_that_are_passed_over_are_told(root: Path) -> None:
    for name in ("drawing.svg", "raw.nef", "nameless"):
        (root / "ant" / name).write_bytes(b"some")
    (root / "ant" / "gone.png").symlink_to(root / "nowhere.png")
    paint(root / "overview.png", 1, 2)
    with pytest.warns(UserWarning, match=r"5 files in .*animals were passed over, such as ant/drawing.svg: no picture"):
        assert len(listed(root).files) == 24


@pytest.mark.parametrize("suffix", ["heic", "HEIF", "jxl"])
def test_photographs_that_cannot_be_read_are_refused(root: Path, suffix: str) -> None:
    (root / "ant" / f"phone.{suffix}").write_bytes(b"some")
    with pytest.raises(
        ValueError, match=rf"1 photographs .* such as .*phone.{suffix}: Pillow knows no {suffix.upper()}"
    ):
        listed(root)


# Copies of pictures


def test_the_same_picture_again_is_told(root: Path) -> None:
    move_to_splits(root, "val")
    shutil.copy(root / "train" / "ant" / "0.png", root / "test" / "eel" / "copy.png")
    shutil.copy(root / "train" / "ant" / "1.png", root / "train" / "ant" / "1 (1).png")
    with Image.open(root / "train" / "ant" / "2.png") as picture:
        picture.save(root / "train" / "bee" / "2.bmp")
    told = (
        r"3 files show the same picture as another one \(1 in two splits, 1 in two classes, 1 twice in a class\), such "
        "as train/ant/0.png and test/eel/copy.png: scores may be too good"
    )
    for _ in range(2):  # also when the pixels come from the cache
        with pytest.warns(UserWarning, match=told):
            load(root, 8, "RGB")
        images._pixels.cache_clear()
    with pytest.raises(ValueError, match=told):
        Images(str(root), ways=2, queries=1, copies="refuse").sample(1, "train", generator())
    Images(str(root), ways=2, queries=1, copies="allow").sample(1, "train", generator())


# Levels of folders


def check_splits(root: Path, expected: dict[Any, Sequence[str]] | None) -> None:
    listing = listed(root)
    found = listing.classes and {
        split: [listing.names[label] for label in labels] for split, labels in listing.classes.items()
    }
    assert found == expected


PAIRS: dict[Any, Sequence[str]] = {"train": ["ant", "bee"], "validation": ["cat", "dog"], "test": ["eel", "fox"]}


@pytest.mark.parametrize(
    "names",
    [
        ("meta_train", "meta_val", "meta_test"), ("base", "val", "novel"), ("Train", "Val", "Test"),
        ("images_background", "valid", "images_evaluation"), ("TRAINING", "Validation", "TESTING"),
        ("meta-train", "meta-valid", "meta-test"), ("metatrain", "metaval", "metatest"),
        ("train_set", "dev_set", "test_set"), ("train", "val", "evaluation"),
        ("train-images", "val images", "test.images"),
    ],
)  # fmt: skip
def test_usual_names_of_splits(root: Path, names: tuple[str, str, str]) -> None:
    move_to_splits(root, "val")
    for old, new in zip(("train", "val", "test"), names, strict=True):
        (root / old).rename(root / f"{new}.")
        (root / f"{new}.").rename(root / new)
    check_splits(root, PAIRS)


def test_two_splits_of_omniglots_names(root: Path) -> None:
    (root / "images_background" / "Latin").mkdir(parents=True)
    (root / "images_evaluation" / "Greek").mkdir(parents=True)
    for name in NAMES[:4]:
        (root / name).rename(root / "images_background" / "Latin" / name)
    for name in NAMES[4:]:
        (root / name).rename(root / "images_evaluation" / "Greek" / name)
    latin = ["Latin/ant", "Latin/bee", "Latin/cat", "Latin/dog"]
    check_splits(root, {"train": latin, "test": ["Greek/eel", "Greek/fox"]})
    for split in ("images_background", "images_evaluation"):
        for alphabet in list((root / split).iterdir()):
            for name in list(alphabet.iterdir()):
                name.rename(root / split / name.name)
            alphabet.rmdir()
    check_splits(root, {"train": list(NAMES[:4]), "test": list(NAMES[4:])})


@pytest.mark.parametrize("above", ["data", "images", "a/b"])
def test_one_folder_too_deep(root: Path, tmp_path: Path, above: str) -> None:
    place = tmp_path / "deep" / above
    shutil.copytree(root, place)
    check_splits(tmp_path / "deep", None)
    assert listed(tmp_path / "deep").names == NAMES
    move_to_splits(place, "val")
    check_splits(tmp_path / "deep", PAIRS)
    (place / "train").rename(place / "within")
    (place / "train").mkdir()
    (place / "within").rename(place / "train" / "images")
    check_splits(tmp_path / "deep", PAIRS)


def test_folders_that_look_like_splits_are_shown(root: Path) -> None:
    move_to_splits(root, "val")
    for old, new in (("train", "part_a"), ("val", "part_b"), ("test", "part_c")):
        (root / old).rename(root / new)
    seen = (
        r"animals holds folders of folders of images, .* seen: animals/\{part_a/\{ant/\{4 images\}, bee/\{4 images\}"
        r"\}, .*; call the folders of the splits train, val and test"
    )
    with pytest.raises(ValueError, match=seen):
        listed(root)
    (root / "part_a").rename(root / "train")
    (root / "part_b").rename(root / "val")
    with pytest.raises(ValueError, match=r"animals holds splits and folders beside them, .*part_c/\{eel"):
        listed(root)
    (root / "part_c").rename(root / "Training")
    with pytest.raises(ValueError, match="animals holds two folders of one split"):
        listed(root)
    shutil.rmtree(root / "Training")
    shutil.move(root / "val" / "cat", root / "val" / "images")
    shutil.rmtree(root / "val" / "dog")
    with pytest.raises(ValueError, match="val holds images without folders for their classes"):
        listed(root)


def test_splits_without_folders_of_classes(root: Path) -> None:
    for split, name in (("train", "ant"), ("test", "bee")):
        (root / name).rename(root / split)
    for name in NAMES[2:]:
        shutil.rmtree(root / name)
    with pytest.raises(ValueError, match=r"train is no folder of classes: it holds no images"):
        listed(root)


def test_folders_that_only_look_like_splits(root: Path) -> None:
    """A class may be called train, and the images of a class may lie in folders of its sessions."""
    (root / "ant").rename(root / "train")
    check_splits(root, None)
    assert listed(root).names == (*NAMES[1:], "train")
    for name in listed(root).names:
        for session in ("one", "two"):
            (root / name / session).mkdir()
        for number in range(4):
            (root / name / f"{number}.png").rename(root / name / ("one", "two")[number // 2] / f"{number}.png")
    (root / "train").rename(root / "ant")
    assert listed(root).names == NAMES
    assert len(listed(root).files) == 24


# Names of classes


def test_names_are_compared_without_blanks_and_with_composed_accents(root: Path, tmp_path: Path) -> None:
    composed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    move_to_splits(root, "val")
    (root / "train" / "ant").rename(root / "train" / composed)
    (root / "test" / "eel").rename(root / "test" / unicodedata.normalize("NFD", composed))
    with pytest.raises(ValueError, match=f"the splits share 1 classes, such as {composed}"):
        listed(root)
    (root / "test" / unicodedata.normalize("NFD", composed)).rename(root / "train" / "bee ")
    listing = listed(root)
    assert listing.names == ("bee", composed, "cat", "dog", "fox")
    assert listing.labels.count(0) == 8


def test_names_that_differ_by_case_are_told(root: Path) -> None:
    (root / "bee").rename(root / "Ant")
    with pytest.warns(UserWarning, match="1 classes have names that differ only in capital letters .* 'Ant' and 'ant'"):
        assert len(listed(root).names) == 6


# Lists of the splits


def listing_of(root: Path, contents: bytes | str, name: str = "train.csv") -> images.Listing:
    (root / name).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return listed(root)


ROWS = "filename,label\nant/0.png,ant\nbee/0.png,bee\n"


@pytest.mark.parametrize(
    "contents",
    [
        b"\xef\xbb\xbf" + ROWS.encode(),
        ROWS.encode("utf-16"),
        ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace(",", ";").encode(),
        ROWS.replace(",", "\t").encode(),
        ROWS.replace(",", " , ").replace("filename", "Filename").encode(),
        ROWS.replace("/", "\\").encode(),
        (ROWS + ",\n\n" + ROWS.partition("\n")[2]).encode(),
        b"label,filename,\nant,ant/0.png,\nbee,./bee/0.png,\n",
        b"class_name,image_name\nant,0.png\nbee,0.png\n",
        b",class_name,image_name\n0,ant,0.png\n1,bee,0.png\n",
    ],
)
def test_lists_in_other_forms(root: Path, contents: bytes) -> None:
    listing = listing_of(root, contents)
    assert listing.files == (root / "ant" / "0.png", root / "bee" / "0.png")
    assert (listing.names, listing.labels) == (("ant", "bee"), (0, 1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ant/1.png", "row 4: the label is missing"),
        ("ant/1.png,", "row 4: the label is missing"),
        ("ant/1.png, ", "row 4: the label is missing"),
        (",ant", "row 4: the filename is missing"),
        ("ant/0.png,bee", "row 4: ant/0.png is of 'bee', and in row 2 of 'ant'"),
        ("./ant/0.png,bee", "row 4: ./ant/0.png is of 'bee', and in row 2 of 'ant'"),
        ("ant/1.png,ant,large", "row 4: 3 cells under 2 columns; quote commas"),
        ("ant/1.png,caf\xe9".encode("latin-1"), "row 4: byte 0xe9 is no UTF-8; save the file as UTF-8"),
        ('ant/1.png,"' + 140_000 * "a" + '"', "row 4: field larger than field limit"),
        ("ant/9.png,ant", r" names ant/9.png, which .*animals lacks; 1 of 3 are missing \(the first in row 4\)"),
    ],
)
def test_wrong_rows_are_told_by_file_and_row(root: Path, line: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.csv,? ?{message}"):
        listing_of(root, ROWS.encode() + (line if isinstance(line, bytes) else line.encode()) + b"\n")


def test_paths_outside_of_the_folder_are_read_with_a_word(root: Path, tmp_path: Path) -> None:
    paint(tmp_path / "far" / "1.png", red("ant"), 99)
    paint(tmp_path / "far" / "2.png", red("ant"), 98)
    lines = [ROWS.strip(), f"{tmp_path / 'far' / '1.png'},ant", "../far/2.png,ant", f"{root / 'bee' / '1.png'},bee", ""]
    with pytest.warns(
        UserWarning, match=r"train.csv names 2 files outside of .*animals, such as .*1.png in row 4: they"
    ):
        listing = listing_of(root, "\n".join(lines))
    assert listing.files[2:] == (tmp_path / "far" / "1.png", tmp_path / "far" / "2.png", root / "bee" / "1.png")
    with pytest.warns(UserWarning, match="outside"):
        assert load(root, 8, "RGB")[1][:, 2, 4, 4].tolist() == [10, 10, 99, 98, 60]


def test_a_file_whose_name_is_decomposed_on_disk(root: Path) -> None:
    composed = "\N{LATIN SMALL LETTER E WITH ACUTE}.png"
    (root / "ant" / "0.png").rename(root / "ant" / unicodedata.normalize("NFD", composed))
    assert len(listing_of(root, ROWS.replace("0.png,ant", f"{composed},ant")).files) == 2


@pytest.mark.parametrize("place", ["", "split", "splits"])
@pytest.mark.parametrize(
    "lines",
    [
        ("ant", "bee"),
        ("ant/0.png", "ant/1.png", "ant/2.png", "ant/3.png", "bee/0.png", "bee/1.png", "bee/2.png", "bee/3.png"),
        tuple(f"{name}/{number}.png {name}" for name in ("ant", "bee") for number in range(4)),
        tuple(f"images/{name}/{number}.png,{name}" for name in ("ant", "bee") for number in range(4)),
    ],
)
def test_wnid_folders_and_text_lists(root: Path, lines: tuple[str, ...], place: str) -> None:
    """The classes' folders lie in images/; lists name classes, or images."""
    (root / "images").mkdir()
    for name in NAMES:
        (root / name).rename(root / "images" / name)
    (root / place).mkdir(exist_ok=True)
    for old, new, split in (("ant", "ant", "train"), ("ant", "cat", "val"), ("ant", "eel", "test")):
        told = "\n".join(lines).replace("bee", NAMES[NAMES.index(new) + 1]).replace(old, new)
        (root / place / f"{split}.txt").write_text(told + "\n")
    check_splits(root, PAIRS)
    assert len(listed(root).files) == 24


def test_lists_one_folder_too_deep(root: Path, tmp_path: Path) -> None:
    (root / "train.csv").write_text(ROWS)
    shutil.copytree(root, tmp_path / "deep" / "mini-imagenet")
    inner = tmp_path / "deep" / "mini-imagenet"
    assert listed(tmp_path / "deep").files == (inner / "ant" / "0.png", inner / "bee" / "0.png")
    assert torch.equal(load(tmp_path / "deep", 8, "RGB")[1], load(root, 8, "RGB")[1])


def test_wrong_lines_are_told(root: Path) -> None:
    with pytest.raises(ValueError, match=r"train.txt, row 2: there is no folder gnu that holds images"):
        listing_of(root, "ant\ngnu\n", "train.txt")
    with pytest.raises(ValueError, match=r"train.txt names ant/7.png, which .* in row 2"):
        listing_of(root, "ant/0.png\nant/7.png ant\n", "train.txt")
    with pytest.raises(
        ValueError, match=r"row 2: 'gnu' is none of a folder of images, CLASS/FILE, or a file and its cl"
    ):
        listing_of(root, "ant/0.png\ngnu\n", "train.txt")
    (root / "gnu").mkdir()
    with pytest.raises(ValueError, match=r"train.txt, row 2: there is no folder gnu that holds images"):
        listing_of(root, "ant\ngnu\n", "train.txt")


def test_two_lists_of_one_split(root: Path) -> None:
    (root / "base.csv").write_text(ROWS)
    with pytest.raises(ValueError, match=r"base.csv and .*training.csv are both lists of the train split: keep one"):
        listing_of(root, ROWS, "training.csv")


def test_without_a_home_folder_images_train(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "METARL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(load(root, 8, "RGB")[1]) == 24
    assert [str(one.message)[:18] for one in said] == ["nothing is cached:"]


# Episodes that a folder cannot fill


def test_small_classes_are_left_out_if_asked(root: Path) -> None:
    (root / "ant" / "0.png").unlink()
    (root / "bee" / "0.png").unlink()
    options: dict[str, Any] = {"size": 8, "ways": 2, "queries": 3, "fractions": (1.0, 0.0, 0.0)}
    with pytest.raises(ValueError, match="class 'ant' of the train split has 3 items"):
        Images(str(root), **options).sample(1, "train", generator())
    with pytest.warns(
        UserWarning, match="classes with fewer items than an episode takes are left out: 2 of 6 in train"
    ):
        tasks = Images(str(root), drop_small=True, **options).sample(30, "train", generator())
    assert tasks.parameters["classes"].unique().tolist() == [2, 3, 4, 5]


def test_every_split_is_checked_before_training(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    move_to_splits(root, "val")
    for name in ("cat", "dog"):
        (root / "val" / name).rename(root / "train" / name)
    (root / "val").rmdir()
    command = ["train", "protonet", "images", "--recipe", "none", "--tasks.root", str(root)]
    command += ["--tasks.size", "8", "--tasks.queries", "1"]
    assert main([*command, "--tasks.ways", "3", "--out", str(root.parent / "run"), "--quiet"]) == 2
    assert capsys.readouterr().err == "metarl: the test split has 2 classes, but a task takes 3\n"
    assert not (root.parent / "run").exists()


def test_black_images_are_pixels_like_others(root: Path) -> None:
    """What of a folder is dark says nothing of its scale."""
    for name in NAMES:
        for number in range(4):
            pixels = np.zeros((8, 8, 3), np.uint8)
            pixels[number, NAMES.index(name)] = 1
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    family = Images(str(root), size=8, ways=2, queries=1)
    inputs = family.sample(2, "train", generator()).draw("support", generator()).inputs
    assert inputs.max() == pytest.approx(1 / 255)


# Families of one's own


def test_image_files_of_ones_own_are_cached_by_one_argument(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [root / name / f"{number}.png" for number in range(4) for name in NAMES]
    plain = read_images(files, 8)
    assert (plain.shape, plain.dtype) == ((24, 3, 8, 8), torch.uint8)
    assert plain[:, 0, 4, 4].tolist() == [red(name) for name in NAMES] * 4
    assert not list(root.parent.glob("cache/*"))
    assert torch.equal(read_images([str(file) for file in files], 8, cache="animals"), plain)
    assert [path.name.partition("-")[0] for path in root.parent.glob("cache/*")] == ["animals"]
    twice = read_images([files[0], files[0]], 8, "L")
    assert torch.equal(twice[0], twice[1])
    with monkeypatch.context() as patched:
        patched.setattr(images.decoding, "decoded", None)
        monkeypatch.chdir(root)
        relative = [os.path.relpath(file) for file in files]
        assert torch.equal(read_images(relative, 8, cache="animals"), plain)
    paint(files[0], 7, 7)
    assert read_images(files, 8, cache="animals")[0, :, 4, 4].tolist() == [7, 128, 7]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "which images"),
        (["ant/0.png", "ant/9.png"], {}, r"there is no file .*ant/9.png; 1 of 2 are missing"),
        (["ant/0.png"], {"size": 0}, "size=0"),
    ],
)
def test_wrong_files_of_ones_own(
    root: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match=message):
        read_images(files, **options)


@pytest.mark.parametrize("algorithm", ["maml", "reptile", "protonet", "matching", "siamese", "snail"])
@pytest.mark.filterwarnings("ignore:.* no validation will be possible")
def test_recipes_ask_for_no_more_than_the_task(algorithm: str, root: Path) -> None:
    """A small folder of one's own trains without another option than its tasks'."""
    for number in range(4):
        for name in ("ewe", "yak"):
            paint(root / name / f"{number}.png", 100, 50 * number + 20)
    small = ["--tasks.root", str(root), "--tasks.size", "8", "--tasks.ways", "2", "--tasks.queries", "1"]
    small += ["--tasks.copies", "allow", "--tasks.fractions", "0.5", "0.25", "0.25"]
    asked = [*small, "--iterations", "1", "--meta-batch-size", "2", "--quiet", "--device", "cpu"]
    assert main(["train", algorithm, "images", *asked, "--out", str(root.parent / "run")]) == 0
