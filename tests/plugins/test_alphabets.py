"""Alphabets of Omniglot as tasks: always the same characters, numbers and held-out drawings."""

import os
from typing import Any

import pytest
import torch

from metarl.fewshot import NWayKShot
from metarl.types import Split
from metarl_plugins import alphabets, omniglot
from metarl_plugins.alphabets import Alphabets
from metarl_plugins.omniglot import Omniglot

SIZES = {"A": 6, "B": 4, "C": 3, "D": 5, "E": 4, "F": 4}
CHARACTERS = [f"{name}/character{number:02}" for name, size in SIZES.items() for number in range(1, size + 1)]
SPLITS: dict[Split, str] = {"train": "ABC", "validation": "D", "test": "EF"}
DRAWERS = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def family(seed: int = 0, **options: Any) -> Alphabets:
    """Four ways, two support drawings, one query; each drawing tells its own number, and its corner its turns."""
    count = len(CHARACTERS)
    images = torch.arange(count * DRAWERS).float().reshape(-1, 1, 1, 1) * torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    classes = {
        split: [number for number, name in enumerate(CHARACTERS) if name[0] in names] for split, names in SPLITS.items()
    }
    episodes = {"ways": 4, "shots": 2, "queries": 1, "test_queries": 1, "classes": classes, "names": CHARACTERS}
    labels = torch.arange(count).repeat_interleave(DRAWERS)
    return Alphabets(NWayKShot(images, labels, scale=1.0, **(episodes | options)), DRAWERS, seed)


def names(tasks: omniglot.EpisodeTasks) -> list[str]:
    """Return the alphabet of each task, which must be the same for all of its characters."""
    found = [{CHARACTERS[one][0] for one in row} for row in tasks.parameters["classes"].tolist()]
    assert all(len(one) == 1 for one in found)
    return ["".join(one) for one in found]


