"""What sums over ranks would cost on 8, 64 and 1,024 GPUs: arithmetic with assumptions, not a measurement.

Run by hand: ``python tests/benchmarks/ranks_arithmetic.py``. It prints the table of ``docs/many_machines.md`` and draws
its picture. The numbers of sums and their bytes are those that ``ranks.py`` counts for TRPO; all else is assumed below.
"""

import math
from pathlib import Path

from matplotlib.figure import Figure

from metarl.pictures.plotting import COLOURS, MARKERS

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "ranks.png"
LARGE, SMALL, MESSAGES = 11, 2.7, 3
"""Sums of P numbers (TRPO's gradient and ten products), sums of a few (line search, signs), and messages by gloo."""
MESSAGE = 1_100
"""Bytes of the longest message of a rank."""
PER_NODE = 8
LAUNCH, WITHIN, BETWEEN, GLOO = 20e-6, 3e-6, 15e-6, 50e-6
"""Seconds to launch a sum, for a hop within a node, for one between nodes, and for a step of gloo's ring."""
NVLINK, NETWORK, ETHERNET = 200e9, 25e9, 1e9
"""Bytes a second of a GPU within its node, between nodes, and of gloo's messages."""
WORK, TASKS, ALL_TASKS = 1.0, 40, 1_024
"""Seconds in which one GPU works on so many tasks; and the tasks that strong scaling shares out."""
PARAMETERS = (10_604, 1_000_000)
GPUS = (8, 64, 1_024)


def sum_seconds(gpus: int, nbytes: float) -> float:
    """Return the seconds of one sum: up and down a tree, within nodes and between them."""
    nodes = math.ceil(gpus / PER_NODE)
    hops = 2 * (WITHIN * math.log2(min(gpus, PER_NODE)) + BETWEEN * math.log2(nodes))
    return LAUNCH + hops + 2 * nbytes * ((gpus > 1) / NVLINK + (nodes > 1) / NETWORK)


def seconds(gpus: int, parameters: int) -> tuple[float, float]:
    """Return the seconds of an iteration's sums, and of its messages, which go around a ring."""
    sums = LARGE * sum_seconds(gpus, 8 * parameters) + SMALL * sum_seconds(gpus, 24)
    return sums, MESSAGES * (gpus - 1) * (GLOO + MESSAGE / ETHERNET)


def weak(gpus: int, parameters: int) -> float:
    """Return the share of time that is work where every GPU has its 40 tasks."""
    return WORK / (WORK + sum(seconds(gpus, parameters)))


def strong(gpus: int, parameters: int) -> float:
    """Return how many times as fast as one GPU some GPUs are with all tasks."""
    alone = WORK * ALL_TASKS / TASKS
    return alone / (alone / gpus + sum(seconds(gpus, parameters)))


def table() -> str:
    """Return the table as Markdown."""
    head = "| GPUs | parameters | sums, ms | messages, ms | of them work, weak | faster, strong |"
    lines = [head, "|---|---|---|---|---|---|"]
    for parameters in PARAMETERS:
        for gpus in GPUS:
            sums, messages = (1e3 * part for part in seconds(gpus, parameters))
            shares = f"{weak(gpus, parameters):.0%} | {strong(gpus, parameters):.0f} x"
            lines.append(f"| {gpus:,} | {parameters:,} | {sums:.1f} | {messages:.1f} | {shares} |")
    return "\n".join(lines)


def draw(path: Path) -> None:
    """Draw both kinds of scaling over the number of GPUs."""
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = [2**power for power in range(11)]
    for index, parameters in enumerate(PARAMETERS):
        style = {"color": COLOURS[index], "marker": MARKERS[index], "label": f"{parameters:,} parameters"}
        left.plot(numbers, [100 * weak(gpus, parameters) for gpus in numbers], **style)
        right.plot(numbers, [strong(gpus, parameters) for gpus in numbers], **style)
    right.plot(numbers, numbers, color="0.75", linestyle=":", zorder=0, label="in proportion")
    left.set(ylim=(0, 104), ylabel="% of the time that is work", title=f"{TASKS} tasks for each GPU")
    right.set(yscale="log", ylabel="times as fast as one GPU", title=f"{ALL_TASKS:,} tasks in all")
    for panel in (left, right):
        panel.set(xscale="log", xlabel="GPUs")
        panel.set_xticks([1, 8, 64, 1_024], ["1", "8", "64", "1,024"])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    right.set_yticks([1, 10, 100, 1_000], ["1", "10", "100", "1,000"])
    right.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    print(table())
    draw(PICTURE)
