"""Leap on Omniglot: how fast does a network learn a held-out alphabet, from which initial parameters?

    python docs/experiments/leap.py                          a small version, minutes of one core
    python docs/experiments/leap.py --iterations 1000 --meta-batch-size 20 --filters 64 --downsample pool
                                                             the size of the paper

After the experiment of Flennerhag et al., 2019 (arXiv 1812.01054, section 4.1). An alphabet is a task: 20 characters,
of which 15 drawings are for training and 5 are held out. It meta-trains Leap, Reptile, first-order MAML and joint
pre-training on as many tasks of 21 alphabets each, and then trains each initial network, and a random one, on 20 other
alphabets: 100 steps of gradient descent on mini-batches of 20 drawings. The area is the mean of the error on held-out
drawings over all steps, the 0th included. Each learner is trained with two outer step sizes; the one with the smaller
area on 5 validation alphabets is taken. It trains the runs RUNS/leap-*, of which it takes those that are finished as
they are, and writes leap.json and leap.png.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

import metarl
from metarl import runs
from metarl.algorithms import Leap, MultiTask, Reptile
from metarl.evaluation import evaluate, summary
from metarl.files import write_json
from metarl.networks.options import Downsample, Network
from metarl.outer.gradient import SGD, Adam
from metarl.pictures.plotting import COLOURS, MARKERS
from metarl.seeding import stream
from metarl.training.settings import Settings
from metarl.types import Params, Split
from metarl_plugins.omniglot import Omniglot

WAYS, SHOTS, HELD_OUT = 20, 15, 5
"""Characters of a task, drawings of each for training, and held-out ones."""
ALPHABETS: dict[Split, int] = {"validation": 5, "test": 20}
"""Alphabets of 20 characters or more, outside training."""
RANDOM = "random start"


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    runs: Path = Path("runs")
    """Folder of the runs."""
    out: Path = Path("runs/leap")
    """Folder of the results."""
    root: Path | None = None
    """Folder of Omniglot; by default the folder omniglot in the one that METARL_DATA names."""
    iterations: int = 60
    """Meta-iterations of a run."""
    meta_batch_size: int = 5
    """Tasks of a meta-iteration."""
    filters: int = 16
    """Filters of each of the network's four layers."""
    downsample: Downsample = "stride"
    """How the network halves images."""
    steps: int = 100
    """Steps on a task, in meta-training and at test."""
    step_size: float = 0.1
    """Their size."""
    batch_size: int = 20
    """Drawings of a mini-batch."""
    seed: int = 0
    """Seed of the runs. The random start is where they begin."""


class Contender(NamedTuple):
    """A way to make initial parameters, and the outer updates of which the better one is taken."""

    algorithm: Any
    outers: tuple[Any, Any]


Curves = np.ndarray
"""Error on held-out drawings, ``[step, alphabet]``."""


def main(options: Options) -> None:
    """Train what is absent, measure, and draw."""
    options.out.mkdir(parents=True, exist_ok=True)
    adapting = _leap(options)
    found = {name: chosen(name, one, options) for name, one in contenders(options).items()}
    learner = adapting.build(family(options).spec)
    starts = {name: params for name, (params, _) in found.items()} | {
        RANDOM: learner.init(stream(options.seed, "initialisation"))
    }
    curves = {name: errors(params, "test", options) for name, params in starts.items()}
    record = {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()},
        "outer": {name: told for name, (_, told) in found.items()},
        "area": {name: summary(curve.mean(0).tolist()) for name, curve in curves.items()},
        "more than Leap": {
            name: summary((curve.mean(0) - curves["Leap"].mean(0)).tolist())
            for name, curve in curves.items()
            if name != "Leap"
        },
        "curve": {name: curve.mean(1).tolist() for name, curve in curves.items()},
        "versions": runs.versions(),
    }
    write_json(options.out / "leap.json", record)
    draw(curves, options.out / "leap.png")
    print(table(record))


def family(options: Options) -> Omniglot:
    """Return alphabets as tasks."""
    drawings = {"shots": SHOTS, "queries": HELD_OUT, "test_queries": HELD_OUT}
    return Omniglot(options.root, WAYS, rotations="none", split="background", alphabets=True, **drawings)


