"""Meta-World's own lists of training and test tasks."""

import itertools
import pickle
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from metaworld.types import Task
from torch import Generator, Tensor

import metaworld
from metarl.environments import Array
from metarl.seeding import spawn
from metarl.types import Split

POSITIONS = 6
"""Numbers that describe a task within its kind: where the object and the goal are, in metres; padded with zeros."""


class Suite(NamedTuple):
    """All tasks of a benchmark: those of training first, then those of test."""

    tasks: tuple[Task, ...]
    train: int
    """How many are for training."""
    kinds: tuple[str, ...]
    """Names of the environments."""

    def descriptors(self, chosen: Tensor) -> Tensor:
        """Return the descriptors ``[task, descriptor_size]`` of tasks by number: the kind one-hot, then positions."""
        tasks = [self.tasks[index] for index in chosen.tolist()]
        positions = torch.tensor(np.array([_positions(task) for task in tasks]), dtype=torch.get_default_dtype())
        if len(self.kinds) == 1:
            return positions
        kinds = torch.tensor([self.kinds.index(task.env_name) for task in tasks])
        return torch.cat([torch.nn.functional.one_hot(kinds, len(self.kinds)).to(positions), positions], dim=1)

    def sample(self, number: int, split: Split, generator: Generator) -> Tensor:
        """Return the numbers of sampled tasks ``[task]``. Task k is the same, however many there are.

        Kinds take turns, in an order that is drawn: each has as many tasks as any other, or one more. Within a kind, no
        task comes again before all have come. Meta-World has no tasks for validation: it samples those of training.
        """
        first, last = (self.train, len(self.tasks)) if split == "test" else (0, self.train)
        kinds = len({task.env_name for task in self.tasks[first:last]})
        each = (last - first) // kinds
        of_kinds, *of_tasks = spawn(generator, 1 + kinds)
        turns = itertools.cycle(torch.randperm(kinds, generator=of_kinds).tolist())
        shuffled = [_cycled(each, own) for own in of_tasks]
        return torch.tensor([first + kind * each + next(shuffled[kind]) for kind in itertools.islice(turns, number)])


def _cycled(each: int, generator: Generator) -> Iterator[int]:
    """Yield all numbers below ``each``, shuffled, again and again."""
    while True:
        yield from torch.randperm(each, generator=generator).tolist()


def _positions(task: Task) -> Array:
    """Return the random positions of a task, padded with zeros."""
    found = np.ravel(pickle.loads(task.data)["rand_vec"])
    if len(found) > POSITIONS:
        raise ValueError(f"{task.env_name} has {len(found)} random positions: expected {POSITIONS} at most")
    return np.pad(found, (0, POSITIONS - len(found)))


@lru_cache
def suite(benchmark: str, env: str | None, seed: int) -> Suite:
    """Return Meta-World's tasks: of "ML1" for an environment, or of "ML10" or "ML45"; the seed draws the positions."""
    name = () if env is None else (env,)
    made = getattr(metaworld, benchmark)(*name, seed=seed)
    kinds = dict.fromkeys([*made.train_classes, *made.test_classes])
    return Suite((*made.train_tasks, *made.test_tasks), len(made.train_tasks), tuple(kinds))
