"""Inputs and targets in standard units: minus their mean over the training split, divided by its standard deviation."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from metarl.types import Standard

Missing = Literal["refuse", "mean"]
"""What to do about missing numbers (nan): refuse them, or put the mean of the training split there."""


def standard_of(values: Tensor, axes: tuple[int, ...] = (0,), fills: bool = False) -> Standard:
    """Return mean and standard deviation of values ``[row, *shape]`` over some axes, in float64, without missing ones.

    Numbers that are all the same are divided by 1.
    """
    values = values.double()
    mean = values.nanmean(axes, keepdim=True)
    std = (values - mean).square().nanmean(axes, keepdim=True).sqrt()
    # Equal numbers may differ from their mean by rounding.
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
