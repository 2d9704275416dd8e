"""Items by label: the labels of each split, and random subsets of their items, for many tasks at once."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from metarl.seeding import stream
from metarl.types import Split

SPLITS: tuple[Split, ...] = get_args(Split)
FRACTIONS = (0.64, 0.16, 0.2)
"""Fractions of the labels in train, validation and test, as in mini-ImageNet."""

Classes = Mapping[Split, Sequence[int]]
"""The labels of each split."""
Count = int | tuple[int, int]
"""A number, or the lowest and the highest of numbers that tasks differ in."""


class Bounds(NamedTuple):
    """The lowest and the highest number of support and of query items of a class in an episode."""

    support: tuple[int, int]
    query: tuple[int, int]

    @property
    def least(self) -> int:
        """Items that a class must have."""
        return self.support[0] + self.query[0]

    @property
    def most(self) -> int:
        """Items that an episode may take of it."""
        return self.support[1] + self.query[1]


Sizes = Mapping[Split, Bounds]
"""Support and query items of each class in the episodes of each split."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Items by label: those of group g are ``order[starts[g] : starts[g] + counts[g]]``."""

    labels: Tensor  # [group], ascending
    counts: Tensor  # [group]
    starts: Tensor  # [group]
    order: Tensor  # [item]
    pools: dict[Split, Tensor]  # [group in the split]
    names: Sequence[str]  # for error messages: the name of label 0, 1, ...
    words: tuple[str, str]  # for error messages: what a group and several groups are called

    def choose_unequal(
        self, pool: Tensor, ways: int, bounds: Bounds, numbers: Tensor, shares: Tensor
    ) -> tuple[Tensor, "Parted", "Parted"]:
        """Choose groups; of each, as many support items as ``shares`` ``[task, way]`` in [0, 1) tell, and query items.

        The number of support items is uniform between its bounds, or as many as leave the fewest query items; then all
        that are left are query items, up to the most. ``numbers`` are those of ``choose`` for the most items. Returns
        the groups ``[task, way]``, and positions of support and query items.
        """
        of_groups, of_items = numbers[:, : 2 * ways], numbers[:, 2 * ways :]
        groups = pool[subsets(torch.full((len(numbers),), len(pool)), of_groups)]
        counts = self.counts[groups]
        low, high = bounds.support
        spread = (counts - bounds.query[0]).clamp_max(high) - low + 1
        support = low + (shares * spread).long()
        query = (counts - support).clamp_max(bounds.query[1])
        most = bounds.most
        offsets = subsets(counts, of_items.reshape(len(numbers), ways, 2 * most), support + query)
        items = self.order[self.starts[groups].unsqueeze(-1) + offsets]
        places = (support.unsqueeze(-1) + torch.arange(bounds.query[1])).clamp_max(most - 1)
        return (
            groups,
            Parted(items[..., :high], torch.arange(high) < support.unsqueeze(-1)),
            Parted(items.gather(-1, places), torch.arange(bounds.query[1]) < query.unsqueeze(-1)),
        )

    def choose(self, pool: Tensor, ways: int, size: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Choose groups of a pool and items of each for every task, in random order; no task has one of them twice.

        Returns the groups ``[task, way]`` and their items ``[task, way, size]``. They follow from a row of random
        numbers in [0, 1) for each task, ``[task, row_size(ways, size)]``.
        """
        of_groups, of_items = numbers[:, : 2 * ways], numbers[:, 2 * ways :]
        groups = pool[subsets(torch.full((len(numbers),), len(pool)), of_groups)]
        offsets = subsets(self.counts[groups], of_items.reshape(len(numbers), ways, 2 * size))
        return groups, self.order[self.starts[groups].unsqueeze(-1) + offsets]

    def rows(self, split: Split) -> Tensor:
        """Return the positions of a split's items, ``[item]``, in ascending order."""
        of_split = torch.zeros(len(self.labels), dtype=torch.bool)
        of_split[self.pools[split]] = True
        return self.order[of_split.repeat_interleave(self.counts)].sort().values

    def training_rows(self, what: str) -> Tensor:
        """Return the positions of the items whose standard units are used. Raises ValueError where there are none."""
        rows = self.rows("train")
        if not len(rows):
            raise ValueError(f"normalise needs {what} in the train split, and it has none: set normalise=False")
        return rows

    def pool(self, split: Split, size: int, items: int, drop_small: bool) -> Tensor:
        """Return the groups of a split, ``[group]``. With ``drop_small``, leave out groups with too few items.

        Raises ValueError if the split has fewer than ``size`` groups, or one of them has fewer than ``items`` items.
        """
        pool, condition = self.pools[split], ""
        if drop_small:
            pool, condition = pool[self.counts[pool] >= items], f" of {items} items or more"
        if len(pool) < size:
            raise ValueError(f"the {split} split has {len(pool)} {self.words[1]}{condition}, but a task takes {size}")
        if len(small := pool[self.counts[pool] < items]):
            raise ValueError(self._too_few(split, items, small.tolist()))
        return pool

    def _too_few(self, split: Split, items: int, small: list[int]) -> str:
        label, count = int(self.labels[small[0]]), int(self.counts[small[0]])
        name = repr(self.names[label]) if 0 <= label < len(self.names) else label
        others = f", and {len(small) - 1} more {self.words[1]} have too few" if len(small) > 1 else ""
        return (
            f"{self.words[0]} {name} of the {split} split has {count} items, but support and query together take "
            f"{items} of each{others}; ask for fewer shots or queries"
        )

    def warn_of_small(self, sizes: Sizes) -> None:
        """Warn of groups with fewer items than the support and query of their split take, and count them."""
        small = {split: int((self.counts[pool] < sizes[split].least).sum()) for split, pool in self.pools.items()}
        shares = ", ".join(f"{count} of {len(self.pools[split])} in {split}" for split, count in small.items() if count)
        if shares:
            text = f"{self.words[1]} with fewer items than an episode takes are left out: {shares}"
            warnings.warn(text, stacklevel=4)


class Keys(NamedTuple):
    """Keys of groups as numbers."""

    numbers: Tensor
    """``[item]``: the number of each item's group."""
    keys: tuple[Any, ...]
    """The groups 0, 1, ..., sorted; empty where the numbers were given."""

    def number(self, key: Any) -> int:
        """Return the number of a group. Raises ValueError where there is none of this key."""
        if key not in self.keys:
            raise ValueError(f"the splits list the group {key!r}, which no item has")
        return self.keys.index(key)


def numbered(groups: Any) -> Keys:
    """Return groups ``[item]`` as numbers: a tensor as it is, keys of another kind in their order.

    Raises ValueError for keys that are missing, or that cannot be sorted.
    """
    if isinstance(groups, Tensor):
        return Keys(groups, ())
    keys = list(groups.tolist() if hasattr(groups, "tolist") else groups)
    if absent := [row for row, key in enumerate(keys) if key is None or key != key]:
        raise ValueError(f"the group of {len(absent)} rows is missing, first of row {absent[0]}: leave these rows out")
    try:
        found = tuple(sorted(set(keys)))
    except TypeError as error:
        raise ValueError(f"the groups cannot be sorted ({error}): give keys of one kind, such as texts") from None
    places = {key: place for place, key in enumerate(found)}
    return Keys(torch.tensor([places[key] for key in keys]), found)


class Parted(NamedTuple):
    """The items of one role, and which of them are none: classes differ in their number."""

    items: Tensor  # [task, way, item]
    known: Tensor  # [task, way, item] bool; the items of a class come before its padding


def group(
    labels: Tensor,
    classes: Classes | None = None,
    names: Sequence[str] = (),
    words: tuple[str, str] = ("class", "classes"),
) -> Groups:
    """Sort items by their labels ``[item]``. ``classes`` are the labels of each split; by default they are random.

    Raises ValueError for labels that are not integers, a label in two splits, and a label that no item has.
    """
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}: expected integers [item]")
    found, positions, counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
    if classes is None:
        pools = {split: torch.tensor(pool).long() for split, pool in split_classes(len(found)).items()}
    else:
        _check_split(found.tolist(), classes)
        chosen = {split: torch.tensor(sorted(classes.get(split, ())), dtype=found.dtype) for split in SPLITS}
        pools = {split: torch.searchsorted(found, pool) for split, pool in chosen.items()}
    return Groups(found, counts, counts.cumsum(0) - counts, positions.argsort(stable=True), pools, names, words)


