"""The picture of a comparison: for each score, curves over adaptation steps, differences, and performance profiles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from metarl.pictures import plotting

FORMATS = (".png", ".svg", ".pdf", ".jpg")
Interval = tuple[float, float | None, float | None]
"""A value with the ends of its interval, if it has one."""
Intervals = Mapping[str, Mapping[str, Interval]]
"""By score, such as return/step_1, and by run."""
POINTS = 200


def check_suffix(path: Path) -> None:
    """Raise ValueError for a suffix that no picture has."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a picture that ends in {', '.join(FORMATS)}")


def comparison(
    scores: Mapping[str, Mapping[str, Any]], estimates: Mapping[str, Intervals], path: Path | str, told: str
) -> Path:
    """Draw a comparison of runs; return the path written.

    ``scores`` are those of each run by label, ``[seed, task]`` by name; ``estimates`` holds intervals of the ``mean``
    and of the ``difference`` from the first run. A row for each kind of score has three panels: means over adaptation
    steps; differences; and after the last step that all have, the share of scores, over seeds and tasks, beyond each
    value (the performance profiles of arXiv:2108.13264).

    Raises:
        ValueError: there is no score that plots show.
    """
    names = plotting.scores_among(name for one in scores.values() for name in one)
    figure = Figure(figsize=(14.5, 4.2 * len(names) + 0.4), dpi=110, layout="constrained")
    labels = list(scores)
    for name, panels in zip(names, figure.subplots(len(names), 3, squeeze=False), strict=True):
        for axes in panels:
            axes.grid(color="0.9", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        for axes, kind in zip(panels[:2], ("mean", "difference"), strict=True):
            _over_steps(axes, estimates.get(kind, {}), name, labels)
            axes.set(xlabel="adaptation steps", ylabel=plotting.LABELS[name])
        panels[1].set_ylabel(f"{name} minus that of {labels[0]}", parse_math=False)
        panels[1].axhline(0, color="0.4", linewidth=0.8)
        _profiles(panels[2], scores, name)
    figure.suptitle(f"mean and 95 % interval over {told}", fontsize="small", color="0.35", parse_math=False)
    plotting.legend(figure, [(label, Line2D([], [], **plotting.point(run))) for run, label in enumerate(labels)])
    return plotting.save(figure, path)


def _over_steps(axes: Axes, intervals: Intervals, name: str, labels: list[str]) -> None:
    steps = plotting.steps_of(name, intervals)
    for run, label in enumerate(labels):
        found = [(step, intervals[f"{name}/step_{step}"].get(label)) for step in steps]
        drawn = [(step, *interval) for step, interval in found if interval is not None]
        if not drawn:
            continue
        where, value, low, high = (np.array(column, float) for column in zip(*drawn, strict=True))
        shift = 0.04 * (run - (len(labels) - 1) / 2)
        errors = np.nan_to_num(np.stack([value - low, high - value])).clip(0)
        axes.errorbar(where + shift, value, errors, capsize=3, **plotting.point(run))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _profiles(axes: Axes, scores: Mapping[str, Mapping[str, Any]], name: str) -> None:
    common = [step for step in plotting.steps_of(name, next(iter(scores.values()))) if _all_have(scores, name, step)]
    if not common:
        axes.set_axis_off()
        return
    last = f"{name}/step_{common[-1]}"
    falls = name == "loss"
    every = np.concatenate([np.asarray(one[last], float).ravel() for one in scores.values()])
    if not np.isfinite(every).all():
        axes.set_axis_off()
        return
    margin = 0.05 * (every.max() - every.min()) or 1.0
    values = np.linspace(every.min() - margin, every.max() + margin, POINTS)
    for run, one in enumerate(scores.values()):
        flat = np.sort(np.asarray(one[last], float), axis=None)
        below = np.searchsorted(flat, values, "left" if falls else "right") / len(flat)
        style = {name: value for name, value in plotting.point(run).items() if name != "marker"}
        axes.step(values, below if falls else 1 - below, where="post", **style)
    sense = "below" if falls else "above"
    axes.set(xlabel=plotting.LABELS[name], ylabel=f"share of scores {sense}", ylim=(-0.02, 1.02))
    axes.set_title(plotting.after(common[-1]), fontsize="medium")


def _all_have(scores: Mapping[str, Mapping[str, Any]], name: str, step: int) -> bool:
    return all(f"{name}/step_{step}" in one for one in scores.values())
