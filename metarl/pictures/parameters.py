"""Scores over a task parameter, inside and outside of the range that was trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from metarl.pictures.plotting import LABELS, after, legend, point, save, scores_among, steps_of

BINS = 8
"""Parts of the axis over which means are drawn."""


def score_over_parameter(
    evaluations: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Sequence[float]],
    name: str,
    path: Path | str,
) -> Path:
    """Plot each task's score, before adaptation and after the last step, over a parameter; return the path written.

    ``evaluations`` holds the contents of each run's evaluation.json by label, and ``values`` the parameter of each of
    their tasks. Lines are means over parts of the axis. The range that was trained on is shaded, where the first
    evaluation tells it.

    Raises:
        ValueError: no evaluation has a score.
    """
    names = scores_among(key for evaluation in evaluations.values() for key in evaluation["metrics"])
    figure = Figure(figsize=(5.4 * len(names) + 1.8, 4.2), dpi=150, layout="constrained")
    trained = next((one["training_ranges"].get(name) for one in evaluations.values() if "training_ranges" in one), None)
    for score, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        axes.set(xlabel=name, ylabel=LABELS[score])
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if trained is not None:
            axes.axvspan(*trained, color="0.93", zorder=0)
        for index, (label, evaluation) in enumerate(evaluations.items()):
            _scores(axes, evaluation["metrics"], score, np.array(values[label], dtype=float), point(index))
    entries: list[tuple[str, Any]] = [
        (label, Line2D([], [], **point(index))) for index, label in enumerate(evaluations)
    ]
    logged = [key for one in evaluations.values() for key in one["metrics"]]
    steps = sorted({step for score in names for step in steps_of(score, logged)})
    entries += [(after(steps[0]), Line2D([], [], **_style(point(0) | {"color": "0.3"}, first=True)))]
    if len(steps) > 1:
        entries += [(after(steps[-1]), Line2D([], [], **_style(point(0) | {"color": "0.3"}, first=False)))]
    if trained is not None:
        entries += [("trained on", Patch(color="0.93"))]
    legend(figure, entries)
    return save(figure, path)


def _scores(axes: Axes, metrics: Mapping[str, Any], score: str, values: np.ndarray, style: Mapping[str, Any]) -> None:
    steps = steps_of(score, metrics)
    for step in sorted({steps[0], steps[-1]}) if steps else ():
        found = np.array(metrics[f"{score}/step_{step}"]["per_task"], dtype=float)
        one = _style(style, first=step == steps[0] and len(steps) > 1)
        axes.plot(values, found, **one | {"linestyle": "", "alpha": 0.45, "markersize": 4})
        axes.plot(*_means(values, found), **one | {"marker": ""})


def _style(style: Mapping[str, Any], first: bool) -> dict[str, Any]:
    return {**style, "markerfacecolor": "none", "linestyle": ":"} if first else {**style, "linestyle": "-"}


def _means(values: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of each part of the axis that has tasks, and their mean score."""
    edges = np.linspace(values.min(), values.max(), BINS + 1)
    part = np.clip(np.digitize(values, edges) - 1, 0, BINS - 1)
    present = np.unique(part)
    middles = (edges[present] + edges[present + 1]) / 2
    return middles, np.array([found[part == one].mean() for one in present])
