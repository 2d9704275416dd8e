"""Reptile on Omniglot: which inner gradients teach the initial network, and what becomes of reused mini-batches.

    python docs/experiments/reptile.py --seeds 0 1           the small version of the committed pictures, on a CPU
    python docs/experiments/reptile.py --seeds 0 1 2 --convolutional --iterations 40000 --step-size 0.003 \\
        --outer-step 0.25                                    the size of the paper

Figures 3 and 4 of the Reptile paper (arXiv 1803.02999, section 6): 5-shot 5-way Omniglot, gradient descent in both
loops, one task for each outer update, five steps on all 25 drawings at test. It trains and evaluates the runs
RUNS/reptile-*, of which it goes on with those that were stopped and takes those that are finished as they are, and
writes reptile.json, reptile-combinations.png and reptile-overlap.png. Interrupt it at any time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarl import runs, training
from metarl.algorithms.reptile import Reptile
from metarl.evaluation.scores import evaluate
from metarl.files import write_json
from metarl.networks.options import Network
from metarl.outer.gradient import SGD
from metarl.pictures.plotting import COLOURS, MARKERS
from metarl.speed import Device
from metarl.training import Source
from metarl.training.loop import Run
from metarl.training.settings import Settings
from metarl.types import Params
from metarl_plugins.omniglot import Omniglot

CURVE = "curve.json"
STEPS = 5
"""Gradient steps at test."""
SHOTS = 5
METHODS = {
    "Reptile": ("sum", "shared"),
    "FOMAML, separate tail": ("last", "separate"),
    "FOMAML, shared tail": ("last", "shared"),
}
"""What follows which inner gradients, and where the last of them comes from."""
MINI_BATCHES = {"cycle": "cycling", "replacement": "with replacement"}
TRAIN_SHOTS, TAIL_SHOTS = 16, 4
"""Figure 4: drawings of a character in the inner loop, and in a separate last mini-batch; there are 20."""
LAST_FRESH = {"steps": 4, "batch_size": 20}
"""Figure 4: inner steps and drawings in a mini-batch, where they do not vary: they use up the 80 of the inner loop, so
that with more of either a cycle's last mini-batch repeats drawings."""


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    figures: tuple[Literal["combinations", "overlap"], ...] = ("combinations", "overlap")
    """What to train and draw: the paper's figure 3, its figure 4, or both."""
    runs: Path = Path("runs")
    """Folder of the runs."""
    out: Path = Path("runs/reptile")
    """Folder of the results."""
    root: str | None = None
    """Folder of Omniglot; by default the folder omniglot in the one that METARL_DATA names."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs."""
    iterations: int = 300
    """Outer updates of a run, over which the outer step size falls to 0."""
    convolutional: bool = False
    """Train the paper's network, conv4 with 64 filters, instead of a small one: two batch-normalised layers of 64."""
    step_size: float = 0.1
    """Inner step size."""
    outer_step: float = 0.5
    """Outer step size at the beginning: a share of the way of the inner loop."""
    lengths: tuple[int, ...] = (1, 2, 4, 5, 8)
    """Inner steps that are compared."""
    batch_sizes: tuple[int, ...] = (10, 20, 40, 80)
    """Inner mini-batches that are compared, at four steps."""
    tasks: int = 60
    """Test tasks."""
    points: int = 5
    """Evaluations of a run of figure 3, evenly spaced over its iterations."""
    device: Device = "auto"
    """Where to train."""


class Cell(NamedTuple):
    """A curve of figure 3 or a point of figure 4: what is trained."""

    name: str
    algorithm: Reptile
    family: Omniglot
    outer: SGD


Curve = list[dict[str, float]]
"""Accuracy at test by iteration, with its 95 % interval over tasks."""
Seeds = dict[str, Curve]


