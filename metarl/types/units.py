"""What a family's numbers are in units of, so that one's own data can be converted as its examples are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class InputScale(NamedTuple):
    """What a family divides its own inputs by."""

    divisor: float
    floats: bool = False
    """Whether floats are divided, too, and not only whole numbers."""


class Standard(NamedTuple):
    """What numbers are in standard units of: their mean and standard deviation in the training split, in float64."""

    mean: Tensor
    """``[*shape]``, or what broadcasts with it."""
    std: Tensor
    """The same. It is positive."""
    fills: bool = False
    """Whether missing numbers (nan) are the mean."""

    def apply(self, values: Tensor) -> Tensor:
        """Return values ``[..., *shape]`` in standard units, in torch's default dtype."""
        shifted = (values.double() - self.mean.to(values.device)) / self.std.to(values.device)
        return (shifted.nan_to_num(0.0) if self.fills else shifted).to(torch.get_default_dtype())

    def undo(self, values: Tensor) -> Tensor:
        """Return values ``[..., *shape]`` in the units that they had before ``apply``, in their dtype."""
        return (values.double() * self.std.to(values.device) + self.mean.to(values.device)).to(values.dtype)


class Units(NamedTuple):
    """The standard units that a family's examples are in; None for what is left as it is."""

    inputs: Standard | None = None
    targets: Standard | None = None


AS_GIVEN = Units()
"""The units of data that are left as they are."""


@runtime_checkable
class Standardises(Protocol):
    """A family of labelled examples in standard units. Examples of one's own are converted, and predictions back."""

    def units(self) -> Units:
        """Return what its examples are in units of."""

    def with_units(self, units: Units) -> Any:
        """Return the family with the units of another one, such as that of training."""


@runtime_checkable
class ScalesInputs(Protocol):
    """A family of labelled examples that scales its inputs. Examples of one's own are scaled in the same way."""

    @property
    def input_scale(self) -> InputScale:
        """What inputs are divided by."""


@runtime_checkable
class ReadsFiles(Protocol):
    """A family of labelled examples whose inputs can be read from files of one's own, such as images."""

    def read(self, files: Sequence[Path]) -> Tensor:
        """Return the inputs ``[item, *input_shape]`` of files, as its tasks have them.

        Raises ValueError for files that cannot be read.
        """
