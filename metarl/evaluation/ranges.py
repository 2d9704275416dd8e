"""Which tasks lie inside of the range that was trained on: by their parameters, one number at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from metarl.seeding import stream
from metarl.types import Family, Tasks

SAMPLED = 1000
"""Training tasks whose parameters tell the range: of a uniform one, all but a thousandth or so at each end."""
SLACK = 0.01
"""Share of the range by which a task may lie outside of it: the ends themselves are hardly sampled."""
Ranges = dict[str, tuple[float, float]]
"""The lowest and the highest number of each parameter; of a parameter of several numbers, each, such as goal_0."""


def columns(parameters: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Return the numbers ``[task]`` of task parameters ``[task, ...]``, by name.

    A parameter of several numbers has a column for each: ``goal_0``, ``goal_1``, ..., and ``matrix_0_1`` where it has
    two axes. Where two columns would have the same name, the later one is there.
    """
    found: dict[str, list[Any]] = {}
    for name, values in parameters.items():
        found |= dict(of_parameter(name, values))
    return found


def of_parameter(name: str, values: Tensor) -> list[tuple[str, list[Any]]]:
    """Return columns ``[task]`` of a task parameter ``[task, ...]``, one for each of its numbers, with their names."""
    if values[0].numel() == 1:
        return [(name, values.flatten().tolist())]
    places = list(np.ndindex(*values.shape[1:]))
    rows = values.reshape(len(values), -1).T.tolist()
    return [("_".join([name, *map(str, place)]), row) for place, row in zip(places, rows, strict=True)]


def training_ranges(family: Family, most: int = 64) -> Ranges:
    """Return the range of each parameter over many training tasks, of floats of ``most`` numbers at most.

    Labels, such as those of classes, have none.

    Raises:
        ValueError: the family has no training tasks.
    """
    tasks = family.sample(SAMPLED, "train", stream(0, "ranges"))
    return {
        name: (min(values), max(values))
        for name, values in columns(numbers_of(tasks, most)).items()
        if values and all(map(np.isfinite, values))
    }


def numbers_of(tasks: Tasks, most: int) -> dict[str, Tensor]:
    """Return the tasks' parameters that are floats, of ``most`` numbers at most."""
    return {
        name: values
        for name, values in tasks.parameters.items()
        if values.is_floating_point() and values[0].numel() <= most
    }


def outside(values: Mapping[str, Sequence[float]], ranges: Mapping[str, Sequence[float]]) -> dict[str, list[int]]:
    """Return the numbers of the tasks that lie outside of a range, by parameter; those without any are left out."""
    found = {}
    for name, (low, high) in ranges.items():
        margin = SLACK * (high - low)
        given = values.get(name, ())
        beyond = [task for task, value in enumerate(given) if not low - margin <= value <= high + margin]
        if beyond:
            found[name] = beyond
    return found


def told(values: Mapping[str, Sequence[float]], ranges: Mapping[str, Sequence[float]]) -> str | None:
    """Return a line on the tasks that lie outside of the training range; None where there are none."""
    found = outside(values, ranges)
    if not found:
        return None
    tasks = {task for some in found.values() for task in some}
    count = max(map(len, values.values()))
    where = ", ".join(f"{name} from {ranges[name][0]:.3g} to {ranges[name][1]:.3g}" for name in found)
    return f"{len(tasks)} of {count} tasks lie outside of the range that was trained on: {where}"
