import resource
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl.cli import main
from metarl.fewshot.classification import NWayKShot, on_device, rotated
from metarl.testing.batches import tensors
from metarl.types import Examples, Spec, Split

CLASSES = {"train": [0, 1, 2, 3], "validation": [4, 5], "test": [6, 7, 8]}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(**options: Any) -> NWayKShot:
    """Nine classes, of 10 to 18 items; the input of item i is the number i, its label LABELS[i]."""
    return NWayKShot(
        torch.arange(len(LABELS)).float().unsqueeze(1), LABELS, **{"ways": 2, "classes": CLASSES} | options
    )


LABELS = torch.repeat_interleave(torch.arange(9), torch.arange(10, 19))[torch.randperm(126, generator=generator(5))]


def draws(family: NWayKShot, tasks: int = 50, split: Split = "train") -> tuple[Tensor, Examples, Examples]:
    """Return the classes of sampled tasks, their support and their query."""
    sampled = family.sample(tasks, split, generator())
    support = sampled.draw("support", generator(1))
    return sampled.parameters["classes"], support, sampled.draw("query", generator(2))


def test_the_labels_are_those_of_the_items() -> None:
    for split, allowed in CLASSES.items():
        classes, *batches = draws(numbered(shots=3), split=split)
        assert set(classes.flatten().tolist()) == set(allowed)
        assert (classes[:, 0] != classes[:, 1]).all()
        for inputs, targets in map(tensors, batches):
            assert (inputs.shape, targets.shape) == ((50, 6, 1), (50, 6))
            assert torch.equal(LABELS[inputs.squeeze(-1).long()], classes.gather(1, targets))
            assert (targets.sum(1) == 3).all()


def test_support_and_query_share_no_item() -> None:
    _, support, query = draws(numbered(shots=4, queries=6))
    items = torch.cat([support.inputs, query.inputs], dim=1).squeeze(-1)
    assert all(len(set(row)) == 2 * (4 + 6) for row in items.tolist())


def test_every_item_of_a_class_may_be_either() -> None:
    _, support, query = draws(numbered(shots=5, queries=5), tasks=400)
    of_train = {item for item, label in enumerate(LABELS.tolist()) if label in CLASSES["train"]}
    assert set(support.inputs.flatten().tolist()) == set(query.inputs.flatten().tolist()) == of_train


def test_classes_are_numbered_at_random_and_items_shuffled() -> None:
    classes, support, _ = draws(numbered(ways=3, shots=2), tasks=2400)
    # Binomial(2400, 1/24) for each ordered choice of 3 of the 4 classes: mean 100, standard deviation 9.8.
    counts = Counter(map(tuple, classes.tolist()))
    assert len(counts) == 24
    assert all(abs(count - 100) < 50 for count in counts.values())
    # Binomial(2400, 1/90) for each order of two of each class: mean 26.7, standard deviation 5.1.
    orders = Counter(map(tuple, support.targets.tolist()))
    assert len(orders) == 90
    assert max(orders.values()) < 55


def test_numbers_of_items_by_split() -> None:
    def sizes(family: NWayKShot, split: Split) -> tuple[int, int]:
        _, support, query = draws(family, 1, split)
        return support.targets.shape[1], query.targets.shape[1]

    assert sizes(numbered(shots=2), "train") == sizes(numbered(shots=2), "test") == (4, 4)
    family = numbered(shots=2, queries=3, train_shots=5, test_queries=4)
    assert sizes(family, "train") == (2 * 5, 2 * 3)
    assert sizes(family, "validation") == sizes(family, "test") == (2 * 2, 2 * 4)


def test_training_may_take_more_ways() -> None:
    family = numbered(train_ways=3)
    assert family.spec.output_size == 3
    assert draws(family, 1, "train")[0].shape == (1, 3)
    assert draws(family, 1, "test")[0].shape == (1, 2)
    assert numbered(ways=3, train_ways=2).spec.output_size == 3


