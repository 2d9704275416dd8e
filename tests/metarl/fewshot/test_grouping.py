from collections import Counter
from typing import Any

import pytest
import torch

from metarl.fewshot.grouping import group, row_size, split_classes, subsets


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_items_by_label() -> None:
    groups = group(torch.tensor([7, 3, 7, 3, 7]), {"train": [7], "test": [3]})
    assert groups.labels.tolist() == [3, 7]
    assert groups.counts.tolist() == [2, 3]
    assert groups.starts.tolist() == [0, 2]
    assert groups.order.tolist() == [1, 3, 0, 2, 4]
    assert {split: pool.tolist() for split, pool in groups.pools.items()} == {
        "train": [1],
        "validation": [],
        "test": [0],
    }
    numbers = torch.rand(30, row_size(2, 2), generator=generator(), dtype=torch.float64)
    chosen, items = groups.choose(torch.tensor([0, 1]), 2, 2, numbers)
    assert items.shape == (30, 2, 2)
    assert {tuple(row) for row in chosen.tolist()} == {(0, 1), (1, 0)}, "no group comes twice in a task"
    assert {tuple(row) for row in items[chosen == 0].tolist()} == {(1, 3), (3, 1)}
    assert {tuple(sorted(row)) for row in items[chosen == 1].tolist()} == {(0, 2), (0, 4), (2, 4)}


def test_shares_and_numbers_of_classes() -> None:
    split = split_classes(10)
    assert {name: len(part) for name, part in split.items()} == {"train": 6, "validation": 2, "test": 2}
    assert sorted(sum(split.values(), ())) == list(range(10))
    assert split == split_classes(10) != split_classes(10, seed=1)
    numbers = split_classes(1623, (1100, 100, 423), seed=3)
    assert [len(part) for part in numbers.values()] == [1100, 100, 423]
    assert split_classes(4, (0.5, 0.0, 0.5))["validation"] == ()


@pytest.mark.parametrize("sizes", [(0.5, 0.2, 0.2), (5, 3, 3), (1.2, -0.2, 0.0)])
def test_wrong_fractions(sizes: Any) -> None:
    with pytest.raises(ValueError, match="expected fractions that sum to 1, or numbers that sum to"):
        split_classes(10, sizes)


def test_every_ordered_subset_is_as_likely() -> None:
    numbers = torch.rand(24000, 4, generator=generator(), dtype=torch.float64)
    drawn = subsets(torch.full((24000,), 4), numbers)
    counts = Counter(map(tuple, drawn.tolist()))
    assert len(counts) == 12
    # Binomial(24000, 1/12): mean 2000, standard deviation 43.
    assert all(abs(count - 2000) < 200 for count in counts.values())


def test_subsets_of_different_counts() -> None:
    counts = torch.tensor([[3, 1000], [5, 3]])
    drawn = subsets(counts, torch.rand(2, 2, 6, generator=generator(), dtype=torch.float64))
    assert drawn.shape == (2, 2, 3)
    assert (drawn < counts.unsqueeze(-1)).all()
    assert (drawn >= 0).all()
    assert all(len(set(row)) == 3 for row in drawn.reshape(-1, 3).tolist())
    assert sorted(drawn[0, 0].tolist()) == [0, 1, 2]


def test_what_a_split_holds_out_stays_held_out() -> None:
    """Literals: runs that were trained with this split must be tested on what they have not seen."""
    assert split_classes(10)["test"] == (2, 9)
    assert split_classes(64, seed=3)["validation"] == (14, 18, 39, 43, 47, 50, 51, 58, 60, 63)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"train": [1, 2], "test": [2]}, r"labels \[2\] are listed twice"),
        ({"train": [1, 1]}, r"labels \[1\] are listed twice"),
        ({"train": [1, 5]}, r"the splits list the labels \[5\], which no item has"),
        ({"training": [1]}, r"there is no split \['training'\]: expected some of \['train', 'validation', 'test'\]"),
    ],
)
def test_wrong_splits(classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group(torch.tensor([1, 2, 2]), classes)


@pytest.mark.parametrize("labels", [torch.tensor([1.0]), torch.tensor([[1]]), torch.tensor([], dtype=torch.long)])
def test_wrong_labels(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected integers \[item\]"):
        group(labels)
