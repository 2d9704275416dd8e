"""Ranges of splits, and finite training sets, of families of Gymnasium environments."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl import open_run, runs
from metarl.cli import main
from metarl.commands.parsing import parse
from metarl.control import GymnasiumFamily, Sampling, from_training_set, tasks_with
from metarl.seeding import stream, uniform
from metarl.testing import check_family, family_outcomes

GRAVITY = spaces.Dict(g=spaces.Box(5.0, 15.0))
HEAVY = spaces.Dict(g=spaces.Box(15.0, 20.0))
BOTH = spaces.Dict(g=spaces.Box(5.0, 15.0), m=spaces.Box(0.5, 2.0))
PENDULUMS = GymnasiumFamily(
    "Pendulum-v1", GRAVITY, "attribute", Sampling(2, 9), splits={"test": HEAVY}, train_tasks=3, train_seed=1
)
"""Bound to a name, which a run folder records."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pendulums(parameters: spaces.Dict = GRAVITY, **options: Any) -> GymnasiumFamily:
    return GymnasiumFamily("Pendulum-v1", parameters, "attribute", Sampling(2, 9), **options)


def gravities(family: GymnasiumFamily, split: Any, number: int = 200, seed: int = 0) -> torch.Tensor:
    return family.sample(number, split, generator(seed)).parameters["g"].flatten()


def test_a_split_has_its_own_range_and_others_that_of_training() -> None:
    family = pendulums(splits={"test": HEAVY})
    plain = gravities(pendulums(), "test")
    assert torch.equal(gravities(family, "train"), plain) and torch.equal(gravities(family, "validation"), plain)
    # The same place in another range: (g - 5) / 10 of the way from 15 to 20.
    torch.testing.assert_close(gravities(family, "test"), 15 + (plain - 5) / 2)
    both = pendulums(splits={"test": HEAVY, "validation": spaces.Dict(g=spaces.Box(1.0, 2.0))})
    assert gravities(both, "validation").min() >= 1 and gravities(both, "validation").max() <= 2
    assert torch.equal(gravities(both, "test"), gravities(family, "test"))
    check_family(both)


def test_each_parameter_gets_its_own_range_in_whatever_order() -> None:
    test = spaces.Dict([("m", spaces.Box(3.0, 4.0)), ("g", spaces.Box(15.0, 20.0))])
    family = pendulums(BOTH, splits={"test": test})
    tasks = family.sample(50, "test", generator())
    assert list(tasks.parameters) == ["g", "m"]
    assert tasks.parameters["g"].min() >= 15 and 3 <= tasks.parameters["m"].min() <= tasks.parameters["m"].max() <= 4
    assert torch.equal(tasks.descriptors, torch.cat([tasks.parameters["g"], tasks.parameters["m"]], dim=1))


def test_the_parameter_space_covers_all_ranges() -> None:
    family = pendulums(splits={"test": spaces.Dict(g=spaces.Box(20.0, 25.0)), "validation": GRAVITY})
    assert family.parameter_space == spaces.Dict(g=spaces.Box(5.0, 25.0))
    assert pendulums().parameter_space is GRAVITY
    assert tasks_with(family, {"g": [24.0]}).parameters["g"].tolist() == [[24.0]]
    with pytest.raises(ValueError, match="the task parameter g is"):
        tasks_with(family, {"g": [26.0]})
    lanes = family.environment(2, torch.device("cpu"))
    lanes.reset(options={"g": np.array([[24.0], [6.0]])})
    assert family.single({"g": 24.0}).reset(seed=0)[0].shape == (3,)
    assert family.own({"g": 24.0}).unwrapped.g == 24.0  # type: ignore[attr-defined]
    counts = counters(spaces.Discrete(3, start=2), test=spaces.Discrete(2, start=7))
    assert counts.parameter_space == spaces.Dict(n=spaces.Discrete(7, start=2))
    wide = spaces.Dict(g=spaces.Box(0.1, 0.2, dtype=np.float64))
    assert pendulums(splits={"test": wide}).parameter_space["g"].low == 0.1


