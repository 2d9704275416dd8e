"""Checks of outer updates' options."""

from typing import Any

from metarl.types import Learner


def require_positive(options: Any, *names: str) -> None:
    """Raise ValueError unless all named options are positive."""
    for name in names:
        if not getattr(options, name) > 0:
            raise ValueError(f"{type(options).__name__}: {name}={getattr(options, name)} must be positive")


def require_chunks(chunks: int | None) -> None:
    """Raise ValueError for fewer than one group of tasks. None (the default) is allowed."""
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks={chunks}: give at least one group of tasks, or leave it out")


def require_no_averages(learner: Learner, outer: str) -> None:
    """Raise ValueError for a learner with running averages among its meta-parameters."""
    if learner.averages:
        raise ValueError(
            f"the meta-parameters hold running averages (Reptile's --algorithm.carry-moments), which {outer} would not "
            "average: use sgd, or --algorithm.no-carry-moments"
        )
