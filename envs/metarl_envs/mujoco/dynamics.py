"""Variation of a robot's dynamics: factors on masses, friction and damping; 1 is the original robot."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Values = Any
"""A NumPy array or a torch tensor. Code uses only what both can do, such as ``axis`` instead of torch's ``dim``."""

SCALED_FIELDS = {
    "mass": ("body_mass", "body_inertia"),
    "friction": ("geom_friction",),
    "damping": ("dof_damping",),
}
"""The fields of MuJoCo's model that each factor scales."""


@dataclass(frozen=True)
class Dynamics:
    """How the dynamics differ between tasks. Each factor is uniform in its range; (1, 1) keeps the original."""

    mass: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the masses and inertias of all bodies."""
    friction: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the friction coefficients of all geoms, including the floor."""
    damping: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the damping of all joints."""

    def __post_init__(self) -> None:
        for name, (low, high) in asdict(self).items():
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be a range 0 < low <= high of factors, not ({low}, {high})")

    @property
    def varied(self) -> dict[str, tuple[float, float]]:
        """The ranges other than (1, 1). Each is a task parameter and part of the descriptor."""
        return {name: bounds for name, bounds in asdict(self).items() if tuple(bounds) != (1.0, 1.0)}


def scaled_fields(model: Any, factors: Mapping[str, Array]) -> Iterable[tuple[str, Array]]:
    """Yield the model's scaled fields by name, ``[*lanes, *shape]`` for factors ``[*lanes]``."""
    for name, fields in SCALED_FIELDS.items():
        factor = np.asarray(factors[name])
        for field in fields:
            nominal = getattr(model, field)
            yield field, nominal * factor.reshape(*factor.shape, *[1] * nominal.ndim)


def set_scaled_fields(model: Any, data: Any, nominal: Any, factors: Mapping[str, Array]) -> None:
    """Set a model's fields to those of ``nominal`` times scalar factors, and recompute the derived constants.

    ``data`` is scratch space; reset its state afterwards.
    """
    for field, values in scaled_fields(nominal, factors):
        getattr(model, field)[...] = values
    mujoco.mj_setConst(model, data)
