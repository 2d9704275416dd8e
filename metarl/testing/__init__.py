"""Contract tests of task families, algorithms and outer updates, for the tests of any plugin.

A check is a generator: it takes the plugin under test and yields faults. Start reading in ``checks``, which runs them.
The checks are in ``families``, ``environments``, ``algorithms`` and ``outers``.
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
