"""Families of environments with several choices and observations of several parts."""

from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from support.spaces_envs import SEEN, Dials

from metarl.control import GymnasiumFamily, Sampling

ODD = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 4.0]), dtype=np.float64)
"""Bounds that differ, and whose middle is not 0."""


def dials(workers: int = 1, **options: Any) -> GymnasiumFamily:
    """A family of dials with goals in [-1, 1]."""
    ranges = spaces.Dict(goal=spaces.Box(-1.0, 1.0))
    make = partial(Dials, **options)
    return GymnasiumFamily(make, ranges, apply="attribute", sampling=Sampling(3, 6), workers=workers)


CHOICES, PARTS, BINARY = dials(), dials(sees=SEEN), dials(acts=spaces.MultiBinary(3))
MOVING, MOVING_PARTS = dials(acts=ODD), dials(acts=ODD, sees=SEEN)
