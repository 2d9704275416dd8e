"""Rows of progress.csv, prepared for learning curves: joined over the seeds of a group, and over environment steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarl.pictures import plotting

Rows = Sequence[Mapping[str, Any]]


def pooled(seeds: Sequence[Rows]) -> list[dict[str, float]]:
    """Return the mean of the rows of several seeds, at the iterations that all have logged.

    Beside each score's mean, ``NAME:low`` and ``NAME:high`` hold the lowest and the highest seed.
    """
    by_iteration = [{int(row["iteration"]): row for row in rows} for rows in seeds]
    common = sorted(set.intersection(*(set(rows) for rows in by_iteration)))
    return [_joined([rows[number] for rows in by_iteration]) for number in common]


def _joined(rows: Rows) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in rows[0]:
        cells = [row.get(name) for row in rows]
        if any(cell in (None, "") for cell in cells):
            continue
        values = np.array(cells, dtype=float)
        found[name] = float(values.mean())
        if plotting.is_score(name) and len(rows) > 1:
            found |= {f"{name}:low": float(values.min()), f"{name}:high": float(values.max())}
    return found


def with_environment_steps(rows: Rows, name: str) -> list[dict[str, Any]]:
    """Return rows with the environment steps since the start of training, ``environment_steps``.

    A row tells the steps of its own iteration. Those between two rows are taken to be like the later one's, which is
    exact where every iteration is logged, or all take as many steps.

    Raises ValueError, with the run's ``name``, for rows of labelled examples, which have no environment steps.
    """
    found, total, before = list[dict[str, Any]](), 0.0, 0
    for row in rows:
        number = int(row["iteration"])
        rate, seconds = (row.get(f"time/{name}") for name in ("environment_steps_per_second", "iteration_seconds"))
        if rate in (None, "") or seconds in (None, ""):
            raise ValueError(
                f"{name} counts no environment steps, as training on labelled examples: plot over iterations"
            )
        total += round(float(rate) * float(seconds)) * (number - before)
        before = number
        found.append({**row, "environment_steps": total})
    return found