def _check_split(found: list[int], classes: Classes) -> None:
    if set(classes) - set(SPLITS):
        raise ValueError(f"there is no split {sorted(set(classes) - set(SPLITS))}: expected some of {list(SPLITS)}")
    listed = sorted(label for labels in classes.values() for label in labels)
    twice = sorted({one for one, other in pairwise(listed) if one == other})
    if twice:
        raise ValueError(f"labels {twice} are listed twice: no class may be in two splits, or in one of them twice")
    absent = sorted(set(listed) - set(found))
    if absent:
        raise ValueError(f"the splits list the labels {absent}, which no item has")


def split_classes(
    classes: int, sizes: tuple[float, float, float] = FRACTIONS, seed: int = 0
) -> dict[Split, tuple[int, ...]]:
    """Split the classes 0, 1, ..., classes - 1 into train, validation and test at random.

    ``sizes`` are fractions that sum to 1, or whole numbers that sum to ``classes``. Raises ValueError for others.
    """
    total = sum(sizes)
    if min(sizes) < 0 or not (total == classes or math.isclose(total, 1)):
        raise ValueError(
            f"sizes {sizes} of {classes} classes: expected fractions that sum to 1, or numbers that sum to {classes}"
        )
    # The seed alone, not the whole stream: what was held out from a trained run must stay held out.
    generator = Generator().manual_seed(stream(seed, "classes").initial_seed())
    order = torch.randperm(classes, generator=generator).tolist()
    validation, test = (round(size * classes / total) for size in sizes[1:])
    train = classes - validation - test
    parts = order[:train], order[train : train + validation], order[train + validation :]
    return {split: tuple(sorted(part)) for split, part in zip(SPLITS, parts, strict=True)}


