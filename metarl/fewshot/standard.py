"""Inputs and targets in standard units: minus their mean over the training split, divided by its standard deviation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from metarl.numerics import sum_of
from metarl.seeding import stream
from metarl.types import AS_GIVEN, Family, Standard, Standardises, Units

Missing = Literal["refuse", "mean"]
"""What to do about missing numbers (nan): refuse them, or put the mean of the training split there."""

AT_ONCE = 1024
"""Images that are held as float64 at once."""


def standard_of(values: Tensor, fills: bool = False) -> Standard:
    """Return mean and standard deviation of the columns of values ``[row, *shape]``, in float64, of those not missing.

    Numbers that are all the same are divided by 1.
    """
    values = values.double()
    mean = values.nanmean(0, keepdim=True)
    return _standard(mean, (values - mean).square().nanmean(0, keepdim=True).sqrt(), fills)


def _standard(mean: Tensor, std: Tensor, fills: bool) -> Standard:
    # Equal numbers may differ from their mean by rounding; a column of missing numbers has none.
    flat = ~(std > 1e-12 * mean.abs().clamp_min(1e-300))
    return Standard(mean.squeeze(0).nan_to_num(), std.masked_fill(flat, 1).squeeze(0), fills)


def filled(values: Tensor, mean: Tensor) -> Tensor:
    """Return values ``[row, *shape]`` with a mean ``[*shape]`` where they are missing."""
    return torch.where(values.isnan(), mean.to(values.dtype), values) if values.is_floating_point() else values


def check_missing(values: Tensor, columns: Sequence[str], what: str, hint: str) -> None:
    """Raise ValueError where values ``[row, *shape]`` are missing; it names the column and the first row."""
    if not values.is_floating_point() or not (missing := values.isnan()).any():
        return
    flat = missing.reshape(len(values), -1)
    column = int(flat.any(0).nonzero()[0])
    name = repr(columns[column]) if column < len(columns) else column
    rows = flat[:, column].nonzero().flatten()
    others = int(flat.any(0).sum()) - 1
    more = f" and {others} more columns" if others else ""
    raise ValueError(
        f"{what}, column {name}{more}: {len(rows)} of {len(values)} values are missing, first in row {int(rows[0])}: "
        f"{hint}"
    )


def in_units(family: Any, units: Units) -> Any:
    """Return a copy of a family, a frozen dataclass with a cached property ``_units``, in other units than its own.

    They are no option: ``dataclasses.replace`` and a run's record know nothing of them.
    """
    copy = replace(family)
    vars(copy).pop("_rows", None)
    vars(copy)["_units"] = units
    return copy


def own_units(family: Family) -> Units:
    """Return the units that a family's tasks are in, also of one that wraps another and tells none itself."""
    if isinstance(family, Standardises):
        return family.units()
    if family.spec.control:
        return AS_GIVEN
    units: Units = getattr(family.sample(1, "train", stream(0, "units")), "units", AS_GIVEN)
    return units


def image_standard(inputs: Tensor, rows: Tensor, scale: float) -> Standard:
    """Return mean and standard deviation of some rows of inputs ``[item, *shape]``, divided by ``scale``, in float64.

    Images have one for each channel, ``[channel, 1, 1]``; other inputs for each number.
    """
    axes = (0, *range(2, inputs.ndim)) if inputs.ndim > 3 else (0,)
    count = len(rows) * math.prod(inputs.shape[axis] for axis in axes[1:])

    def parts() -> Iterator[Tensor]:
        return (inputs[some].double() / scale for some in torch.split(rows, AT_ONCE))

    mean = sum_of(part.sum(axes, keepdim=True) for part in parts()) / count
    squares = sum_of((part - mean).square().sum(axes, keepdim=True) for part in parts())
    return _standard(mean, (squares / count).sqrt(), False)