def main(options: Options) -> None:
    """Train what is absent, and draw everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    if "combinations" in options.figures:
        cells = combinations(options)
        found["combinations"] = {label: measured(cell, options.points, options) for label, cell in cells.items()}
        draw_combinations(found["combinations"], options.out / "reptile-combinations.png")
        for label, curves in found["combinations"].items():
            print(f"{label:<30} {_told(curves)}")
    if "overlap" in options.figures:
        found["overlap"] = {}
        for option, line, cells in sweeps(options):
            points = {str(value): measured(cell, 1, options) for value, cell in cells.items()}
            found["overlap"].setdefault(option, {})[line] = points
            print(f"{line}, {option}: " + ", ".join(f"{value}: {_told(curves)}" for value, curves in points.items()))
        draw_overlap(found["overlap"], options.out / "reptile-overlap.png")
    record = {"options": asdict(options), **found, "versions": runs.versions()}
    write_json(options.out / "reptile.json", json.loads(json.dumps(record, default=str)))


def _told(curves: Seeds) -> str:
    return f"{final(curves).mean():.1%}"


def combinations(options: Options) -> dict[str, Cell]:
    """Return what figure 3 compares: sums and means of the first k inner gradients, and the last one alone.

    No two mini-batches share a drawing: k of them, of five drawings of each character, use up k x 5 of the 20. The last
    one is drawn as the query set, since an episode must have one.
    """
    cells = {}
    for steps in (1, 2, 3, 4):
        family = Omniglot(options.root, shots=SHOTS, train_shots=SHOTS * max(steps - 1, 1), queries=SHOTS)
        terms = [f"g{step}" for step in range(1, steps + 1)]
        total = " + ".join(terms)
        cells[total] = _cell(f"sum-{steps}", options, family, steps, 5 * SHOTS, "sum", "separate")
        if steps > 1:
            outer = SGD(options.outer_step / steps)
            cells[f"({total}) / {steps}"] = cells[total]._replace(name=f"mean-{steps}", outer=outer)
            cells[terms[-1]] = _cell(f"last-{steps}", options, family, steps, 5 * SHOTS, "last", "separate")
    return cells


def sweeps(options: Options) -> Iterator[tuple[str, str, dict[int, Cell]]]:
    """Yield what figure 4 compares: the option that varies, a line's name, and what is trained for each value."""
    family = Omniglot(options.root, shots=SHOTS, train_shots=TRAIN_SHOTS, queries=TAIL_SHOTS)
    for option, values in {"steps": options.lengths, "batch_size": options.batch_sizes}.items():
        for (method, (combine, tail)), (mini_batches, told) in product(METHODS.items(), MINI_BATCHES.items()):
            cells = {}
            for value in values:
                chosen = LAST_FRESH | {option: value}
                name = f"{combine}-{tail}-{mini_batches}-{chosen['steps']}-{chosen['batch_size']}"
                cells[value] = _cell(name, options, family, *chosen.values(), combine, tail, mini_batches)
            yield option, f"{method}, {told}", cells


def _cell(
    name: str,
    options: Options,
    family: Omniglot,
    steps: int,
    batch_size: int,
    combine: Any,
    tail: Any,
    mini_batches: Any = "cycle",
) -> Cell:
    network = Network(hidden=(64, 64), normalise=True, batch_norm="inductive")
    if options.convolutional:
        network = Network("conv4", batch_norm="inductive")
    algorithm = Reptile(steps, options.step_size, "sgd", False, batch_size, mini_batches, combine, tail, network)
    return Cell(name, algorithm, family, SGD(options.outer_step))


def measured(cell: Cell, points: int, options: Options) -> Seeds:
    """Return the accuracies of all seeds, trained to their end if they were not."""
    return {str(seed): trained(cell, seed, points, options) for seed in options.seeds}


