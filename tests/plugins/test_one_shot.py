"""Lake's one-shot runs: episodes dealt by the protocol, and the published ones from their archive."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarl_plugins import omniglot, one_shot
from metarl_plugins.omniglot import Omniglot

CHARACTERS = [f"{name}/character{number:02}" for name, count in (("A", 25), ("B", 20), ("C", 19), ("D", 30))
              for number in range(1, count + 1)]  # fmt: skip
DRAWERS = 5
ITEMS = torch.arange(len(CHARACTERS) * DRAWERS).reshape(-1, 1, 1, 1)
"""Each drawing tells its own number."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dealt(number: int, seed: int = 0) -> one_shot.EpisodeTasks:
    allowed = [index for index, name in enumerate(CHARACTERS) if not name.startswith("D")]
    return one_shot.dealt(ITEMS, CHARACTERS, allowed, DRAWERS, number, generator(seed))


def test_episodes_have_one_alphabet_one_person_for_support_and_another_for_query() -> None:
    tasks = dealt(200)
    characters, people = ITEMS[tasks.support].flatten(1) // DRAWERS, ITEMS[tasks.support].flatten(1) % DRAWERS
    assert torch.equal(characters, tasks.parameters["classes"])
    assert torch.equal(ITEMS[tasks.query].flatten(1) // DRAWERS, characters)
    others = ITEMS[tasks.query].flatten(1) % DRAWERS
    assert torch.equal(people, tasks.parameters["drawers"][:, :1].expand(200, 20))
    assert torch.equal(others, tasks.parameters["drawers"][:, 1:].expand(200, 20))
    assert (people != others).all()
    alphabets = [{CHARACTERS[one][0] for one in row} for row in characters.tolist()]
    assert all(len(found) == 1 for found in alphabets)
    assert set.union(*alphabets) == {"A", "B"}  # C is too small, D is not for evaluation
    assert all(len(set(row)) == 20 for row in characters.tolist())
    assert {(one, other) for one, other in tasks.parameters["drawers"].tolist()} == {
        (one, other) for one in range(DRAWERS) for other in range(DRAWERS) if one != other
    }


def test_an_episode_does_not_depend_on_how_many_there_are() -> None:
    assert torch.equal(dealt(3).support, dealt(10).support[:3])
    assert not torch.equal(dealt(3).support, dealt(3, seed=1).support)


def test_alphabets_that_are_all_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="no alphabet among the characters for evaluation has 20 characters"):
        one_shot.dealt(ITEMS, CHARACTERS, range(45, 64), DRAWERS, 1, generator())


def drawing(number: int) -> bytes:
    """White but for as many black rows as the number."""
    pixels = np.ones((56, 56), dtype=bool)
    pixels[: 2 * number] = False
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs of three characters: the drawings of class c of run r have 10 r + c rows."""
    monkeypatch.setattr(one_shot, "RUNS", 2)
    monkeypatch.setattr(one_shot, "WAYS", 3)
    with zipfile.ZipFile(tmp_path / "all_runs.zip", "w") as archive:
        for run in (1, 2):
            pairs = {2: 1, 3: 2, 1: 3} if run == 1 else {1: 1, 2: 2, 3: 3}  # class of each test drawing
            for number, item in pairs.items():
                archive.writestr(f"run{run:02}/training/class{number:02}.png", drawing(10 * run + number))
                archive.writestr(f"run{run:02}/test/item{number:02}.png", drawing(10 * run + item))
            lines = [
                f"run{run:02}/test/item{one:02}.png run{run:02}/training/class{two:02}.png"
                for one, two in pairs.items()
            ]
            archive.writestr(f"run{run:02}/class_labels.txt", "\n".join(lines) + "\n")
    return tmp_path


def check(tasks: one_shot.EpisodeTasks) -> None:
    support, query = tasks.draw("support", generator()), tasks.draw("query", generator(1))
    for batch in (support, query):
        rows = batch.inputs.sum((2, 3, 4)) / 28
        wanted = 10 * tasks.parameters["run"].unsqueeze(1) + 1 + batch.targets
        assert torch.allclose(rows, wanted.float(), atol=0.1)
    assert tasks.parameters["run"].tolist() == [1, 2]


def test_published_runs_pair_drawings_as_their_lists_say(runs: Path) -> None:
    check(one_shot.published(runs, 28, 2))
    with zipfile.ZipFile(runs / "all_runs.zip") as archive:
        archive.extractall(runs / "one-shot-classification" / "all_runs")
    (runs / "all_runs.zip").unlink()
    check(one_shot.published(runs, 28, 2))


def test_runs_that_are_missing_too_many_or_damaged_are_told(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="published 2 one-shot runs, and 3 were asked for: --tasks 2, or fewer"):
        one_shot.published(runs, 28, 3)
    with pytest.raises(
        ValueError, match=r"does not hold Lake's runs: fetch all_runs.zip .*--tasks.test-episodes alphabet"
    ):
        one_shot.published(tmp_path / "elsewhere", 28, 1)
    whole = (runs / "all_runs.zip").read_bytes()
    (runs / "all_runs.zip").write_bytes(whole[:200])
    with pytest.raises(ValueError, match="is no zip archive, or was cut short"):
        one_shot.published(runs, 28, 1)
    with zipfile.ZipFile(runs / "all_runs.zip", "w") as archive:
        archive.writestr("run01/class_labels.txt", "run01/test/item01.png run01/training/class01.png\n")
    with pytest.raises(ValueError, match="run 1 pairs 1 characters, expected 3; fetch it again"):
        one_shot.published(runs, 28, 1)
    (runs / "all_runs.zip").unlink()
    with zipfile.ZipFile(runs / "all_runs.zip", "w") as archive:
        archive.writestr("run01/nothing.txt", "")
    with pytest.raises(ValueError, match=r"is not complete: .*class_labels.txt.*; fetch it again"):
        one_shot.published(runs, 28, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_episodes": "lakes"}, "test_episodes='lakes': expected one of sampled, alphabet, lake"),
        ({"split": "random"}, "test_episodes='lake' with split='random': its alphabets would be trained on"),
        ({"ways": 5}, "with ways=5, shots=1, test_queries=None: expected 20 ways, 1 shot and 1 query"),
        ({"shots": 5}, "with ways=20, shots=5"),
        ({"test_queries": 2}, "test_queries=2: expected 20 ways"),
        ({"rotations": "all"}, "with rotations='all': nobody turned those drawings"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_runs_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Omniglot(**({"test_episodes": "lake", "split": "background", "ways": 20} | options))


def test_the_background_split_takes_parts_and_alphabets() -> None:
    names = ("Armenian/character01", "Atlantean/character01", "Zulu/character01")
    nothing = torch.zeros(0)
    drawings = omniglot.Drawings(nothing, nothing, names, (False, True, False))
    assert omniglot.background_split(drawings) == {"train": (2,), "validation": (0,), "test": (1,)}


@pytest.mark.skipif(not os.environ.get("METARL_DATA"), reason="METARL_DATA does not name the data")
def test_within_alphabets_of_the_real_data() -> None:
    family = Omniglot(split="background", ways=20, test_episodes="alphabet")
    tasks = family.sample(20, "test", generator())
    drawings = omniglot.load(omniglot.located(None))
    for row in tasks.parameters["classes"].tolist():
        assert len({drawings.characters[one].partition("/")[0] for one in row}) == 1
        assert all(drawings.evaluation[one] for one in row)
    family.check_split("test")
    assert set(family.sample(5, "train", generator()).parameters["classes"].flatten().tolist()) <= set(
        omniglot.background_split(drawings)["train"]
    )