def test_a_task_has_characters_of_one_alphabet_and_the_same_people_draw_them() -> None:
    tasks = family().sample(40, "train", generator())
    assert set(names(tasks)) == {"A", "B"}  # C is too small
    assert all(len(set(row)) == 4 for row in tasks.parameters["classes"].tolist())
    people = []
    for items in (tasks.support, tasks.query):
        assert torch.equal(items // DRAWERS, tasks.parameters["classes"].unsqueeze(-1).expand_as(items))
        people.append(items % DRAWERS)
        assert torch.equal(people[-1], people[-1][:, :1].expand_as(items))
    drawn_by = torch.cat(people, dim=2)[:, 0]
    assert all(len(set(row)) == 3 for row in drawn_by.tolist())


def test_a_task_is_always_the_same_but_for_another_seed() -> None:
    def told(seed: int, number: int = 40, draws: int = 0) -> dict[str, tuple[list[int], list[int]]]:
        tasks = family(seed).sample(number, "train", generator(draws))
        rows = zip(names(tasks), tasks.support.flatten(1).tolist(), tasks.query.flatten(1).tolist(), strict=True)
        found = dict[str, tuple[list[int], list[int]]]()
        for name, support, query in rows:
            assert found.setdefault(name, (support, query)) == (support, query)
        return found

    assert told(0) == told(0, draws=1)
    assert told(0) != told(1)


def test_every_alphabet_comes_once_before_one_comes_again_and_in_its_order_at_test() -> None:
    for draws in range(5):
        tasks = family().sample(6, "train", generator(draws))
        assert all(set(names(tasks)[first : first + 2]) == {"A", "B"} for first in (0, 2, 4))
        assert torch.equal(family().sample(3, "train", generator(draws)).support, tasks.support[:3])
    assert len({tuple(names(family().sample(2, "train", generator(draws)))) for draws in range(9)}) == 2
    assert names(family().sample(2, "test", generator(7))) == ["E", "F"]
    assert family().sample(1, "test", generator()).parameters["alphabet"].tolist() == [0]


def test_targets_are_the_numbers_of_the_characters_and_turns_are_those_of_the_options() -> None:
    tasks = family(rotations="train").sample(30, "train", generator())
    batch = tasks.draw("support", generator(1))
    values, corners = batch.inputs.flatten(2).max(2)
    classes = tasks.parameters["classes"].gather(1, batch.targets)
    assert torch.equal(values.long() // DRAWERS, classes)
    turns = tasks.parameters["quarter_turns"].gather(1, batch.targets)
    assert set(turns.flatten().tolist()) == {0, 1, 2, 3}
    known = values > 0  # the drawing 0 has no ink
    assert torch.equal(corners[known], torch.tensor([0, 2, 3, 1])[turns[known]])
    assert not family(rotations="train").sample(2, "test", generator()).parameters["quarter_turns"].any()
    assert "quarter_turns" not in family().sample(2, "train", generator()).parameters


def test_training_may_have_sizes_of_its_own() -> None:
    tasks = family(train_ways=5, train_shots=3, queries=2).sample(2, "train", generator())
    assert tasks.support.shape == (2, 5, 3)
    assert tasks.query.shape == (2, 5, 2)
    assert names(tasks) == ["A", "A"]
    assert family(train_ways=5).sample(2, "test", generator()).support.shape == (2, 4, 2)


def test_what_a_split_cannot_fill_is_told() -> None:
    with pytest.raises(ValueError, match=r"test split has 2 alphabets of 4 characters, .* ask for 2 tasks or fewer"):
        family().sample(3, "test", generator())
    with pytest.raises(ValueError, match="no alphabet of the validation split has 6 characters; ask for fewer ways"):
        family(ways=6).check_split("validation")
    with pytest.raises(ValueError, match="have 5 drawings, but support and query of the test split take 6 of each"):
        family(test_queries=4).check_split("test")
    with pytest.raises(ValueError, match="at least one task is needed, not 0"):
        family().sample(0, "train", generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "random"}, "alphabets with split='random': some of them would be in two splits; use background"),
        ({"shots": (1, 5)}, "alphabets with a range of ways, shots or queries"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Omniglot(**({"alphabets": True, "split": "background"} | options))


def test_large_alphabets_come_in_the_order_of_their_names() -> None:
    told = alphabets.large(["B/1", "A/1", "B/2", "C/1", "A/2"], range(5), 2)
    assert list(told.items()) == [("A", [1, 4]), ("B", [0, 2])]


@pytest.mark.skipif(not os.environ.get("METARL_DATA"), reason="METARL_DATA does not name the data")
def test_the_papers_tasks_of_the_real_data() -> None:
    paper = Omniglot(split="background", alphabets=True, rotations="none", ways=20, shots=15, queries=5, test_queries=5)
    drawings = omniglot.load(omniglot.located(None))
    numbers: dict[Split, int] = {"train": 21, "validation": 5, "test": 20}
    seen = list[str]()
    for split, number in numbers.items():
        paper.check_split(split)
        tasks = paper.sample(number, split, generator())
        assert tasks.support.shape == (number, 20, 15)
        assert tasks.query.shape == (number, 20, 5)
        rows = tasks.parameters["classes"].tolist()
        seen += [drawings.characters[row[0]].partition("/")[0] for row in rows]
        drawn = torch.cat([tasks.support, tasks.query], dim=2).sort(2).values
        first = 20 * tasks.parameters["classes"].unsqueeze(-1)
        assert torch.equal(drawn, first + torch.arange(20))  # all drawings of each character
        assert torch.equal(drawings.labels[drawn[..., 0]], tasks.parameters["classes"])
    assert len(set(seen)) == 46
    with pytest.raises(ValueError, match="the test split has 20 alphabets"):
        paper.sample(21, "test", generator())
    one_shot = Omniglot(split="background", alphabets=True, ways=20, train_shots=15, test_episodes="alphabet")
    assert one_shot.sample(30, "test", generator()).support.shape == (30, 20, 1)