def row_size(ways: int, size: int) -> int:
    """Return how many random numbers choose the groups of a task, and ``size`` items of each."""
    return 2 * ways * (1 + size)


def bounds_of(count: Count) -> tuple[int, int]:
    """Return the lowest and the highest of a number, which may be a range."""
    return (count[0], count[1]) if isinstance(count, tuple) else (int(count), int(count))


def subsets(counts: Tensor, numbers: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Return n different numbers below each of ``counts`` ``[...]``, in random order: ``[..., n]``.

    Each count must be at least n, or at least its own of ``sizes`` ``[...]``, up to n: only so many come first, and
    zeros follow. The result follows from random numbers in [0, 1), ``[..., 2 n]``. Floyd's algorithm
    (Bentley and Floyd, 1987, "A sample of brilliance"): its time does not depend on the counts.
    """
    drawn, order = numbers.chunk(2, dim=-1)
    size = drawn.shape[-1]
    chosen = torch.full(drawn.shape, -1)
    for index in range(size):
        # Draw from one more number in each round; if the draw is taken already, the new number is free.
        last = counts - (size if sizes is None else sizes) + index
        place = (drawn[..., index] * (last + 1)).long()
        taken = (chosen[..., :index] == place.unsqueeze(-1)).any(-1)
        found = torch.where(taken, last, place)
        chosen[..., index] = found if sizes is None else torch.where(index < sizes, found, -1)
    if sizes is None:
        return chosen.gather(-1, order.argsort(-1))
    padding_last = torch.where(torch.arange(size) < sizes.unsqueeze(-1), order, 2)
    return chosen.gather(-1, padding_last.argsort(-1)).clamp_min(0)
