"""Scores of many tasks as a mean with its interval, and as text."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from metarl import objectives


def summary(values: list[float]) -> dict[str, Any]:
    """Return the mean of independent values, and its 95 % confidence interval (Student's t).

    A single value has an interval of zero width.
    """
    from scipy import stats  # imported here: it takes half a second, and only evaluation needs it

    with np.errstate(invalid="ignore", over="ignore"):  # after diverged adaptation, the mean is nan or infinite
        mean = float(np.mean(values))
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    width = error * float(stats.t.ppf(0.975, max(len(values) - 1, 1)))
    return {"mean": mean, "low": mean - width, "high": mean + width, "per_task": values}


def table(metrics: Mapping[str, Mapping[str, Any]], batch_norm: str | None = None) -> str:
    """Render metrics as text, one line each, then the batch norm mode, because accuracies depend on it.

    Numbers of infos are left out: there may be many. The scores of a single task of one seed have no interval.
    """
    shown = {name: values for name, values in metrics.items() if not name.startswith(objectives.MEASURES)}
    width = max(20, *map(len, shown))
    lines = [f"{'metric':<{width}} {'mean':>10}   95 % interval{_over(metrics)}"]
    for name, values in shown.items():
        interval = "none: one task" if _is_single(values) else f"[{values['low']:.4g}, {values['high']:.4g}]"
        lines.append(f"{name:<{width}} {values['mean']:>10.4g}   {interval}")
    if batch_norm is not None:
        lines.append(f"batch norm: {batch_norm}")
    return "\n".join(lines)


def _over(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the intervals are over."""
    values = next(iter(metrics.values()), {})
    if "per_task" not in values or _is_single(values):
        return ""
    seeds = f"{values['seeds']} seeds and " if "seeds" in values else ""
    tasks = len(values["per_task"])
    return f" over {seeds}{tasks} task{'s' * (tasks > 1)}"


def _is_single(values: Mapping[str, Any]) -> bool:
    return len(values.get("per_task", ())) == 1 and values.get("seeds", 1) == 1