def test_draws_give_the_same_items_in_an_order_of_their_generator() -> None:
    tasks = numbered(shots=5).sample(3, "train", generator())
    first, again, other = (tasks.draw("support", generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)
    assert torch.equal(first.inputs.sort(1).values, other.inputs.sort(1).values)


def test_tasks_depend_on_the_generator_only() -> None:
    one, same, other = (numbered().sample(20, "train", generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.parameters["classes"], same.parameters["classes"])
    assert torch.equal(one.support, same.support)
    assert torch.equal(one.query, same.query)
    assert not torch.equal(one.support, other.support)


def test_what_a_model_is_asked_for() -> None:
    family = NWayKShot(torch.zeros(126, 3, 8, 8), LABELS, ways=4)
    assert family.spec == Spec((3, 8, 8), 4, "classification", 0)
    tasks = family.sample(5, "train", generator())
    assert tasks.descriptors.shape == (5, 0)
    assert set(tasks.parameters) == {"classes"}


def test_pixels_are_scaled_and_numbers_are_not(float64: None) -> None:
    pixels = torch.full((126, 1, 1, 2), 51, dtype=torch.uint8)
    assert draws(NWayKShot(pixels, LABELS, ways=2), 1)[1].inputs.tolist() == [[[[[0.2, 0.2]]]] * 2]
    numbers = draws(NWayKShot(pixels.int(), LABELS, ways=2), 1)[1].inputs
    assert (numbers.dtype, numbers.unique().tolist()) == (torch.float64, [51])


SCALES: list[tuple[tuple[int, ...], int, dict[str, Any], float, str | None]] = [
    ((1, 4, 4), 255, {}, 255, None),
    ((4, 4), 200, {}, 255, None),
    ((1, 4, 4), 0, {}, 255, None),
    ((1, 4, 4), 1, {}, 1, "with values 0 and 1 are not scaled; scale=1 silences"),
    ((1, 4, 4), 1, {"scale": 1}, 1, None),
    ((1, 4, 4), 1, {"scale": 255}, 255, None),
    ((1, 4, 4), 16, {}, 255, "divided by 255, but no pixel exceeds 16: if that is white, set scale=16"),
    ((1, 4, 4), 16, {"scale": 16}, 16, None),
    ((8,), 10, {}, 1, r"uint8 and shape \(8,\) are not images and are not scaled; scale=255 would"),
    ((784,), 255, {"scale": 255}, 255, None),
]


@pytest.mark.parametrize(("shape", "most", "options", "scale", "told"), SCALES)
def test_what_bytes_are_divided_by(
    shape: tuple[int, ...], most: int, options: dict[str, Any], scale: float, told: str | None
) -> None:
    inputs = torch.full((126, *shape), most, dtype=torch.uint8)
    inputs[::2] = most // 2
    with pytest.warns(UserWarning, match=told) if told else nullcontext():
        family = NWayKShot(inputs, LABELS, ways=2, **options)
    found = torch.cat([draws(family)[1].inputs, draws(family)[2].inputs])
    torch.testing.assert_close(found.unique(), torch.tensor([most // 2 / scale, most / scale]).unique())


def test_deep_images_may_be_scaled_too() -> None:
    inputs = torch.full((126, 1, 2, 2), 4095, dtype=torch.uint16)
    assert draws(NWayKShot(inputs, LABELS, ways=2, scale=4095))[1].inputs.unique().tolist() == [1]
    floats = torch.full((126, 3), 8.0)
    assert draws(NWayKShot(floats, LABELS, ways=2, scale=2))[1].inputs.unique().tolist() == [4]
    assert floats.unique().tolist() == [8]


def test_rotations_by_hand() -> None:
    image = torch.tensor([[1, 2], [3, 4]])
    images = image.expand(2, 2, 1, 2, 2)
    turned = rotated(images, torch.tensor([[0, 1], [2, 3]]))
    assert turned.shape == (2, 2, 1, 2, 2)
    assert turned[0, 0].tolist() == [[[1, 2], [3, 4]]]
    assert turned[0, 1].tolist() == [[[2, 4], [1, 3]]]
    assert turned[1, 0].tolist() == [[[4, 3], [2, 1]]]
    assert turned[1, 1].tolist() == [[[3, 1], [4, 2]]]


@pytest.mark.parametrize(("rotations", "turned"), [("all", True), ("train", False), ("none", False)])
def test_turned_images_are_new_classes(rotations: Any, turned: bool) -> None:
    images = torch.rand(126, 1, 4, 4, generator=generator(3))
    family = NWayKShot(images, LABELS, ways=2, shots=2, rotations=rotations, classes=CLASSES)
    by_pixels = {tuple(torch.rot90(image[0], turns).flatten().tolist()): (item, turns)
                 for item, image in enumerate(images) for turns in range(4)}  # fmt: skip
    for split, turns_expected in (("train", rotations != "none"), ("test", turned)):
        tasks = family.sample(40, split, generator())
        turns = tasks.parameters.get("quarter_turns", torch.zeros(40, 2, dtype=torch.long))
        assert turns.unique().tolist() == ([0, 1, 2, 3] if turns_expected else [0])
        drawn = tasks.draw("query", generator())
        inputs, targets = drawn.inputs, drawn.targets
        for task, item in [(task, item) for task in range(40) for item in range(4)]:
            source, by = by_pixels[tuple(inputs[task, item].flatten().tolist())]
            assert LABELS[source] == tasks.parameters["classes"][task, targets[task, item]]
            assert by == turns[task, targets[task, item]]


def test_a_tensor_is_copied_to_a_device_once() -> None:
    family, meta = numbered(), torch.device("meta")
    assert on_device(family.inputs, torch.device("cpu")) is family.inputs
    assert on_device(family.inputs, meta) is on_device(family.inputs, meta)
    assert on_device(numbered().inputs, meta) is not on_device(family.inputs, meta)


def test_memory_does_not_grow() -> None:
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other take minutes
    family = NWayKShot(torch.zeros(126, 3, 32, 32, dtype=torch.uint8), LABELS, ways=2, shots=3, rotations="all")

    def peak(iterations: int) -> int:
        for seed in range(iterations):
            tasks = family.sample(16, "train", generator(seed))
            for role in ("support", "query"):
                tasks.draw(role, generator(seed))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak(100)
    assert peak(500) - before < 20_000  # in kB; a batch is 1.2 MB


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 1}, "ways=1: a task has at least 2 classes"),
        ({"train_ways": 1}, "train_ways=1: a task has at least 2 classes"),
        ({"shots": 0}, "shots=0: expected at least 1"),
        ({"queries": 0}, "queries=0: expected at least 1"),
        ({"train_shots": -1}, "train_shots=-1: expected at least 1"),
        ({"test_queries": 0}, "test_queries=0: expected at least 1"),
        ({"rotations": "some"}, "rotations='some': expected one of none, train, all"),
        ({"rotations": "all"}, r"rotations need square images, not inputs of shape \(1,\)"),
        ({"labels": torch.zeros(3)}, r"shapes \(126, 1\) and \(3,\): expected \[item, \*shape\] and \[item\]"),
        ({"labels": LABELS.float()}, "labels are torch.float32"),
        ({"inputs": torch.full((126, 1), torch.nan)}, "inputs contain numbers that are not finite"),
        (
            {"inputs": torch.full((126, 1), 1e39, dtype=torch.float64)},
            r"range from 1e\+39 .* torch.float32 cannot represent: sc",
        ),
        ({"inputs": torch.zeros(126, 1).to(torch.complex64)}, "inputs are torch.complex64: expected real numbers"),
        ({"scale": 0}, "scale=0: expected a positive number"),
        ({"classes": {"train": [1], "test": [1]}}, "listed twice"),
    ],
)
def test_wrong_families_are_refused(options: dict[str, Any], message: str) -> None:
    given = {"inputs": torch.zeros(126, 1), "labels": LABELS, "ways": 2} | options
    with pytest.raises(ValueError, match=message):
        NWayKShot(**given)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one task is needed, not 0"):
        numbered().sample(0, "train", generator())
    with pytest.raises(ValueError, match="the validation split has 2 classes, but a task takes 3"):
        numbered(ways=3).sample(1, "validation", generator())
    few = "class 0 of the train split has 10 items, but .* take 12 of each, and 1 more classes have too few; ask for"
    with pytest.raises(ValueError, match=few):
        numbered(shots=2, queries=10).sample(1, "train", generator())
    names = [f"letter {letter}" for letter in "abcdefghi"]
    with pytest.raises(
        ValueError, match="class 'letter g' of the test split has 16 items, but support and query together take 17"
    ):
        numbered(shots=2, test_queries=15, names=names).sample(1, "test", generator())


def test_small_classes_are_left_out_if_asked() -> None:
    """Classes 0 to 8 have 10 to 18 items."""
    with pytest.warns(
        UserWarning, match="classes .* are left out: 2 of 4 in train, 2 of 2 in validation, 1 of 3 in test"
    ):
        family = numbered(shots=2, queries=10, test_queries=15, drop_small=True)
    assert draws(family)[0].unique().tolist() == [2, 3]
    assert draws(family, split="test")[0].unique().tolist() == [7, 8]
    numbered(shots=2, drop_small=True)  # nothing to leave out, nothing to say
    with pytest.warns(UserWarning, match="2 of 3 in test"):
        family = numbered(shots=2, test_queries=16, drop_small=True)
    with pytest.raises(ValueError, match="the test split has 1 classes of 18 items or more, but a task takes 2"):
        family.sample(1, "test", generator())


def test_splits_are_checked_by_themselves() -> None:
    family = numbered(ways=3, shots=2)
    family.check_split("train")
    family.check_split("test")
    with pytest.raises(ValueError, match="the validation split has 2 classes, but a task takes 3"):
        family.check_split("validation")
    with pytest.raises(ValueError, match="class 6 of the test split has 16 items"):
        numbered(shots=2, test_queries=15).check_split("test")
    numbered(ways=4, classes={"train": range(9)}).check_split("test")  # none are asked for


def test_arrays_are_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"found ndarray, expected tensors \(torch.as_tensor makes them\)"):
        NWayKShot(torch.zeros(4, 2).numpy(), torch.zeros(4).long())  # type: ignore[arg-type]


MODULE = """
import torch

from metarl import NWayKShot, Regression

items = NWayKShot(
    torch.rand(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 6, ways=2,
    classes={"train": range(3), "test": (3, 4, 5)},
)
lines = Regression(lambda x, slope: slope * x, {"slope": (0.0, 1.0)})
"""


def test_families_of_a_users_module_are_trained_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_few_shot.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, option in (("items", ["--tasks.shots", "3"]), ("lines", ["--tasks.parameters.slope", "1", "2"])):
        options = ["--iterations", "2", "--meta-batch-size", "3", "--out", name, "--quiet"]
        assert main(["train", "maml", f"my_few_shot:{name}", *option, *options]) == 0
        assert main(["evaluate", name, "--tasks", "4"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "items", "--split", "validation"]) == 2
    assert capsys.readouterr().err == "metarl: the validation split has 0 classes, but a task takes 2\n"
    assert main(["train", "maml", "my_few_shot:items", "--tasks.classes", "3"]) == 2
    assert "--tasks.classes: this cannot be given on the command line" in " ".join(capsys.readouterr().err.split())