def trained(cell: Cell, seed: int, points: int, options: Options) -> Curve:
    """Go on with a run from where its checkpoint stands, and evaluate it so many times on the way."""
    every = max(1, options.iterations // points)
    settings = Settings(options.iterations, 1, seed, options.device, checkpoint_every=every, log_every=every)
    folder = options.runs / f"reptile-{cell.name}-{seed}"
    run = opened(cell, settings, folder)
    kept = (folder / runs.CHECKPOINT).exists()
    progress = run.restore(folder / runs.CHECKPOINT) if kept else run.first()
    curve = json.loads((folder / CURVE).read_text(encoding="utf-8")) if kept else []
    while progress.iteration < options.iterations:
        acted = progress
        progress, _ = run.iterate(acted)
        ends = progress.iteration == options.iterations
        if ends or progress.iteration % every == 0:
            curve = [point for point in curve if point["iteration"] < progress.iteration]
            curve.append({"iteration": progress.iteration, **accuracy(run, progress.params, options.tasks)})
            write_json(folder / CURVE, curve)
        run.save(acted, progress, None, ends)
    return curve


def opened(cell: Cell, settings: Settings, folder: Path) -> Run:
    """Return a run, begun if it was not. Raises ValueError where its folder holds one with other options."""
    if not (folder / runs.CONFIG).exists():
        return training.start(
            Source(cell.algorithm, "reptile"), Source(cell.family, "omniglot"), cell.outer, settings, folder
        )
    run = training.load(folder)
    if (run.algorithm, run.family, run.outer, run.settings) != (*cell[1:], settings):
        raise ValueError(f"{folder} holds a run with other options; give another folder with --runs")
    return run


def accuracy(run: Run, params: Params, tasks: int) -> dict[str, float]:
    """Accuracy on test tasks after the last step, each on the whole support set."""
    learner = replace(run.algorithm, batch_size=None).build(run.family.spec)
    found = evaluate(learner, params, run.family, tasks, STEPS, "test", device=run.device)
    last = found.metrics[f"accuracy/step_{STEPS}"]
    return {name: last[name] for name in ("mean", "low", "high")}


def final(curves: Seeds) -> np.ndarray:
    """Accuracies at the end, ``[seed]``."""
    return np.array([curve[-1]["mean"] for curve in curves.values()])


def draw_combinations(combined: Mapping[str, Seeds], path: Path) -> None:
    """Draw accuracy over outer updates: a colour for each number of gradients, a dash for each way to combine them."""
    figure = Figure(figsize=(8.4, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for label, curves in combined.items():
        last = int(label.partition(")")[0][-1])
        dash = ":" if label.endswith("/ " + str(last)) else "-" if "+" in label or last == 1 else "--"
        iterations = [point["iteration"] for point in next(iter(curves.values()))]
        means = np.array([[point["mean"] for point in curve] for curve in curves.values()])
        look = {"color": COLOURS[last - 1]}
        axes.fill_between(iterations, 100 * means.min(0), 100 * means.max(0), alpha=0.12, linewidth=0, **look)
        axes.plot(iterations, 100 * means.mean(0), dash, marker=MARKERS[last - 1], markersize=4, label=label, **look)
    axes.set(xlabel="outer updates", ylabel="accuracy on test tasks (%)", xlim=(0, None))
    _finish(figure, [axes], axes, len(next(iter(combined.values()))), path)


def draw_overlap(overlap: Mapping[str, Mapping[str, Mapping[str, Seeds]]], path: Path) -> None:
    """Draw accuracy at the end over the number of inner steps, and over the size of mini-batches."""
    figure = Figure(figsize=(13.2, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = {
        "steps": f"inner steps, of {LAST_FRESH['batch_size']} drawings",
        "batch_size": "drawings in a mini-batch, 4 inner steps",
    }
    for axes, (option, lines) in zip(panels, overlap.items(), strict=True):
        values = sorted({int(value) for points in lines.values() for value in points})
        places = {str(value): place for place, value in enumerate(values)}
        for index, (line, points) in enumerate(lines.items()):
            _sweep(axes, [places[value] for value in points], list(points.values()), index, line)
        fresh = sum(value <= LAST_FRESH[option] for value in values)
        axes.axvspan(
            fresh - 0.5, len(values) - 0.5, color="0.93", zorder=0, label="cycling ends on drawings seen before"
        )
        axes.set(xlabel=labels[option], xticks=range(len(values)), xticklabels=values, xlim=(-0.5, len(values) - 0.5))
    panels[0].set_ylabel("accuracy on test tasks (%)")
    seeds = len(next(iter(next(iter(overlap["steps"].values())).values())))
    _finish(figure, panels, panels[0], seeds, path)


def _sweep(axes: Axes, places: Sequence[int], points: Sequence[Seeds], index: int, line: str) -> None:
    ends = 100 * np.array([final(curves) for curves in points])
    method, replacing = divmod(index, len(MINI_BATCHES))
    look = {"color": COLOURS[method], "linestyle": "--" if replacing else "-", "marker": MARKERS[method]}
    where = np.array(places) + 0.05 * (index - 2.5)
    errors = np.array([ends.mean(1) - ends.min(1), ends.max(1) - ends.mean(1)])
    filled = {"markerfacecolor": "white"} if replacing else {}
    axes.errorbar(where, ends.mean(1), errors, capsize=2, markersize=5, label=line, elinewidth=0.8, **look, **filled)


def _finish(figure: Figure, panels: Sequence[Axes], told: Axes, seeds: int, path: Path) -> None:
    for axes in panels:
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"mean and range of {seeds} seeds" if seeds > 1 else "one seed", fontsize="small", color="0.35")
    figure.legend(*told.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
