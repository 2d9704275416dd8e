"""The picture of growth: time and memory of one iteration along each axis."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tables import used

from metarl.pictures.plotting import COLOURS, MARKERS

MEASURES = {
    "milliseconds per iteration": lambda row: 1e3 * row["seconds"],
    "MiB over the idle process": lambda row: used(row) / 2**20,
}
Points = dict[tuple[str, int], dict[str, Any]]


def draw(axes: dict[str, Points], path: Path) -> None:
    """Draw a column for each axis, time above memory; grey: as much more as the axis grows."""
    figure = Figure(figsize=(11, 5.6), dpi=150, layout="constrained")
    panels = figure.subplots(2, len(axes), sharey="row")
    for row, (unit, measure) in enumerate(MEASURES.items()):
        values = [{key: measure(one) for key, one in points.items() if "seconds" in one} for points in axes.values()]
        for panel, shown in zip(panels[row], values, strict=True):
            lines(panel, shown)
        every = [amount for shown in values for amount in shown.values()]
        panels[row, 0].set(ylabel=unit, ylim=(0.7 * min(every), 1.4 * max(every)))
    for panel, name in zip(panels[1], axes, strict=True):
        panel.set_xlabel(name)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path)


def lines(panel: Any, values: dict[tuple[str, int], float]) -> None:
    """Draw a line for each family, and through its first point what grows as the axis does."""
    families = sorted({family for family, _ in values})
    curves = [sorted((value, amount) for (name, value), amount in values.items() if name == one) for one in families]
    for index, (family, points) in enumerate(zip(families, curves, strict=True)):
        panel.plot(*zip(*points, strict=True), color=COLOURS[index], marker=MARKERS[index], label=family)
    for index, points in enumerate(curves):
        places = [place for place, _ in points]
        proportional = [points[0][1] * place / places[0] for place in places]
        label = None if index else "in proportion"
        panel.plot(places, proportional, color="0.75", linestyle=":", zorder=0, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(places, [str(place) for place in places])
    panel.minorticks_off()
    panel.spines[["top", "right"]].set_visible(False)