def test_tasks_of_an_evaluation_do_not_depend_on_their_number() -> None:
    for split in ("train", "validation", "test"):
        for train_tasks in (None, 4):
            family = pendulums(BOTH, splits={"test": BOTH}, train_tasks=train_tasks)
            few, many = (family.sample(number, split, generator(3)) for number in (5, 40))  # type: ignore[arg-type]
            assert torch.equal(few.descriptors, many.descriptors[:5])


def test_training_has_a_finite_set_of_tasks_and_other_splits_have_not() -> None:
    family = pendulums(train_tasks=4)
    seen = [set(gravities(family, "train", 200, seed).tolist()) for seed in range(3)]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 4
    assert torch.equal(gravities(family, "test"), gravities(pendulums(), "test"))
    assert not seen[0] & set(gravities(family, "validation").tolist())
    assert set(gravities(pendulums(train_tasks=9), "train").tolist()) > seen[0]
    assert not set(gravities(pendulums(train_tasks=4, train_seed=1), "train").tolist()) & seen[0]
    assert min(seen[0]) >= 5 and max(seen[0]) <= 15


def test_the_set_is_that_of_the_seed_and_picks_are_uniform() -> None:
    family = pendulums(train_tasks=4)
    members = family.parameters["g"]
    expected = pendulums().sample(4, "train", stream(0, "training set")).parameters["g"].flatten()
    picked = (4 * uniform(generator(5), 4000, dtype=torch.float64)).long()
    assert torch.equal(gravities(family, "train", 4000, 5), expected[picked])
    assert all(low in members for low in expected.reshape(-1, 1).numpy())
    counts = torch.bincount(picked)
    assert counts.min() > 900 and counts.max() < 1100  # 1000 each, standard deviation 27


@pytest.mark.parametrize("train_tasks", [1, 4])
def test_the_contract_holds(train_tasks: int) -> None:
    check_family(pendulums(splits={"test": HEAVY}, train_tasks=train_tasks))


def test_the_contract_notes_a_single_training_task() -> None:
    found = {outcome.check: outcome for outcome in family_outcomes(pendulums(train_tasks=1))}
    assert found["seeding"].verdict == found["independence"].verdict == "note"
    assert "is the training set to hold one task?" in found["seeding"].messages[0]
    assert "none could be changed" in found["independence"].messages[0]


class Counter(gymnasium.Env):
    """Its observations are ``wide`` numbers."""

    def __init__(self, n: int = 3, wide: int = 1):
        self.observation_space, self.action_space = spaces.Box(0, 100, (wide,)), spaces.Discrete(2)
        self.n, self.count = n, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.full(self.observation_space.shape, 0.0), {}

    def step(self, action: int) -> Any:
        self.count += 1
        seen = np.full(self.observation_space.shape, float(self.count))
        return seen, float(self.n * action), self.count >= self.n, False, {}


def counters(train: Any, train_tasks: int | None = None, **splits: Any) -> GymnasiumFamily:
    ranges = {split: spaces.Dict(n=space) for split, space in splits.items()}
    return GymnasiumFamily(
        Counter, spaces.Dict(n=train), sampling=Sampling(2, 9), splits=ranges, train_tasks=train_tasks
    )


def test_splits_share_tasks_where_ranges_of_whole_numbers_overlap() -> None:
    some, others, overlapping = (spaces.Discrete(4, start=start) for start in (2, 6, 5))
    assert counters(some).splits_share_tasks
    assert not counters(some, test=others).splits_share_tasks
    assert counters(some, test=overlapping).splits_share_tasks
    assert counters(some, test=others, validation=others).splits_share_tasks  # validation chooses parameters, too
    assert not pendulums(splits={"test": GRAVITY}).splits_share_tasks
    check_family(counters(some, test=others))
    check_family(counters(some, 3, test=others))


