"""The pictures of the results pages. Each holds a digest of what it shows, by which a test knows a stale one."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rows import position

from metarl.pictures import plotting

Drawing = dict[str, Any]
"""What a picture shows, as plain data: ``kind``, labels and numbers."""
COLOURS = plotting.COLOURS
STEPS, INSTANCES = "step", "instance"
FIRST_INSTANCE = "accuracy/instance_1"


def of_part(part: str, group: Sequence[Any]) -> dict[str, Drawing]:
    """Return a section's pictures by kind: learning over environment steps, and adaptation."""
    present = [line for line in group if line.found]
    if not present:
        return {}
    found = {}
    axis = INSTANCES if any(FIRST_INSTANCE in line.scores for line in present) else STEPS
    score = next((_score_of(line.scores) for line in present), "")
    if score == "accuracy" and axis == STEPS:
        found["adaptation"] = _levels(part, present)
    elif any(_points(line.scores, axis) for line in present):
        found["adaptation"] = _adaptation(part, present, score, axis)
    curves = [
        {"label": line.row.title, "seeds": [list(_curve(one["progress"])) for one in line.found.values()]}
        for line in present
    ]
    curves = [curve for curve in curves if any(len(points) > 1 for points in curve["seeds"])]
    if curves:
        found["learning"] = {"kind": "learning", "title": part, "ours": curves}
    return found


def _adaptation(part: str, present: Sequence[Any], score: str, axis: str) -> Drawing:
    """Return scores after each step or, with a memory, on each drawing of a class."""
    ours = [{"label": line.row.title, "points": _points(line.scores, axis)} for line in present]
    others = [
        {"label": other["title"], "points": [[position(name), value] for name, value in other["scores"].items()]}
        for line in present
        for other in line.row.others
        if not other.get("elsewhere")
        if all(f"/{axis}_" in name for name in other["scores"])
    ]
    return {"kind": "adaptation", "title": part, "ours": ours, "others": others, "score": score, "axis": axis}


def _levels(part: str, present: Sequence[Any]) -> Drawing:
    """Return classifiers' accuracies, beside those of others: they adapt at once.

    They are those after the step that the bar is for, or the last one of a row without a bar.
    """
    ours = []
    for line in present:
        steps = (name for name in line.scores if name.startswith(f"accuracy/{STEPS}_"))
        score = next(iter(line.row.bar), max(steps, key=position))
        others = [other["scores"][score] for other in line.row.others if score in other["scores"]]
        ours.append({"label": line.row.title, "score": _rounded(line.scores[score]), "others": others})
    return {"kind": "levels", "title": part, "ours": ours}


def of_study(found: Sequence[Any]) -> Drawing | None:
    """Return the study's picture: every point's score after one step, with its interval; None if nothing has run."""
    points = [
        {"part": line.row.part, "label": line.row.title, "score": _rounded(line.scores["return/step_1"])}
        for line in found
        if "return/step_1" in line.scores
    ]
    return {"kind": "study", "points": points} if points else None


def _points(scores: Any, axis: str) -> list[list[float]]:
    """Return step or instance, mean, low and high of the first score that has steps."""
    score = _score_of(scores)
    named = {name: values for name, values in scores.items() if score and name.startswith(f"{score}/{axis}_")}
    return [[position(name), *_rounded(values)] for name, values in named.items()]


def _score_of(scores: Any) -> str:
    """Return the score that is drawn; empty if there is none."""
    return next((name for name in ("accuracy", "return", "loss") if f"{name}/step_0" in scores), "")


def _rounded(values: Any) -> list[float]:
    return [float(f"{values[key]:.5g}") for key in ("mean", "low", "high")]


def _curve(progress: Sequence[dict[str, float]]) -> Iterator[list[float]]:
    """Yield environment steps, in millions, and the return after the last training step."""
    last = max(
        (name for row in progress for name in row if name.startswith("return/step_")), key=position, default=None
    )
    for row in progress:
        if last is not None and last in row:
            yield [row["environment_steps"] / 1e6, row[last]]


def digest(drawing: Drawing) -> str:
    """Return a hash of what a picture shows."""
    return hashlib.sha256(json.dumps(drawing, sort_keys=True).encode()).hexdigest()


