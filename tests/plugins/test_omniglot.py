"""Omniglot: a small data set of the same layout, and the real one where METARL_DATA names its folder."""

import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.types import Spec, Split
from metarl_plugins import omniglot
from metarl_plugins.omniglot import Omniglot, load, located, vinyals_split

SMALL = {"images_background": ("Zulu/character01", "Zulu/character02", "Beta/character01"),
         "images_evaluation": ("Alpha/character01", "Gamma/character01")}  # fmt: skip
NAMES = ("Alpha/character01", "Beta/character01", "Gamma/character01", "Zulu/character01", "Zulu/character02")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawing(character: str, number: int) -> bytes:
    """Return a PNG, white but for a black block whose rows tell the character and whose columns the drawing."""
    pixels = np.ones((105, 105), dtype=bool)
    row, column = 15 * NAMES.index(character), 15 * number
    pixels[row : row + 15, column : column + 15] = False
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a data set of five characters with four drawings each, as archives."""
    monkeypatch.setenv("METARL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARL_DATA", raising=False)
    monkeypatch.setattr(omniglot, "CHARACTERS", {part: len(names) for part, names in SMALL.items()})
    monkeypatch.setattr(omniglot, "DRAWINGS", 4)
    monkeypatch.setattr(omniglot, "RANDOM_SIZES", (2, 1, 2))
    root = tmp_path / "data" / "omniglot"
    root.mkdir(parents=True)
    for part, characters in SMALL.items():
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            for character in characters:
                for number in range(4):
                    archive.writestr(f"{part}/{character}/0001_{number + 1:02}.png", drawing(character, number))
            archive.writestr(f"__MACOSX/{part}/{characters[0]}/._0001_01.png", b"no image")
    omniglot._drawings.cache_clear()
    return root


def extract(root: Path) -> None:
    for part in SMALL:
        with zipfile.ZipFile(root / f"{part}.zip") as archive:
            archive.extractall(root)
        (root / f"{part}.zip").unlink()


def check(drawings: omniglot.Drawings) -> None:
    assert drawings.characters == NAMES
    assert drawings.images.shape == (20, 1, 28, 28)
    assert drawings.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    # 15 of 105 pixels are 4 of 28.
    for item in range(20):
        row, column = 4 * (item // 4), 4 * (item % 4)
        ink = drawings.images[item, 0, row : row + 4, column : column + 4]
        assert ink[1:3, 1:3].min() > 240
        assert drawings.images[item].double().sum() == pytest.approx(16 * 255, rel=0.05)


def test_archives(small: Path) -> None:
    check(load(small))


def test_extracted(small: Path) -> None:
    extract(small)
    check(load(small))
    shutil.copytree(small / "images_background", small / "python" / "images_background")
    assert located(str(small)) == small


def test_suffixes_in_capitals_and_what_systems_leave_behind(small: Path) -> None:
    extract(small)
    character = small / "images_background" / "Beta" / "character01"
    (character / "0001_01.png").rename(character / "0001_01.PNG")
    shutil.copy(character / "0001_02.png", character / "._0001_02.png")
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        shutil.copytree(character, small / "images_background" / "Beta" / name)
        shutil.copytree(character.parent, small / "images_background" / name)
    check(load(small))
    (small / "images_background").rename(small / "within")
    (small / "images_background").mkdir()
    (small / "within").rename(small / "images_background" / "images_background")
    check(load(small))


def test_a_cache_of_fewer_drawings_is_made_anew(small: Path, tmp_path: Path) -> None:
    load(small)
    (path,) = (tmp_path / "cache").iterdir()
    with np.load(path) as found:
        np.savez(path, images=found["images"][:-1], characters=found["characters"])
    omniglot._drawings.cache_clear()
    with pytest.warns(UserWarning, match="is made anew: images has shape"):
        check(load(small))


def test_a_clone_of_the_repository(small: Path) -> None:
    (small / "python").mkdir()
    for part in SMALL:
        (small / f"{part}.zip").rename(small / "python" / f"{part}.zip")
    assert located(str(small)) == small / "python"


def test_the_second_time_nothing_is_decoded(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(small)
    omniglot._drawings.cache_clear()
    monkeypatch.setattr(omniglot.decoding, "decode", None)
    check(load(small))
    shutil.copytree(small, small.parent / "copy")
    check(load(small.parent / "copy"))


def test_a_damaged_cache_is_made_anew(small: Path, tmp_path: Path) -> None:
    load(small)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    omniglot._drawings.cache_clear()
    with pytest.warns(UserWarning, match="cannot be read and is made anew"):
        check(load(small))


def test_a_changed_drawing_is_noticed(small: Path) -> None:
    extract(small)
    check(load(small))
    path = small / "images_background" / "Beta" / "character01" / "0001_01.png"
    path.write_bytes(drawing("Gamma/character01", 3))
    omniglot._drawings.cache_clear()
    images = load(small).images
    assert torch.equal(images[4], images[11])


def test_all_tasks_share_one_tensor(small: Path) -> None:
    one, other = Omniglot(str(small), ways=2), Omniglot(str(small), ways=2, shots=2)
    inputs = [family.sample(3, "train", generator()).inputs for family in (one, other, one)]
    assert len({tensor.data_ptr() for tensor in inputs}) == 1
    assert inputs[0].dtype == torch.uint8


def test_episodes(small: Path, tmp_path: Path) -> None:
    family = Omniglot(str(small), ways=2, shots=1, test_queries=3, rotations="all")
    assert family.spec == Spec((1, 28, 28), 2, "classification", 0)
    tasks = family.sample(30, "test", generator())
    assert (tasks.support.shape, tasks.query.shape) == ((30, 2, 1), (30, 2, 3))
    support, query = (tasks.draw(role, generator()) for role in ("support", "query"))
    assert support.inputs.max() == 1
    assert support.inputs.min() == 0
    upright = support.inputs.rot90(-1, (-2, -1))
    turned = tasks.parameters["quarter_turns"].gather(1, support.targets) == 1
    rows = upright[turned].sum((1, 3)).argmax(1) // 4
    assert torch.equal(rows, tasks.parameters["classes"].gather(1, support.targets)[turned])
    with Image.open(family.picture(tasks, [query], tmp_path / "tasks.png")) as picture:
        assert picture.size[0] > 500


def test_the_split_is_by_seed(small: Path) -> None:
    def classes(seed: int, split: Split) -> set[int]:
        family = Omniglot(str(small), ways=2, split_seed=seed)
        return set(family.sample(50, split, generator()).parameters["classes"].flatten().tolist())

    assert classes(0, "train") | classes(0, "test") < set(range(5))
    assert not classes(0, "train") & classes(0, "test")
    assert {frozenset(classes(seed, "train")) for seed in range(10)} != {frozenset(classes(0, "train"))}
    with pytest.raises(ValueError, match="the validation split has 1 classes, but a task takes 2"):
        classes(0, "validation")
    with pytest.raises(
        ValueError, match=r"class '\w+/character0\d' of the train split has 4 items, but support and query .* take 6"
    ):
        Omniglot(str(small), ways=2, shots=3).sample(1, "train", generator())


def test_where_it_is(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"Name its folder with --tasks.root .*METARL_DATA.*brendenlake/omniglot"):
        Omniglot().sample(1, "train", generator())
    monkeypatch.setenv("METARL_DATA", str(small.parent))
    assert located(None) == small
    Omniglot(ways=2).sample(1, "train", generator())
    (small / "images_evaluation.zip").unlink()
    with pytest.raises(
        ValueError, match=r"omniglot does not hold Omniglot; expected images_background.zip and images_ev"
    ):
        located(None)
    with pytest.raises(ValueError, match="nowhere does not hold Omniglot"):
        located("nowhere")


def test_incomplete_data(small: Path) -> None:
    with zipfile.ZipFile(small / "images_background.zip") as archive:
        names = archive.namelist()
    extract(small)
    (small / names[5]).unlink()
    with pytest.raises(
        ValueError, match=r"holds 3 characters; .*Zulu/character02 has 3: expected 3 of 4 drawings each"
    ):
        load(small)
    shutil.rmtree(small / "images_background" / "Zulu")
    with pytest.raises(ValueError, match="images_background holds 1 characters: expected 3 of 4 drawings each"):
        load(small)


def test_damaged_data(small: Path) -> None:
    whole = (small / "images_background.zip").read_bytes()
    (small / "images_background.zip").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"images_background.zip is no zip archive, or was cut short"):
        load(small)
    damaged = bytearray(whole)
    damaged[whole.index(b"IDAT") + 6] ^= 255
    (small / "images_background.zip").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"cannot read images_background/Zulu/character01/0001_01.png \(BadZipFile"):
        load(small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1}, "ways=1"),
        ({"shots": 0}, "shots=0"),
        ({"rotations": "test"}, "rotations='test': expected one of none, train, all"),
        ({"split": "lake"}, "split='lake': expected one of random, vinyals"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Omniglot(**options)


# The real data

DATA = os.environ.get("METARL_DATA")
real = pytest.mark.skipif(not DATA, reason="METARL_DATA names no folder that contains omniglot/")


@pytest.fixture(scope="module")
def drawings() -> omniglot.Drawings:
    omniglot._drawings.cache_clear()
    return load(located(None))


@real
def test_all_characters_are_there(drawings: omniglot.Drawings) -> None:
    assert len(drawings.characters) == 1623
    assert len({character.partition("/")[0] for character in drawings.characters}) == 50
    assert drawings.images.shape == (32460, 1, 28, 28)
    assert drawings.images.nbytes == 32460 * 784
    assert drawings.characters[0] == "Alphabet_of_the_Magi/character01"
    # Ink covers some of every drawing and most of none.
    covered = drawings.images.float().mean((1, 2, 3)) / 255
    assert covered.min() > 0.002
    assert covered.max() < 0.5


@real
def test_a_drawing_is_the_files(drawings: omniglot.Drawings) -> None:
    item = 20 * drawings.characters.index("Tifinagh/character55") + 19
    with zipfile.ZipFile(located(None) / "images_background.zip") as archive:
        name = "images_background/Tifinagh/character55/0964_20.png"
        picture = Image.open(io.BytesIO(archive.read(name))).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(drawings.images[item, 0].numpy(), 255 - np.asarray(picture))


@real
def test_the_vinyals_split_is_the_published_one(drawings: omniglot.Drawings) -> None:
    split = vinyals_split(drawings.characters)
    assert [len(part) for part in split.values()] == [1028, 172, 423]
    lists = located(None) / "splits"
    if not lists.is_dir():
        pytest.skip("the published lists are not beside the data")
    for name, part in (("train", "train"), ("val", "validation"), ("test", "test")):
        lines = (lists / f"vinyals_{name}.txt").read_text().split()
        assert {line.rpartition("/")[0] for line in lines} == {drawings.characters[label] for label in split[part]}
        assert len(lines) == 4 * len(split[part])


@real
@pytest.mark.parametrize("split", ["random", "vinyals"])
def test_splits_share_no_character(drawings: omniglot.Drawings, split: Any) -> None:
    family = Omniglot(ways=20, shots=1, queries=1, split=split)
    seen = [
        set(family.sample(1000, part, generator()).parameters["classes"].flatten().tolist())
        for part in ("train", "validation", "test")
    ]
    sizes = (1100, 100, 423) if split == "random" else (1028, 172, 423)
    assert [len(part) for part in seen] == list(sizes)
    assert len(set.union(*seen)) == 1623


@real
def test_episodes_of_the_papers_sizes(drawings: omniglot.Drawings) -> None:
    for ways, shots in ((5, 1), (5, 5), (20, 1), (20, 5)):
        tasks = Omniglot(ways=ways, shots=shots, train_shots=10).sample(4, "train", generator())
        support, query = (tasks.draw(role, generator()) for role in ("support", "query"))
        assert support.inputs.shape == (4, ways * 10, 1, 28, 28)
        assert query.inputs.shape == (4, ways * shots, 1, 28, 28)
