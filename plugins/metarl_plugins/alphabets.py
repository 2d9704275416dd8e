"""Alphabets of Omniglot as tasks, as in Leap's experiments (Flennerhag et al., 2019, arXiv 1812.01054).

A task is always the same: the same characters of its alphabet, numbered alike, and the same people whose drawings are
held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metarl.fewshot import SPLITS, EpisodeTasks, NWayKShot, episode_sizes
from metarl.seeding import stream, uniform
from metarl.types import Split


class Fixed(NamedTuple):
    """The tasks of a split, by the names of their alphabets."""

    names: tuple[str, ...]
    classes: Tensor  # [alphabet, way]
    drawers: Tensor  # [alphabet, drawer] in an order: support drawings are by the first, query drawings by the next


@dataclass(frozen=True, eq=False)
class Alphabets:
    """One task for each alphabet that has as many characters as a task has ways.

    Task parameters: ``alphabet`` ``[task]``, numbered by the order of the split's names, ``classes`` ``[task, way]``,
    and with rotations ``quarter_turns`` ``[task, way]``.
    """

    family: NWayKShot
    """Its classes are named ``ALPHABET/characterNN``. Items of a class come one after another, and number k of every
    class of an alphabet is by the same person. Ways, shots and queries are numbers, not ranges."""
    drawers: int
    """Items of each class."""
    seed: int
    """Decides the characters of a task, their numbers, and whose drawings are held out."""

    def sample(self, number: int, split: Split, generator: Generator) -> EpisodeTasks:
        """Sample tasks: in meta-training alphabets at random, all of them before one comes again; else in their order.

        Raises ValueError for fewer than one task, for a split that cannot fill one, and at validation and test for more
        tasks than alphabets.
        """
        if number < 1:
            raise ValueError(f"at least one task is needed, not {number}")
        self.check_split(split)
        found, (support, query) = self._fixed[split], self._sizes(split)
        count, ways = found.classes.shape
        if split != "train" and number > count:
            raise ValueError(
                f"the {split} split has {count} alphabets of {ways} characters, and each of them is one task: ask for "
                f"{count} tasks or fewer, not {number}"
            )
        # Always float64, so that the tasks of a seed do not depend on torch's default dtype.
        numbers = uniform(generator, -(-number // count), count * (1 + ways), dtype=torch.float64)
        order = numbers[:, :count].argsort(dim=1).flatten() if split == "train" else torch.arange(count)
        at = order[:number]
        classes, drawers = found.classes[at], found.drawers[at]
        items = self.drawers * classes.unsqueeze(-1) + drawers[:, : support + query].unsqueeze(1)
        parameters = {"alphabet": at, "classes": classes}
        if self.family.rotations != "none":
            turns = 4 if self.family.rotations in ("all", split) else 1
            parameters["quarter_turns"] = (turns * numbers[:, count:].reshape(-1, ways)[:number]).long()
        return EpisodeTasks(
            self.family.inputs, items[..., :support], items[..., support:], parameters, self.family.scale
        )

    def check_split(self, split: Split) -> None:
        """Raise ValueError for a split without a large enough alphabet, and for more drawings than there are."""
        if not self._fixed[split].names:
            raise ValueError(f"no alphabet of the {split} split has {self._ways(split)} characters; ask for fewer ways")
        support, query = self._sizes(split)
        if support + query > self.drawers:
            raise ValueError(
                f"characters have {self.drawers} drawings, but support and query of the {split} split take "
                f"{support + query} of each; ask for fewer shots or queries"
            )

    def _ways(self, split: Split) -> int:
        ways = (split == "train" and self.family.train_ways) or self.family.ways
        assert isinstance(ways, int)
        return ways

    def _sizes(self, split: Split) -> tuple[int, int]:
        family = self.family
        sizes = episode_sizes(family.shots, family.queries, family.train_shots, family.test_queries)[split]
        return sizes.support[0], sizes.query[0]

    @cached_property
    def _fixed(self) -> dict[Split, Fixed]:
        classes = self.family.classes or {}
        return {
            split: fixed(
                large(self.family.names, classes.get(split, ()), self._ways(split)),
                self._ways(split),
                self.drawers,
                self.seed,
            )
            for split in SPLITS
        }


def large(characters: Sequence[str], chosen: Sequence[int], least: int) -> dict[str, list[int]]:
    """Return the chosen characters of each alphabet, by its name, in the order of names.

    Args:
        characters: ``ALPHABET/characterNN``, by number.
        chosen: The numbers of the characters that count.
        least: Alphabets with fewer of them are left out.
    """
    alphabets: dict[str, list[int]] = {}
    for character in chosen:
        alphabets.setdefault(characters[character].partition("/")[0], []).append(character)
    return {name: members for name, members in sorted(alphabets.items()) if len(members) >= least}


def fixed(alphabets: Mapping[str, Sequence[int]], ways: int, drawers: int, seed: int) -> Fixed:
    """Choose the characters of each alphabet's task, and an order of those who drew them."""
    classes, orders = torch.zeros(len(alphabets), ways, dtype=torch.long), list[Tensor]()
    for place, (name, members) in enumerate(alphabets.items()):
        generator = stream(seed, f"alphabets/{name}")
        classes[place] = torch.tensor(members)[torch.randperm(len(members), generator=generator)[:ways]]
        orders.append(torch.randperm(drawers, generator=generator))
    return Fixed(tuple(alphabets), classes, torch.stack(orders) if orders else torch.zeros(0, drawers).long())