def draw(drawing: Drawing, path: Path) -> Path:
    """Draw a picture as a PNG file, with the digest as its description; return the path."""
    if drawing["kind"] == "study":
        figure = _draw_study(drawing["points"])
    else:
        part, height = {
            "adaptation": (_draw_adaptation, 4.2),
            "learning": (_draw_learning, 4.2),
            "levels": (_draw_levels, 0.45 * len(drawing["ours"]) + 1.2),
        }[drawing["kind"]]
        figure = Figure(figsize=(8, height), dpi=110, layout="constrained")
        axes = figure.subplots()
        part(axes, drawing)
        axes.set_title(drawing["title"], fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    figure.savefig(path, metadata={"Description": digest(drawing)})
    return path


def _draw_adaptation(axes: Axes, drawing: Drawing) -> None:
    for index, line in enumerate(drawing["ours"]):
        if line["points"]:
            steps, means, lows, highs = zip(*line["points"], strict=True)
            below, above = np.subtract(means, lows), np.subtract(highs, means)
            style = {**_style(index), "marker": plotting.MARKERS[index % len(plotting.MARKERS)]}
            axes.errorbar(steps, means, (below, above), label=_short(line["label"]), capsize=3, **style)
    for index, line in enumerate(drawing["others"]):
        steps, values = zip(*line["points"], strict=True)
        axes.plot(
            steps, values, linestyle=":", marker="x", color=str(0.2 + 0.25 * (index % 3)), label=_short(line["label"])
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    told = {STEPS: "adaptation steps", INSTANCES: "which drawing of a character, before its name is shown"}
    axes.set(xlabel=told[drawing["axis"]], ylabel=f"{drawing['score']} on held-out tasks")


def _draw_levels(axes: Axes, drawing: Drawing) -> None:
    for place, line in enumerate(drawing["ours"]):
        mean, low, high = line["score"]
        style = {"fmt": "o", "color": COLOURS[0], "capsize": 3}
        axes.errorbar(mean, -place, xerr=[[mean - low], [high - mean]], label="" if place else "metarl", **style)
        others = line["others"]
        axes.plot(others, [-place] * len(others), "x", color="0.3", label="" if place else "the paper")
    axes.set_yticks([-place for place in range(len(drawing["ours"]))], [line["label"] for line in drawing["ours"]])
    axes.set(xlabel="accuracy on held-out tasks", ylim=(0.5 - len(drawing["ours"]), 0.5))
    axes.grid(axis="x", color="0.9")


def _draw_learning(axes: Axes, drawing: Drawing) -> None:
    for index, line in enumerate(drawing["ours"]):
        for number, points in enumerate(line["seeds"]):
            if points:
                label = _short(line["label"]) if number == 0 else None
                axes.plot(*zip(*points, strict=True), **_style(index), alpha=0.8, linewidth=1, label=label)
    axes.set(xlabel="environment steps of training (millions)", ylabel="training return after the last step")


def _style(index: int) -> dict[str, Any]:
    """Return the look of a line: its colour, and dashes where all colours are taken."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": "-" if index < len(COLOURS) else "--"}


def _draw_study(points: Sequence[Any]) -> Figure:
    parts = list(dict.fromkeys(point["part"] for point in points))
    longest = max(sum(point["part"] == part for point in points) for part in parts)
    figure = Figure(figsize=(5.5 * len(parts), 0.3 * longest + 1.2), dpi=110, layout="constrained")
    for part, axes in zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], strict=True):
        own = [point for point in points if point["part"] == part]
        for place, point in enumerate(own):
            mean, low, high = point["score"]
            axes.errorbar(mean, -place, xerr=[[mean - low], [high - mean]], fmt="o", color=COLOURS[0], capsize=3)
        axes.axvline(own[0]["score"][0], color="0.7", linewidth=1, zorder=0)
        axes.set_yticks([-place for place in range(len(own))], [_short(point["label"]) for point in own])
        axes.set(xlabel="return after one step", title=part.removeprefix("Study: "))
    return figure


def _short(text: str) -> str:
    return text if len(text) <= 42 else f"{text[:40]}…"
