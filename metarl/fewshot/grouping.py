"""Items by label: which labels a split may use, and random subsets of their items, for many tasks at once."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import torch
from torch import Generator, Tensor

from metarl.seeding import stream
from metarl.types import Split

SPLITS: tuple[Split, ...] = get_args(Split)
FRACTIONS = (0.64, 0.16, 0.2)
"""Shares of the labels in train, validation and test: those of mini-ImageNet."""

Classes = Mapping[Split, Sequence[int]]
"""The labels that each split may use."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Items by label: those of group g are ``order[starts[g] : starts[g] + counts[g]]``."""

    labels: Tensor  # [group], ascending
    counts: Tensor  # [group]
    starts: Tensor  # [group]
    order: Tensor  # [item]
    pools: dict[Split, Tensor]  # [group in the split]

    def choose(self, pool: Tensor, ways: int, size: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Choose groups of a pool and items of each for every task, in random order; no task has one of them twice.

        Returns the groups ``[task, way]`` and their items ``[task, way, size]``. They follow from a row of random
        numbers in [0, 1) for each task, ``[task, row_size(ways, size)]``.
        """
        of_groups, of_items = numbers[:, : 2 * ways], numbers[:, 2 * ways :]
        groups = pool[subsets(torch.full((len(numbers),), len(pool)), of_groups)]
        offsets = subsets(self.counts[groups], of_items.reshape(len(numbers), ways, 2 * size))
        return groups, self.order[self.starts[groups].unsqueeze(-1) + offsets]

    def pool(
        self,
        split: Split,
        size: int,
        items: int,
        names: Sequence[str] = (),
        words: tuple[str, str] = ("class", "classes"),
        drop: bool = False,
    ) -> Tensor:
        """Return the groups of a split, ``[group]``.

        Raises ValueError for fewer than ``size`` of them, and for one of fewer than ``items`` items, which is called by
        its name, unless such are to be dropped; ``words`` are what a group and groups are called.
        """
        pool, told = self.pools[split], ""
        if drop:
            pool, told = pool[self.counts[pool] >= items], f" of {items} items or more"
        if len(pool) < size:
            raise ValueError(f"the {split} split has {len(pool)} {words[1]}{told}, but a task takes {size}")
        few = pool[self.counts[pool] < items].tolist()
        if few:
            label, count = int(self.labels[few[0]]), int(self.counts[few[0]])
            name = repr(names[label]) if 0 <= label < len(names) else label
            told = f"{words[0]} {name} of the {split} split has {count} items"
            others = f", and {len(few) - 1} more {words[1]} have too few" if len(few) > 1 else ""
            raise ValueError(
                f"{told}, but support and query together take {items} of each{others}; ask for fewer shots or queries"
            )
        return pool

    def tell_small(self, sizes: Mapping[Split, tuple[int, int]], word: str) -> None:
        """Warn of how many groups have fewer items than the support and query of their split take."""
        few = {split: int((self.counts[pool] < sum(sizes[split])).sum()) for split, pool in self.pools.items()}
        told = ", ".join(f"{count} of {len(self.pools[split])} in {split}" for split, count in few.items() if count)
        if told:
            warnings.warn(f"{word} with fewer items than an episode takes are left out: {told}", stacklevel=4)


def group(labels: Tensor, classes: Classes | None = None) -> Groups:
    """Sort items by their labels ``[item]``; ``classes`` tells the labels of each split, by default a random split.

    Raises ValueError for labels that are no integers, splits that share one, and labels that no item has.
    """
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}: expected integers [item]")
    found, positions, counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
    if classes is None:
        pools = {split: torch.tensor(pool).long() for split, pool in split_classes(len(found)).items()}
    else:
        _check_split(found.tolist(), classes)
        named = {split: torch.tensor(sorted(classes.get(split, ())), dtype=found.dtype) for split in SPLITS}
        pools = {split: torch.searchsorted(found, pool) for split, pool in named.items()}
    return Groups(found, counts, counts.cumsum(0) - counts, positions.argsort(stable=True), pools)


def _check_split(found: list[int], classes: Classes) -> None:
    if set(classes) - set(SPLITS):
        raise ValueError(f"there is no split {sorted(set(classes) - set(SPLITS))}: expected some of {list(SPLITS)}")
    named = sorted(label for labels in classes.values() for label in labels)
    twice = sorted({one for one, other in pairwise(named) if one == other})
    if twice:
        raise ValueError(f"labels {twice} are named twice: no class may be in two splits, or in one of them twice")
    absent = sorted(set(named) - set(found))
    if absent:
        raise ValueError(f"the splits name the labels {absent}, which no item has")


def split_classes(
    classes: int, sizes: tuple[float, float, float] = FRACTIONS, seed: int = 0
) -> dict[Split, tuple[int, ...]]:
    """Deal 0, 1, ..., classes - 1 to train, validation and test at random.

    ``sizes`` are shares that sum to 1, or whole numbers that sum to ``classes``. Raises ValueError for others.
    """
    total = sum(sizes)
    if min(sizes) < 0 or not (total == classes or math.isclose(total, 1)):
        raise ValueError(
            f"sizes {sizes} of {classes} classes: expected shares that sum to 1, or numbers that sum to all"
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


def subsets(counts: Tensor, numbers: Tensor) -> Tensor:
    """Return n different numbers below each of ``counts`` ``[...]``, in random order: ``[..., n]``.

    They follow from ``[..., 2 n]`` random numbers in [0, 1), by Floyd's algorithm (Bentley and Floyd, 1987, "A sample
    of brilliance"), whose time does not depend on the counts. Counts must be at least n.
    """
    drawn, order = numbers.chunk(2, dim=-1)
    size = drawn.shape[-1]
    chosen = torch.empty(drawn.shape, dtype=torch.long)
    for index in range(size):
        last = counts - size + index
        place = (drawn[..., index] * (last + 1)).long()
        taken = (chosen[..., :index] == place.unsqueeze(-1)).any(-1)
        chosen[..., index] = torch.where(taken, last, place)
    return chosen.gather(-1, order.argsort(-1))
