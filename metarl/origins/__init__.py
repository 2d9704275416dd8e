"""Where what a run trains comes from: its data and the code that defines it, and whether both are still the same.

``data`` compares fingerprints of data. ``definitions`` records what an object of a ``module:name`` is: its options, the
code of the files that define it, and their git revisions.
"""

from metarl.origins.data import (
    UNITS,
    check_data,
    check_units,
    in_recorded_units,
    plain_units,
    recorded_data,
    recorded_units,
    units_of,
)
from metarl.origins.definitions import DEFINITIONS, PAST, check_definitions, defined, difference

__all__ = [
    "DEFINITIONS",
    "PAST",
    "UNITS",
    "check_data",
    "check_definitions",
    "check_units",
    "defined",
    "difference",
    "in_recorded_units",
    "plain_units",
    "recorded_data",
    "recorded_units",
    "units_of",
]
