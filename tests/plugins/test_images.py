import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.types import Spec
from metarl_plugins import images
from metarl_plugins.images import Images, listed, load

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
        inputs, targets = tasks.draw(None, None, "support", generator())
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
    assert tasks.draw(None, None, "query", generator()).inputs.shape == (3, 2, 1, 8, 8)
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
        paint(root / "ant" / f"{number}.png", red("ant"), 0)
    new = Images(root.name, **options).sample(1, "train", generator()).inputs
    assert (len(old), len(new)) == (24, 26)
    (root.parent / "elsewhere").mkdir()
    paint(root.parent / "elsewhere" / root.name / "ant" / "0.png", 1, 1)
    paint(root.parent / "elsewhere" / root.name / "bee" / "0.png", 1, 1)
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
    queries = [tasks.draw(None, None, "query", generator())]
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
        ({"fractions": (0.5, 0.5, 0.5)}, "expected shares that sum to 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images(**options)
