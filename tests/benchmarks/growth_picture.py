"""The picture of growth: time and memory of one iteration along each axis."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tables import used

from metarl.plotting import COLOURS, MARKERS

Points = dict[tuple[str, int], dict[str, Any]]


def draw(axes: dict[str, Points], path: Path) -> None:
    """Draw a column for each axis, time above memory; grey: as much more as the axis grows."""
    figure = Figure(figsize=(11, 5.6), dpi=150, layout="constrained")
    panels = figure.subplots(2, len(axes), sharey="row")
    for column, (name, points) in enumerate(axes.items()):
        finished = {key: row for key, row in points.items() if "seconds" in row}
        times = {key: 1e3 * row["seconds"] for key, row in finished.items()}
        memory = {key: used(row) / 2**20 for key, row in finished.items()}
        for panel, values in zip(panels[:, column], (times, memory), strict=True):
            lines(panel, values)
        panels[1, column].set_xlabel(name)
    panels[0, 0].set_ylabel("milliseconds per iteration")
    panels[1, 0].set_ylabel("MiB over the idle process")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path)


def lines(panel: Any, values: dict[tuple[str, int], float]) -> None:
    """Draw a line for each family, and through its first point what grows as the axis does."""
    for index, family in enumerate(sorted({family for family, _ in values})):
        points = sorted((value, amount) for (name, value), amount in values.items() if name == family)
        places, amounts = zip(*points, strict=True)
        panel.plot(places, amounts, color=COLOURS[index], marker=MARKERS[index], label=family)
        proportional = [amounts[0] * place / places[0] for place in places]
        panel.plot(places, proportional, color="0.75", linestyle=":", zorder=0)
    panel.set_xscale("log", base=2 if max(places) < 1000 else 10)
    panel.set_yscale("log")
    panel.set_xticks(places, [str(place) for place in places])
    panel.minorticks_off()
    panel.spines[["top", "right"]].set_visible(False)