def test_training_tasks_all_differ() -> None:
    family = counters(spaces.Discrete(30, start=2), train_tasks=30)
    assert family.sample(2000, "train", generator()).parameters["n"].unique().tolist() == list(range(2, 32))
    with pytest.raises(ValueError, match="train_tasks=31: expected at most 30, as there are no more different tasks"):
        counters(spaces.Discrete(30), train_tasks=31).sample(1, "train", generator())


def test_tasks_of_a_set_keep_their_parameters_together() -> None:
    def draw(number: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        values = uniform(generator, number, 2)
        return {"a": values, "b": values.sum(1)}

    found = from_training_set(draw, 5, 0, 50, generator())
    torch.testing.assert_close(found["a"].sum(1), found["b"])


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"test": spaces.Dict(m=spaces.Box(1.0, 2.0))}, "the test parameters are m: expected those in training, g"),
        ({"test": BOTH}, "the test parameters are g, m: expected those in training, g"),
        ({"test": spaces.Dict()}, "the test parameters are Dict(): expected a gymnasium.spaces.Dict"),
        ({"test": spaces.Box(1.0, 2.0)}, "the test parameters are Box("),
        (
            {"validation": spaces.Dict(g=spaces.Box(1.0, 2.0, (2,)))},
            "the validation range of 'g' is Box(1.0, 2.0, (2,)",
        ),
        ({"test": spaces.Dict(g=spaces.Discrete(3))}, "the test range of 'g' is Discrete(3): expected the kind and"),
        ({"test": spaces.Dict(g=spaces.Box(-np.inf, 1.0))}, "cannot sample 'g' from Box(-inf"),
        ({"train": HEAVY}, "splits names 'train': expected validation or test; parameters has the ranges in training"),
        ({"tset": HEAVY}, "splits names 'tset': expected validation or test"),
        (None, "splits is None: expected a dict from validation or test to its parameters"),
        ([HEAVY], "splits is [Dict("),
    ],
)
def test_other_ranges_that_make_no_sense_are_refused(splits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        pendulums(splits=splits)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("number", [0, -1, 1.5, "3", True])
def test_numbers_of_training_tasks_that_make_no_sense_are_refused(number: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"train_tasks={number!r}: expected at least 1, or None")):
        pendulums(train_tasks=number)


def test_the_spec_is_that_of_all_splits() -> None:
    one, three = spaces.Dict(wide=spaces.Discrete(1, start=1)), spaces.Dict(wide=spaces.Discrete(1, start=3))
    family = GymnasiumFamily(Counter, one, splits={"test": three})
    with pytest.raises(ValueError, match=r"Counter: test tasks ask for Spec\(input_shape=\(3,\).*in training for Spec"):
        family.spec  # noqa: B018


def test_a_run_folder_knows_the_family_by_name(tmp_path: Path) -> None:
    place, folder = f"{__name__}:PENDULUMS", tmp_path / "run"
    record = runs.describe(PENDULUMS, place)
    assert record == {"reference": place, "options": {}}
    other = dataclasses.replace(PENDULUMS, train_tasks=5)
    assert runs.rebuild(runs.describe(other, place), "tasks") == other
    words = ["train", "maml", place, "--iterations", "1", "--meta-batch-size", "2", "--out", str(folder)]
    assert main([*words, "--tasks.train-tasks", "2", "--device", "cpu"]) == 0
    opened = open_run(folder)
    assert isinstance(opened.family, GymnasiumFamily)
    assert (opened.family.train_tasks, opened.family.splits) == (2, PENDULUMS.splits)
    assert opened.tasks(20).parameters["g"].min() >= 15
    assert opened.tasks(20, "validation").parameters["g"].max() <= 15


def test_ranges_of_splits_cannot_be_given_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    kind: Any = dataclasses.make_dataclass("Joined", [("tasks", GymnasiumFamily, PENDULUMS)])
    with pytest.raises(SystemExit):
        parse(kind, ["--help"], "train", "")
    assert "--tasks.train-tasks" in (shown := capsys.readouterr().out) and "splits" not in shown.replace("Splits", "")
    assert parse(kind, ["--tasks.train-seed", "4"], "train", "").tasks.splits is PENDULUMS.splits
