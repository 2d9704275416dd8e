"""Plots of learning curves, adaptation curves, navigation paths and few-shot tasks. The file's suffix sets the format.

Runs differ by colour and marker, adaptation steps by dash and opacity, so that colour-blind readers can tell them
apart.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from metarl.files import expanded, write_bytes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, https://jfly.uni-koeln.de/color/."""
MARKERS = "osD^vPX"
DASHES = (":", "--", "-.", (0, (6, 1, 1, 1, 1, 1)))
LABELS = {"return": "return per episode (sum of rewards)", "accuracy": "accuracy (fraction correct)", "loss": "loss"}
AXES = {"iteration": "meta-iteration", "environment_steps": "environment steps"}
REFERENCES: Mapping[str, Mapping[str, Any]] = {
    "return/zero_actions": {"color": "0.35", "linewidth": 1.2, "linestyle": ":"},
    "return/random_actions": {"color": "0.35", "linewidth": 1.2, "linestyle": (0, (6, 3))},
}
"""Scores of policies that know nothing, as lines across the panel."""
SMOOTHING = 50
"""The running mean of learning curves spans the longest run's length divided by this."""


def learning_curve(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path | str, over: str = "iteration") -> Path:
    """Plot the scores before and after each adaptation step over training; return the path written.

    ``runs`` holds the rows of each run's progress.csv by label; blank cells are skipped. Long runs are plotted as
    running means, with the raw values faint behind them. ``over`` is the column of the horizontal axis: iteration, or
    environment_steps. Where a row has ``NAME:low`` and ``NAME:high`` beside a score, the range is drawn as a band.

    Raises:
        ValueError: no row has a score.
    """
    keys = {key for rows in runs.values() for row in rows for key in row}
    names = scores_among(keys)
    figure, panels = _panels(names, AXES.get(over, over))
    window = max(1, max(map(len, runs.values())) // SMOOTHING)
    steps = sorted({step for name in names for step in steps_of(name, keys)})
    last = steps[-1]
    for name, axes in zip(names, panels, strict=True):
        for index, rows in enumerate(runs.values()):
            for step in steps_of(name, keys):
                line = _line(index, step, last) | _marks(index)
                key = f"{name}/step_{step}"
                _curve(axes, *_column(rows, key, over), window, line)
                _band(axes, rows, key, over, window, line)
    _title_of_curves(figure, window, any(":low" in key for key in keys))
    lines = [(label, {"color": COLOURS[index % len(COLOURS)]} | _marks(index)) for index, label in enumerate(runs)]
    lines += [(after(step), _line(0, step, last) | {"color": "0.3"}) for step in steps]
    legend(figure, [(label, Line2D([], [], **line)) for label, line in lines])
    return save(figure, path)


def _title_of_curves(figure: Figure, window: int, banded: bool) -> None:
    told = [f"mean over {window} iterations; faint: every iteration"] if window > 1 else []
    told += ["bands: from the lowest to the highest seed"] if banded else []
    if told:
        figure.suptitle("; ".join(told), fontsize="small", color="0.35")


def _band(
    axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, over: str, window: int, line: Mapping[str, Any]
) -> None:
    (where, low), (_, high) = (_column(rows, f"{key}:{end}", over) for end in ("low", "high"))
    if len(where):
        shade = {"color": line["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(where, _running_mean(low, window), _running_mean(high, window), **shade)


def adaptation_curve(evaluations: Mapping[str, Mapping[str, Any]], path: Path | str) -> Path:
    """Plot the mean scores over adaptation steps with their 95 % intervals; return the path written.

    ``evaluations`` holds the contents of each run's evaluation.json by label. Lines show what zero actions and random
    actions earn, as the first evaluation that has them says.

    Raises:
        ValueError: no evaluation has a score.
    """
    names = scores_among(key for evaluation in evaluations.values() for key in evaluation["metrics"])
    references: Mapping[str, Any] = next(
        (found for one in evaluations.values() if (found := one.get("references"))), {}
    )
    lines = [(label, style) for label, style in REFERENCES.items() if label in references]
    figure, panels = _panels(names, "adaptation steps")
    for name, axes in zip(names, panels, strict=True):
        for index, evaluation in enumerate(evaluations.values()):
            # Runs are shifted a little against each other, so that no interval hides another.
            shift = 0.04 * (index - (len(evaluations) - 1) / 2)
            _intervals(axes, evaluation["metrics"], name, point(index), shift)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for label, style in lines:
            if label.startswith(f"{name}/"):
                axes.axhline(references[label]["mean"], **style)
    tasks = sorted({f"{evaluation['tasks']} {evaluation['split']} tasks" for evaluation in evaluations.values()})
    over_seeds = "seeds and " if any("seeds" in evaluation for evaluation in evaluations.values()) else ""
    title = f"mean and 95 % interval over {over_seeds}{' or '.join(tasks)}"
    figure.suptitle(title, fontsize="small", color="0.35", parse_math=False)
    entries = [(label, Line2D([], [], **point(index))) for index, label in enumerate(evaluations)]
    known = [(label.partition("/")[2].replace("_", " "), Line2D([], [], **style)) for label, style in lines]
    legend(figure, entries + known)
    return save(figure, path)


def navigation_paths(paths: Any, mask: Any, goals: Any, path: Path | str, shown: int = 4) -> Path:
    """Plot a point's paths before and after each adaptation step, one panel per goal; return the path written.

    Arguments are arrays or CPU tensors: positions ``[step, task, episode, time, 2]`` and goals ``[task, 2]`` in metres,
    mask ``[step, task, episode, time]``. The first ``shown`` tasks are plotted.

    Raises:
        ValueError: the shapes do not agree.
    """
    paths, mask, goals = np.asarray(paths, float), np.asarray(mask, float), np.asarray(goals, float)
    if paths.ndim != 5 or paths.shape != (*mask.shape, 2) or goals.shape != (paths.shape[1], 2):
        raise ValueError(
            "expected paths [step, task, episode, time, 2], mask [step, task, episode, time] and goals [task, 2], "
            f"not shapes {paths.shape}, {mask.shape} and {goals.shape}"
        )
    running = np.where(mask[..., None] > 0, paths, np.nan)
    count = min(shown, len(goals))
    figure = Figure(figsize=(3.0 * count + 2.5, 3.8), dpi=150, layout="constrained")
    panels = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    for task, axes in enumerate(panels):
        _paths(axes, running[:, task], goals[task])
    limits = _square(np.concatenate([running[:, :count].reshape(-1, 2), goals[:count]]))
    panels[0].set(ylabel="y (metres)", xlim=limits[:, 0], ylim=limits[:, 1])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return save(figure, path)


def episodes(
    support: Any,
    support_classes: Any,
    query: Any,
    query_classes: Any,
    path: Path | str,
    shown: int = 4,
    columns: int = 5,
) -> Path:
    """Show the images of few-shot tasks, one panel per task: a row per class, support left of query.

    Arguments are arrays or CPU tensors: images ``[task, item, channel, height, width]`` in [0, 1] with one channel
    (ink, drawn black) or three, and classes ``[task, item]``, below 0 for padding. The first ``shown`` tasks are drawn,
    with at most ``columns`` images per class and role. Return the path written.

    Raises:
        ValueError: images of another shape.
    """
    parts = [(np.asarray(support), np.asarray(support_classes)), (np.asarray(query), np.asarray(query_classes))]
    if any(images.ndim != 5 or images.shape[2] not in (1, 3) for images, _ in parts):
        raise ValueError(f"expected images [task, item, 1 or 3, height, width], not shape {parts[0][0].shape}")
    count = min(shown, len(parts[0][0]))
    figure = Figure(figsize=(3.6 * count, 4.2), dpi=150, layout="constrained")
    for task, axes in enumerate(figure.subplots(1, count, squeeze=False)[0]):
        mosaics = [_mosaic(images[task], classes[task], columns) for images, classes in parts]
        gap = np.full((mosaics[0].shape[0], mosaics[0].shape[1] // 20 + 4, 3), 0.75)
        axes.imshow(np.concatenate([mosaics[0], gap, mosaics[1]], axis=1), interpolation="nearest")
        axes.set(xticks=[], yticks=[], title=f"task {task}: support | query")
    return save(figure, path)


def _mosaic(images: np.ndarray, classes: np.ndarray, columns: int) -> np.ndarray:
    """Return one image ``[height, width, 3]`` of images ``[item, channel, height, width]``, a row per class."""
    pixels = np.broadcast_to(images if images.shape[1] == 3 else 1 - images, (len(images), 3, *images.shape[2:]))
    framed = np.pad(pixels, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.85).transpose(0, 2, 3, 1)
    found = [framed[classes == label][:columns] for label in np.unique(classes) if label >= 0]
    width = max(map(len, found))
    rows = [np.pad(row, ((0, width - len(row)), *[(0, 0)] * 3), constant_values=0.75) for row in found]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def is_score(key: str) -> bool:
    """Return whether a logged name is a score that plots show."""
    return re.fullmatch(rf"({'|'.join(LABELS)})/step_[0-9]+", key) is not None


def has_scores(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether rows of training hold a score that plots show; cells may be empty."""
    return any(value and is_score(name) for row in rows for name, value in row.items())


def scores_among(keys: Iterable[str]) -> list[str]:
    """Return the scores among the logged names. Raises ValueError if there are none."""
    logged = {key.partition("/step_")[0] for key in keys if is_score(key)}
    names = [name for name in LABELS if name in logged]
    if not names:
        raise ValueError(f"nothing to draw: expected {', '.join(f'{name}/step_0' for name in LABELS)} or their like")
    return names


def steps_of(name: str, keys: Iterable[str]) -> list[int]:
    """Return the adaptation steps after which a score was logged, in order."""
    matches = (re.fullmatch(rf"{name}/step_(\d+)", key) for key in keys)
    return sorted({int(match[1]) for match in matches if match})


def _column(rows: Sequence[Mapping[str, Any]], name: str, over: str = "iteration") -> tuple[np.ndarray, np.ndarray]:
    """Return the places on the horizontal axis and the values ``[row]`` of a column, without blank cells."""
    cells = [(row[over], row[name]) for row in rows if row.get(name) not in (None, "")]
    pairs = np.array(cells, dtype=float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def after(step: int) -> str:
    """Return the label of a number of adaptation steps."""
    return f"after {step} step{'s' * (step > 1)}" if step else "before adaptation"


def _line(run: int, step: int, last: int) -> dict[str, Any]:
    """Return the line style of a step's curve; the last step's is solid and opaque."""
    dash = "-" if step == last else DASHES[step % len(DASHES)]
    return {"color": COLOURS[run % len(COLOURS)], "linestyle": dash, "alpha": 0.55 + 0.45 * step / max(last, 1)}


def point(run: int) -> dict[str, Any]:
    """Return the style of a run's points: no two of the first 49 are the same."""
    marker = MARKERS[(run + run // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[run % len(COLOURS)], "marker": marker, "linewidth": 1.8}


def _marks(run: int) -> dict[str, Any]:
    """Return what tells a run's lines from those of an earlier one in the same colour."""
    repeated = run // len(COLOURS)
    return {"marker": MARKERS[(repeated - 1) % len(MARKERS)], "markevery": 0.15} if repeated else {}


def legend(figure: Figure, entries: Sequence[tuple[str, Line2D]]) -> None:
    """Add a legend with labels as they are: none is left out for its underscore, or read as a formula."""
    labels, handles = zip(*entries, strict=True)
    legend = figure.legend(handles, [str(number) for number in range(len(labels))], loc="outside right upper")
    legend.set_frame_on(False)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def _panels(names: Sequence[str], xlabel: str) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with one panel per score."""
    figure = Figure(figsize=(5.4 * len(names) + 1.8, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for name, axes in zip(names, panels, strict=True):
        axes.set(xlabel=xlabel, ylabel=LABELS[name])
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _curve(axes: Axes, iterations: np.ndarray, values: np.ndarray, window: int, line: Mapping[str, Any]) -> None:
    if window > 1:
        axes.plot(iterations, values, color=line["color"], alpha=0.15, linewidth=0.6)
    if len(values) == 1:
        line = {"marker": "o", **line}  # a line through one point is invisible
    axes.plot(iterations, _running_mean(values, window), **line)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return centred means over ``window`` values, or over fewer near the ends."""
    half = window // 2
    return np.array([values[max(0, i - half) : i + window - half].mean() for i in range(len(values))])


def _intervals(
    axes: Axes, metrics: Mapping[str, Mapping[str, Any]], name: str, style: Mapping[str, Any], shift: float
) -> None:
    steps = steps_of(name, metrics)
    mean, low, high = (
        np.array([metrics[f"{name}/step_{step}"][key] for step in steps]) for key in ("mean", "low", "high")
    )
    # A bootstrap's interval over seeds may end short of the mean.
    where, errors = np.array(steps) + shift, np.maximum(np.array([mean - low, high - mean]), 0.0)
    axes.errorbar(where, mean, errors, capsize=3, **style)


def _paths(axes: Axes, paths: np.ndarray, goal: np.ndarray) -> None:
    """Plot the paths ``[step, episode, time, 2]`` of one task."""
    colours = mpl.colormaps["viridis"](np.linspace(0.05, 0.9, len(paths)))
    for step, (episodes, colour) in enumerate(zip(paths, colours, strict=True)):
        lines = axes.plot(*episodes.transpose(2, 1, 0), color=colour, linewidth=1, alpha=0.7)
        lines[0].set_label(after(step))
    axes.plot(*goal, "*", color="#D55E00", markeredgecolor="black", markersize=16, linestyle="", label="goal", zorder=3)
    axes.set(xlabel="x (metres)", aspect="equal", title=f"goal ({goal[0]:.2f}, {goal[1]:.2f})")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _square(points: np.ndarray) -> np.ndarray:
    """Return the smallest square, with a margin, around points ``[point, 2]``: ``[corner, 2]``."""
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    half = 0.55 * (high - low).max() or 1.0
    return np.stack([(low + high) / 2 - half, (low + high) / 2 + half])


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure, whole or not at all; return the path."""
    path = expanded(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix(".") or "png", bbox_inches="tight")
    write_bytes(path, buffer.getvalue())
    return path