def network(options: Options) -> Network:
    """Return the network of all."""
    return Network("conv4", filters=options.filters, downsample=options.downsample)


def contenders(options: Options) -> dict[str, Contender]:
    """Return what is compared, by name."""
    return {
        "Leap": Contender(_leap(options), (SGD(0.1), SGD(0.03))),
        "Reptile": Contender(_reptile(options, "sum"), (SGD(1.0), SGD(0.3))),
        "FOMAML": Contender(_reptile(options, "last"), (SGD(5.0), SGD(1.0))),
        "joint pre-training": Contender(MultiTask(network=network(options)), (Adam(1e-3), Adam(3e-3))),
    }


def _leap(options: Options) -> Leap:
    return Leap(options.steps, options.step_size, batch_size=options.batch_size, network=network(options))


def _reptile(options: Options, combine: Any) -> Reptile:
    tail = "shared" if combine == "sum" else "separate"  # the last gradient of first-order MAML is on held-out drawings
    sizes = options.steps, options.step_size, "sgd", False, options.batch_size
    return Reptile(*sizes, combine=combine, tail=tail, network=network(options))


def chosen(name: str, contender: Contender, options: Options) -> tuple[Params, dict[str, float]]:
    """Return the initial parameters that are better on validation alphabets, and the areas there by outer step size."""
    starts = {outer.learning_rate: trained(name, contender.algorithm, outer, options) for outer in contender.outers}
    areas = {size: float(errors(params, "validation", options).mean()) for size, params in starts.items()}
    return starts[min(areas, key=areas.__getitem__)], {str(size): area for size, area in areas.items()}


def trained(name: str, algorithm: Any, outer: Any, options: Options) -> Params:
    """Return what a run has learnt, trained to its end if it was not.

    Raises ValueError where its folder holds one with other options.
    """
    kind = name.partition(" ")[0].lower()
    folder = options.runs / f"leap-{kind}-{outer.learning_rate:g}-{options.seed}"
    batch, often = options.meta_batch_size, {"checkpoint_every": 10, "log_every": 10}
    settings = Settings(options.iterations, batch, options.seed, device="cpu", **often)
    tasks = family(options)
    if kind == "joint":  # a network is trained on the query drawings: 15 of each character, as those of the others
        tasks = replace(tasks, train_shots=HELD_OUT, queries=SHOTS)
    run = metarl.train(algorithm, tasks, outer, settings, folder, quiet=False, resume=True)
    if run.iteration != options.iterations:
        raise SystemExit(f"{folder} stands at iteration {run.iteration}: the same command goes on to more")
    return run.params


def errors(params: Params, split: Split, options: Options) -> Curves:
    """Train a network on each alphabet of a split, as all are trained there; return its errors on the way."""
    tasks = family(options)
    found = evaluate(_leap(options).build(tasks.spec), params, tasks, ALPHABETS[split], options.steps, split)
    return 1 - found.scores["accuracy"].double().numpy()


def table(record: Mapping[str, Any]) -> str:
    """Return the areas as a table for a page."""
    lines = [
        "| start | area under the error curve | more than Leap, on the same alphabets | error at first | in the end |",
        "|---|---|---|---|---|",
    ]
    for name, area in record["area"].items():
        more = record["more than Leap"].get(name)
        curve = record["curve"][name]
        cells = _told(area), "" if more is None else _told(more), f"{curve[0]:.3f}", f"{curve[-1]:.3f}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _told(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def draw(curves: Mapping[str, Curves], path: Path) -> None:
    """Draw the error over the steps, with its 95 % interval over alphabets."""
    figure = Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        found = [summary(step.tolist()) for step in curve]
        mean, low, high = (100 * np.array([one[key] for one in found]) for key in ("mean", "low", "high"))
        axes.fill_between(range(len(curve)), low, high, color=COLOURS[index], alpha=0.12, linewidth=0)
        axes.plot(mean, color=COLOURS[index], marker=MARKERS[index], markevery=0.1, markersize=4, label=name)
    axes.set(
        xlabel="steps on a held-out alphabet", ylabel="error on held-out drawings (%)", xlim=(0, None), ylim=(0, 100)
    )
    axes.grid(color="0.9", linewidth=0.8)
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
