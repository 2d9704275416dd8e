"""BMAML on sinusoids, beside an ensemble: its error, its calibration, and whether points that it asks for teach more.

    python docs/experiments/uncertainty.py                        a small version, minutes of one core
    python docs/experiments/uncertainty.py --iterations 100000 --particles 10    the size of the paper

After the experiments of Yoon et al., 2018 (arXiv 1806.03836, section 5). Active learning: a task begins with two known
points; each round adds the one of a pool whose prediction differs most between the particles, or a random one. The
ensemble is as many MAML networks as there are particles, trained from different seeds, each of which adapts by itself;
their predictions are averaged. It trains the runs RUNS/uncertainty-*, of which it takes those that are finished as they
are, and writes uncertainty.json, uncertainty-active.png and uncertainty-calibration.png.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

import metarl
from metarl import runs
from metarl.algorithms import BMAML, MAML, particle_outputs
from metarl.algorithms.gradient.bmaml import Particles
from metarl.evaluation import sample_tasks, summary
from metarl.files import write_json
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.pictures.plotting import COLOURS, MARKERS
from metarl.seeding import stream
from metarl.training.settings import Settings
from metarl.types import Examples, Learner, Params, State, labelled_tasks
from metarl_plugins.sinusoid import Sinusoid

NETWORK = Network(hidden=(40, 40, 40))
FIRST = 2
"""Points that are known before the first is asked for."""
LEVELS = tuple(round(0.1 * level, 1) for level in range(1, 10))
"""Probabilities of the intervals whose coverage is measured."""
SCALES = tuple(float(scale) for scale in np.logspace(-2, 1, 61))
"""Among which the standard deviation that explains validation targets best is looked for."""
By = Literal["spread", "random"]
ENSEMBLE = "MAML ensemble"
LARGE = 100
"""Mean squared error of a network that diverged; waves are at most 5 high."""
Errors = list[Tensor]
"""The mean squared error of each task, ``[task]``, after 0, 1, ... points were asked for."""


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    runs: Path = Path("runs")
    """Folder of the runs."""
    out: Path = Path("runs/uncertainty")
    """Folder of the results."""
    iterations: int = 1500
    """Meta-iterations of a run, of ten tasks each."""
    particles: int = 5
    """Networks of a task, and of the ensemble."""
    noises: tuple[float, ...] = (0.1, 0.5)
    """Standard deviations of the likelihood that are compared; the first is used for active learning, and for the
    intervals of the ensemble, which knows none."""
    tasks: int = 400
    """Test tasks."""
    rounds: int = 8
    """Points that are asked for, one after another."""
    steps: int = 5
    """Inner steps on the points that are known."""
    seed: int = 0
    """Seed of the runs; the members of the ensemble have this one and those that follow."""


class Trained(NamedTuple):
    """A finished run, or those of an ensemble."""

    learner: Learner
    members: tuple[Params, ...]


def main(options: Options) -> None:
    """Train what is absent, measure, and draw."""
    options.out.mkdir(parents=True, exist_ok=True)
    together = ensemble(options)
    trained = {noise: finished(f"bmaml-{noise}", bmaml(noise, options), options) for noise in options.noises}
    first = trained[options.noises[0]]
    active = {
        "BMAML, where particles differ most": asked(first, "spread", options),
        "BMAML, random points": asked(first, "random", options),
        "MAML, random points": asked(together._replace(members=together.members[:1]), "random", options),
        f"{ENSEMBLE}, random points": asked(together, "random", options),
    }
    less = zip(active["BMAML, random points"], active[f"{ENSEMBLE}, random points"], strict=True)
    calibrated = {f"BMAML, noise {noise}": calibration(one, noise, options) for noise, one in trained.items()}
    calibrated[ENSEMBLE] = calibration(together, options.noises[0], options)
    found = {label: summaries(errors) for label, errors in active.items()}
    found["BMAML less the ensemble, random points"] = summaries([one - other for one, other in less])
    differing = typical(asked(together, "spread", options))  # where means are infinite, as some members diverge
    record = {
        "active": found,
        "ensemble, where members differ most": differing,
        "calibration": calibrated,
        "versions": runs.versions(),
    }
    write_json(options.out / "uncertainty.json", {"options": _plain(asdict(options)), **record})
    draw_active({label: found[label] for label in active}, options.out / "uncertainty-active.png")
    draw_calibration(calibrated, options.out / "uncertainty-calibration.png")
    told = " ".join(f"{median:.2f}" for median in differing["median"])
    print(f"{ENSEMBLE}, where members differ most: medians {told}; above {LARGE} in {differing['large']} tasks\n")
    print(active_table(found) + "\n\n" + calibration_table(calibrated))


def bmaml(noise: float, options: Options) -> BMAML:
    """Return BMAML with a step size for its number of particles."""
    return BMAML(options.particles, step_size=0.005 * options.particles, noise=noise, network=NETWORK)


def ensemble(options: Options) -> Trained:
    """Return MAML networks of different seeds, as many as BMAML has particles."""
    maml = MAML(step_size=0.01, network=NETWORK)
    seeds = range(options.seed, options.seed + options.particles)
    each = [finished("maml", maml, replace(options, seed=seed)) for seed in seeds]
    return Trained(each[0].learner, tuple(params for one in each for params in one.members))


def family(options: Options) -> Sinusoid:
    """Return waves of which 2 to 10 points are known."""
    return Sinusoid(shots=FIRST + options.rounds, train_shots=(FIRST, FIRST + options.rounds), queries=10)


def finished(name: str, algorithm: Any, options: Options) -> Trained:
    """Return a run, trained to its end if it was not. Raises ValueError for a folder with another one."""
    folder = options.runs / f"uncertainty-{name}-{options.seed}"
    settings = Settings(options.iterations, 10, options.seed, checkpoint_every=500, log_every=50)
    run = metarl.train(algorithm, family(options), Adam(), settings, folder, quiet=False, resume=True)
    if run.iteration != options.iterations:
        raise SystemExit(f"{folder} stands at iteration {run.iteration}: the same command goes on to more")
    return Trained(run.learner, (run.params,))


def summaries(errors: Errors) -> list[dict[str, float]]:
    """Return the mean and its 95 % interval over tasks, after 0, 1, ... points were asked for."""
    return [{name: summary(one.tolist())[name] for name in ("mean", "low", "high")} for one in errors]


def typical(errors: Errors) -> dict[str, Any]:
    """Return the medians over tasks after 0, 1, ... points were asked for, and in how many tasks one error is large."""
    each = torch.stack(errors)
    return {"median": each.median(1).values.tolist(), "large": int((~(each < LARGE)).any(0).sum())}


def asked(trained: Trained, by: By, options: Options) -> Errors:
    """Return the errors after 0, 1, ... points were asked for."""
    tasks = labelled_tasks(sample_tasks(family(options), options.tasks))
    pool = tasks.draw("query", stream(0, "pool"))  # [task, 100, 1]
    query = tasks.draw("query", stream(0, "query"))
    order = torch.rand(pool.inputs.shape[:2], generator=stream(0, "order")).argsort(dim=1)  # [task, point]
    known, errors = order[:, :FIRST], []
    for count in range(FIRST, FIRST + options.rounds + 1):
        states = adapted(trained, tasks.descriptors, points(pool, known), options)
        wrong = outputs(trained, states, query.inputs).mean(1) - query.targets
        errors.append(wrong.square().flatten(1).mean(1))
        chosen = order[:, count : count + 1] if by == "random" else most_spread(trained, states, pool, known)
        known = torch.cat([known, chosen], dim=1)
    return errors


def points(pool: Examples, known: Tensor) -> Examples:
    """Return some points of the pool, ``known [task, point]`` by number."""
    rows = torch.arange(len(known)).unsqueeze(1)
    return Examples(inputs=pool.inputs[rows, known], targets=pool.targets[rows, known])


def adapted(trained: Trained, descriptors: Tensor, support: Examples, options: Options) -> list[State]:
    """Return the state of each member after all steps on a support set."""
    with torch.no_grad():
        states = [trained.learner.begin(params, descriptors) for params in trained.members]
        for _ in range(options.steps):
            states = [trained.learner.adapt(state, support) for state in states]
    return states


def outputs(trained: Trained, states: Sequence[State], inputs: Tensor) -> Tensor:
    """Return what each particle, or each member, predicts: ``[task, network, item, 1]``."""
    with torch.no_grad():
        return torch.cat([of_state(trained.learner, state, inputs) for state in states], dim=1)


def of_state(learner: Learner, state: State, inputs: Tensor) -> Tensor:
    """Return what the particles of a state predict, or its only network: ``[task, network, item, 1]``."""
    if isinstance(state, Particles):
        return particle_outputs(learner, state, inputs)
    return learner.predict(state, inputs)[0].unsqueeze(1)


def most_spread(trained: Trained, states: Sequence[State], pool: Examples, known: Tensor) -> Tensor:
    """Return the number ``[task, 1]`` of the unknown point at which predictions differ most."""
    spread = outputs(trained, states, pool.inputs).std(1).squeeze(-1)
    return spread.scatter(1, known, -1.0).argmax(1, keepdim=True)


def calibration(trained: Trained, noise: float, options: Options) -> dict[str, Any]:
    """Return how the spread of particles, or members, fits the errors, with five known points.

    The prediction is normal. Its variance is that of the networks, plus that of an observation's noise: the one that
    meta-training assumed, or the one that makes the targets of validation tasks most likely.
    """
    found = {split: predicted(trained, split, options) for split in ("validation", "test")}
    errors, spread = found["test"]
    likelihoods = [likelihood(*found["validation"], scale) for scale in SCALES]
    best = SCALES[int(np.argmax(likelihoods))]
    coverages = {name: coverage(errors, spread, scale) for name, scale in (("assumed", noise), ("fitted", best))}
    return {
        "error": float(errors.square().mean()),
        "correlation": float(torch.corrcoef(torch.stack([errors.abs().flatten(), spread.flatten()]))[0, 1]),
        "log likelihood": likelihood(errors, spread, noise),
        "fitted noise": best,
        "log likelihood, fitted": likelihood(errors, spread, best),
        "miscalibration": float(np.abs(np.array(coverages["assumed"]) - LEVELS).mean()),
        "miscalibration, fitted": float(np.abs(np.array(coverages["fitted"]) - LEVELS).mean()),
        "coverage": coverages["assumed"],
        "coverage, fitted": coverages["fitted"],
    }


def predicted(trained: Trained, split: Any, options: Options) -> tuple[Tensor, Tensor]:
    """Return errors of the mean prediction, and the networks' standard deviation, ``[task, item]``."""
    tasks = labelled_tasks(sample_tasks(family(options), options.tasks, split))
    query = tasks.draw("query", stream(0, "query"))
    support = tasks.draw("support", stream(0, "support"))
    few = Examples(inputs=support.inputs[:, :5], targets=support.targets[:, :5])
    told = outputs(trained, adapted(trained, tasks.descriptors, few, options), query.inputs)
    return (told.mean(1) - query.targets).squeeze(-1), told.std(1).squeeze(-1)


