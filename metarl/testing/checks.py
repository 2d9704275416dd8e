"""Run the contract tests of plugins: what ``metarl.types`` requires of families, algorithms and outer updates."""

from collections.abc import Callable, Sequence
from typing import get_args

from metarl.speed import Device, resolve_device
from metarl.testing import algorithms, environments, families, outers
from metarl.testing.batches import batch_faults, mask_faults
from metarl.testing.findings import Fault, Outcome, placed, run_checks
from metarl.testing.samples import small_algorithm, small_family
from metarl.testing.subject import Subject
from metarl.testing.updating import OuterSubject
from metarl.types import Algorithm, Batch, Family, Kind, Learner, Outer, Rollout, Selective, Spec

__all__ = [
    "ContractError",
    "Outcome",
    "algorithm_outcomes",
    "check_algorithm",
    "check_batch",
    "check_family",
    "check_outer",
    "family_outcomes",
    "outer_outcomes",
    "small_family",
]


class ContractError(AssertionError):
    """A plugin breaks its contract. The message says what it did, what was expected, and where."""


def check_family(family: Family, tasks: int = 3, device: Device = "auto") -> None:
    """Run every check of ``family_outcomes``.

    Raises:
        ContractError: the family breaks its contract; the message lists all faults.
        ValueError: device cuda without a CUDA device.
    """
    _raise_failures(family_outcomes(family, tasks, device))


def check_algorithm(algorithm: Algorithm, family: Family, tasks: int = 4, device: Device = "auto") -> None:
    """Run every check of ``algorithm_outcomes``.

    Raises:
        ContractError: the algorithm breaks its contract; the message lists all faults.
        ValueError: the algorithm does not support the family, or device cuda without a CUDA device.
    """
    _raise_failures(algorithm_outcomes(algorithm, family, tasks, device))


def check_outer(
    outer: Outer,
    family: Family | None = None,
    algorithm: Algorithm | None = None,
    tasks: int = 4,
    device: Device = "auto",
) -> None:
    """Run every check of ``outer_outcomes``; by default on a small synthetic family of each supported kind.

    Raises:
        ContractError: the outer update breaks its contract; the message lists all faults.
        ValueError: the outer update does not support the algorithm's learner for the family, or for any kind; the
            algorithm does not support the family; or device cuda without a CUDA device.
    """
    if family is not None:
        _raise_failures(outer_outcomes(outer, family, algorithm, tasks, device))
        return
    resolve_device(device)
    outcomes, refusals = list[Outcome](), list[str]()
    for kind in get_args(Kind):
        try:
            found = outer_outcomes(outer, small_family(kind), algorithm, tasks, device)
        except ValueError as refusal:
            refusals.append(f"{kind}: {refusal}")
            continue
        outcomes += [outcome.within(f"with synthetic {kind} tasks: ") for outcome in found]
    if not outcomes:
        raise ValueError(f"{type(outer).__name__} supports no kind of task; {'; '.join(refusals)}")
    _raise_failures(outcomes)


def family_outcomes(
    family: Family, tasks: int = 3, device: Device = "auto", watch: Callable[[float], object] = lambda share: None
) -> list[Outcome]:
    """Sample tasks of every split, draw data, run episodes in their lanes, and return the outcome of each check.

    ``device``: where data are drawn in addition to the CPU; auto uses cuda if it is available. ``watch`` is called with
    the share of the checks that are done.
    """
    on = resolve_device(device)
    first = len(families.CHECKS) / (len(families.CHECKS) + len(environments.CHECKS))
    outcomes = run_checks(families.CHECKS, Subject(family, tasks, on), watch=lambda share: watch(first * share))
    if outcomes[0].verdict == "FAILED" or not family.spec.control:
        return outcomes
    return outcomes + run_checks(environments.CHECKS, environments.ControlSubject(family, tasks, on), outcomes, watch)


def algorithm_outcomes(algorithm: Algorithm, family: Family, tasks: int = 4, device: Device = "auto") -> list[Outcome]:
    """Build an algorithm for a family, gather experience, and return the outcome of each check.

    Raises ValueError if the algorithm does not support the family.
    """
    algorithm.build(family.spec)
    subject = algorithms.AlgorithmSubject(algorithm, family, tasks, resolve_device(device))
    return run_checks(algorithms.CHECKS, subject)


def outer_outcomes(
    outer: Outer, family: Family, algorithm: Algorithm | None = None, tasks: int = 4, device: Device = "auto"
) -> list[Outcome]:
    """Build an algorithm (default: a small MAML) for a family, take steps, and return the outcome of each check.

    Raises ValueError if the algorithm does not support the family, or the outer update does not support its learner.
    """
    subject = algorithms.AlgorithmSubject(algorithm or small_algorithm(), family, tasks, resolve_device(device))
    _require_supported(outer, subject.learner)
    return run_checks(outers.CHECKS, OuterSubject(outer, subject))


def _require_supported(outer: Outer, learner: Learner) -> None:
    """Raise ValueError if an outer update refuses a learner with one. The checks report any other exception."""
    try:
        if isinstance(outer, Selective):
            outer.check(learner)
    except Exception as error:
        if isinstance(error, ValueError):
            raise


def check_batch(batch: Batch, spec: Spec, tasks: int) -> None:
    """Check the shapes, dtypes and ranges of a batch. Raises ContractError."""
    faults = list(batch_faults(batch, spec, tasks))
    if isinstance(batch, Rollout) and not faults:
        faults += mask_faults(batch)
    messages = [f"{fault.message}{placed(fault.blamed)}" for fault in faults if isinstance(fault, Fault)]
    if messages:
        raise ContractError("\n".join(messages))


def _raise_failures(outcomes: Sequence[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.verdict == "FAILED"]
    if failed:
        cause = next((outcome.error for outcome in failed if outcome.error), None)
        raise ContractError("\n".join(map(str, failed))) from cause
