"""The contracts of task families, algorithms and outer updates, to be run in anybody's tests.

A check is a generator that is given what it is about and yields what it found wrong. Start reading in ``checks``, which
runs them; ``families``, ``environments``, ``algorithms`` and ``outers`` hold them.
"""

from metarl.testing.checks import (
    ContractError,
    algorithm_outcomes,
    check_algorithm,
    check_batch,
    check_family,
    check_outer,
    family_outcomes,
    outer_outcomes,
)
from metarl.testing.findings import Check, Fault, Found, Outcome, Verdict, raised_at, run_checks
from metarl.testing.samples import small_family

__all__ = [
    "Check",
    "ContractError",
    "Fault",
    "Found",
    "Outcome",
    "Verdict",
    "algorithm_outcomes",
    "check_algorithm",
    "check_batch",
    "check_family",
    "check_outer",
    "family_outcomes",
    "outer_outcomes",
    "raised_at",
    "run_checks",
    "small_family",
]