def likelihood(errors: Tensor, spread: Tensor, scale: float) -> float:
    """Return the mean logarithm of the likelihood of the targets."""
    variance = spread.square() + scale**2
    return float(-0.5 * (errors.square() / variance + (2 * torch.pi * variance).log()).mean())


def coverage(errors: Tensor, spread: Tensor, scale: float) -> list[float]:
    """Return the share of targets within the central interval of each probability."""
    distance = errors.abs() / (spread.square() + scale**2).sqrt()
    return [float((distance <= NormalDist().inv_cdf((1 + level) / 2)).float().mean()) for level in LEVELS]


def active_table(active: Mapping[str, list[dict[str, float]]]) -> str:
    """Return the errors, with their intervals, as a table for a page: at every second number of known points."""
    rows = {
        label: [f"{one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for one in errors[::2]]
        for label, errors in active.items()
    }
    points = len(next(iter(rows.values())))
    return table(["known points", *(str(FIRST + 2 * place) for place in range(points))], rows)


def calibration_table(calibrated: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how spread and errors fit as a table for a page, with the share of targets in intervals of 90 %."""
    head = ["", "error", "correlation", "log-likelihood", "miscalibration", "90 % hold"]
    rows = {}
    for label, found in calibrated.items():
        fit = f"{found['error']:.2f}", f"{found['correlation']:.2f}"
        for name, told in (("", label), (", fitted", f"{label}, fitted noise {found['fitted noise']:.2f}")):
            measures = f"{found['log likelihood' + name]:.2f}", f"{found['miscalibration' + name]:.2f}"
            rows[told] = [*fit, *measures, f"{100 * found['coverage' + name][-1]:.0f} %"]
    return table(head, rows)


def table(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Return a table for a page."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {label} | " + " | ".join(cells) + " |" for label, cells in rows.items())])


def draw_active(active: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    """Draw the error over the number of known points."""
    figure = Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, (label, errors) in enumerate(active.items()):
        known = np.arange(FIRST, FIRST + len(errors))
        mean, low, high = (np.array([one[name] for one in errors]) for name in ("mean", "low", "high"))
        low = np.maximum(low, 0.2 * mean)  # an interval that a few tasks widen may end below 0
        axes.fill_between(known, low, high, color=COLOURS[index], alpha=0.15, linewidth=0)
        axes.plot(known, mean, color=COLOURS[index], marker=MARKERS[index], markersize=4, label=label)
    axes.set(xlabel="known points", ylabel="mean squared error", yscale="log")
    axes.grid(color="0.9", linewidth=0.8, which="both")
    axes.legend(frameon=False)
    figure.savefig(path)


def draw_calibration(calibrated: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the coverage of intervals over their probability, with the assumed noise and with the fitted one."""
    figure = Figure(figsize=(8.6, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, title in zip(
        panels, ("coverage", "coverage, fitted"), ("the noise of meta-training", "noise fitted afterwards"), strict=True
    ):
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
        for index, (label, found) in enumerate(calibrated.items()):
            axes.plot(LEVELS, found[name], color=COLOURS[index], marker=MARKERS[index], markersize=4, label=label)
        axes.set(title=title, xlabel="probability of the interval", xlim=(0, 1), ylim=(0, 1))
        axes.grid(color="0.9", linewidth=0.8)
    panels[0].set_ylabel("share of targets inside")
    panels[0].legend(frameon=False)
    figure.savefig(path)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
