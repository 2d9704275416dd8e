"""How control families sample: options for episodes, ranges of splits, and finite training sets.

A split's ranges are data, a space, and not a function that samples: so the family can tell which tasks there are
(``hull``), whether splits share some, and that task k does not depend on how many are sampled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl.environments import is_bounded_box
from metarl.seeding import stream, uniform
from metarl.types import Split

Draw = Callable[[int, Generator], dict[str, Tensor]]
"""``(num_tasks, generator) -> parameters [task, ...] by name``"""
_HELD_OUT = tuple(split for split in get_args(Split) if split != "train")
_TRIES = (1, 8, 64)
"""How many times the training set's size are drawn until all of it differ. 64 times finds each of up to e^50 tasks."""


@dataclass(frozen=True)
class Sampling:
    """Options for sampling episodes."""

    episodes: int = 20
    """Episodes per task, sampled before every inner step and again for the outer update."""
    horizon: int = 200
    """Maximum number of steps of an episode."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.horizon < 1:
            raise ValueError(f"episodes={self.episodes} and horizon={self.horizon} must be at least 1")


def from_training_set(draw: Draw, size: int, seed: int, num_tasks: int, generator: Generator) -> dict[str, Tensor]:
    """Pick tasks of a finite training set uniformly, with replacement. Return their parameters, ``[task, ...]``.

    The set follows from ``seed`` alone: it is the same in every run, and a smaller one is the beginning of a larger.
    Task k does not depend on ``num_tasks``.

    Args:
        draw: Samples tasks; task k's parameters may not depend on the number of tasks.
        size: Number of tasks in the set. They all differ.
        seed: Seed of the set.
        num_tasks: How many to pick.
        generator: Picks them.

    Raises:
        ValueError: there are not so many different tasks.
    """
    picked = (size * uniform(generator, num_tasks, dtype=torch.float64)).long()
    return {name: values[picked] for name, values in _distinct(draw, size, seed).items()}


def _distinct(draw: Draw, size: int, seed: int) -> dict[str, Tensor]:
    """Return the first ``size`` tasks that differ from all before them."""
    for tries in _TRIES:
        drawn = draw(tries * size, stream(seed, "training set"))
        rows = torch.cat([values.reshape(tries * size, -1).double() for values in drawn.values()], dim=1)
        firsts = np.sort(np.unique(rows.numpy(), axis=0, return_index=True)[1])[:size]
        if len(firsts) == size:
            return {name: values[torch.from_numpy(firsts)] for name, values in drawn.items()}
    raise ValueError(f"train_tasks={size}: expected at most {len(firsts)}, as there are no more different tasks")


def check_train_tasks(train_tasks: int | None) -> None:
    """Raise ValueError unless this is None or a number of tasks."""
    whole = isinstance(train_tasks, int | np.integer) and not isinstance(train_tasks, bool)
    if train_tasks is not None and not (whole and train_tasks >= 1):
        raise ValueError(f"train_tasks={train_tasks!r}: expected at least 1, or None for fresh tasks all the time")


def check_parameters(parameters: Any, called: str = "parameters") -> None:
    """Raise ValueError unless these are ranges from which parameters can be sampled."""
    if not isinstance(parameters, spaces.Dict) or not parameters.spaces:
        raise ValueError(f"{called} are {parameters!r}: expected a gymnasium.spaces.Dict that is not empty")
    for name, space in parameters.spaces.items():
        if not (is_bounded_box(space) or isinstance(space, spaces.Discrete)):
            raise ValueError(f"cannot sample {name!r} from {space}: expected Discrete or a bounded Box of floats")


def check_splits(parameters: spaces.Dict, splits: Any) -> None:
    """Raise ValueError unless ``splits`` holds other ranges of the same parameters, by the name of the split."""
    if not isinstance(splits, Mapping):
        raise ValueError(f"splits is {splits!r}: expected a dict from {' or '.join(_HELD_OUT)} to its parameters")
    for split, ranges in splits.items():
        if split not in _HELD_OUT:
            raise ValueError(
                f"splits names {split!r}: expected {' or '.join(_HELD_OUT)}; parameters has the ranges in training"
            )
        check_parameters(ranges, f"the {split} parameters")
        if set(ranges.spaces) != set(parameters.spaces):
            raise ValueError(
                f"the {split} parameters are {', '.join(ranges.spaces)}: expected those in training, "
                f"{', '.join(parameters.spaces)}"
            )
        for name, space in parameters.spaces.items():
            if type(ranges[name]) is not type(space) or ranges[name].shape != space.shape:
                raise ValueError(
                    f"the {split} range of {name!r} is {ranges[name]}: expected the kind and shape of {space}"
                )


def hull(parameters: spaces.Dict, splits: Mapping[str, spaces.Dict]) -> spaces.Dict:
    """Return the smallest ranges that hold those of all splits; what lies between them is inside, too."""
    if not splits:
        return parameters
    found = {name: [space, *(ranges[name] for ranges in splits.values())] for name, space in parameters.spaces.items()}
    return spaces.Dict([(name, _around(several)) for name, several in found.items()])  # a list keeps its order


def _around(several: list[Any]) -> spaces.Space[Any]:
    if isinstance(several[0], spaces.Discrete):
        start = min(int(one.start) for one in several)
        return spaces.Discrete(max(int(one.start + one.n) for one in several) - start, start=start)
    dtype: Any = np.result_type(*(one.dtype for one in several))
    low, high = np.minimum.reduce([one.low for one in several]), np.maximum.reduce([one.high for one in several])
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)


def share_tasks(one: spaces.Dict, other: spaces.Dict) -> bool:
    """Return whether the same task may be sampled from both: all parameters are Discrete, and their ranges overlap."""
    return all(_meet(space, other[name]) for name, space in one.spaces.items())


def _meet(one: Any, other: Any) -> bool:
    if not isinstance(one, spaces.Discrete):
        return False  # two draws from a range of real numbers differ
    return bool(one.start < other.start + other.n and other.start < one.start + one.n)
