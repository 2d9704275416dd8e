"""Sinusoids: error after 0 to 10 gradient steps of MAML, of a pre-trained network and of an oracle, and their curves.

    python docs/experiments/sinusoid.py --seeds 0 1 2        the MAML paper's size: 70,000 iterations a run
    python docs/experiments/sinusoid.py --iterations 2000    a small version

It evaluates the runs RUNS/sinusoid-{maml,pretrained,oracle}-SEED on 5, 10 and 20 points, of all inputs and of one half
of them only, and trains those that are absent. It writes sinusoid.json, sinusoid-error.png and sinusoid-curves.png.
The pre-trained network's step size is tuned on validation tasks, as in the paper (arXiv 1703.03400, section 5.1); the
oracle reads amplitude and phase, and is not fine-tuned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import metarl
from metarl import runs
from metarl.algorithms.maml import MAML
from metarl.algorithms.multitask import MultiTask
from metarl.evaluation import comparison
from metarl.evaluation.scores import evaluate
from metarl.files import write_json
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.pictures.plotting import COLOURS, MARKERS
from metarl.seeding import stream
from metarl.training.settings import Settings
from metarl.types import Examples, Params, Split, Tasks
from metarl_plugins.sinusoid import Sinusoid

NETWORK = Network(hidden=(40, 40))
ALGORITHMS = {
    "maml": MAML(step_size=0.01, network=NETWORK),
    "pretrained": MultiTask(network=NETWORK),
    "oracle": MultiTask(condition="concatenate", network=NETWORK),
}
LABELS = {"maml": "MAML", "pretrained": "pre-trained", "oracle": "oracle, not fine-tuned"}
STEP_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""Among which the pre-trained network's is chosen."""
STEPS = 10


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    runs: Path = Path("runs")
    """Folder of the runs."""
    out: Path = Path("runs/sinusoid")
    """Folder of the results."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs."""
    iterations: int = 70_000
    """Meta-iterations of a run that is to be trained."""
    tasks: int = 600
    """Test tasks."""
    shots: tuple[int, ...] = (5, 10, 20)
    """Support points at test."""
    schedule: tuple[float, ...] = (1.0, 0.5)
    """Factors of MAML's step size at test: at the paper's constant one, a few of the networks that it makes diverge."""


class Trained(NamedTuple):
    """A finished run."""

    algorithm: Any
    params: Params


def main(options: Options) -> None:
    """Train what is absent, evaluate everything, and draw it."""
    options.out.mkdir(parents=True, exist_ok=True)
    trained = {(name, seed): finished(name, seed, options) for name in ALGORITHMS for seed in options.seeds}
    results = {
        setting_name(shots, half): measured(trained, replace(Sinusoid(), shots=shots, half_range=half), options)
        for half in (False, True)
        for shots in options.shots
    }
    record = {"options": asdict(options), "results": results, "versions": runs.versions()}
    write_json(options.out / "sinusoid.json", _plain(record))
    draw_errors(results, options.out / "sinusoid-error.png")
    draw_curves(trained, results, options, options.out / "sinusoid-curves.png")
    for setting, found in results.items():
        print(f"{setting}: mean squared error after 0, 1, 5, 10 steps, mean over seeds")
        for name in ALGORITHMS:
            means = np.mean([found[name][str(seed)]["mean"] for seed in options.seeds], axis=0)
            print(
                f"  {LABELS[name]:<22}" + " ".join(f"{means[min(step, len(means) - 1)]:8.4f}" for step in (0, 1, 5, 10))
            )


def setting_name(shots: int, half: bool) -> str:
    """Return what a setting is called in the record."""
    return f"{shots} points, {'one half of the inputs' if half else 'all inputs'}"


def finished(name: str, seed: int, options: Options) -> Trained:
    """Return a run, trained to its end if it was not. Raises ValueError for a folder with another one."""
    folder = options.runs / f"sinusoid-{name}-{seed}"
    settings = Settings(options.iterations, 25, seed, checkpoint_every=1000, log_every=100)
    run = metarl.train(ALGORITHMS[name], "sinusoid", Adam(), settings, folder, quiet=False, resume=True)
    if run.iteration != options.iterations:
        raise SystemExit(f"{folder} stands at iteration {run.iteration}: the same command goes on to more")
    return Trained(run.algorithm, run.params)


def measured(trained: Mapping[tuple[str, int], Trained], family: Sinusoid, options: Options) -> dict[str, Any]:
    """Return mean errors after each step with their intervals, by algorithm and seed, and the gap that MAML closes."""
    found: dict[str, Any] = {name: {} for name in (*ALGORITHMS, "gap_closed")}
    for seed in options.seeds:
        maml, pretrained, oracle = (trained[name, seed] for name in ALGORITHMS)
        tuned = pretrained._replace(algorithm=with_tuned_step_size(pretrained, family))
        metrics = {
            "maml": scores(
                maml._replace(algorithm=replace(maml.algorithm, schedule=options.schedule)), family, options
            ),
            "pretrained": scores(tuned, family, options),
            "oracle": scores(oracle, family, options, steps=0),
        }
        for name, values in metrics.items():
            found[name][str(seed)] = {key: [one[key] for one in values.values()] for key in ("mean", "low", "high")}
        found["pretrained"][str(seed)]["step_size"] = tuned.algorithm.step_size
        gap = comparison.gap_closed(metrics["maml"], metrics["oracle"], metrics["pretrained"])
        found["gap_closed"][str(seed)] = {key: [one[key] for one in gap.values()] for key in ("mean", "low", "high")}
    return found


def scores(
    trained: Trained, family: Sinusoid, options: Options, steps: int = STEPS, split: Split = "test"
) -> dict[str, dict[str, Any]]:
    """Evaluate a run with its algorithm's options as they are here."""
    learner = trained.algorithm.build(family.spec)
    return evaluate(learner, trained.params, family, options.tasks, steps, split).metrics


def with_tuned_step_size(pretrained: Trained, family: Sinusoid) -> Any:
    """Return the algorithm with the step size of the least error after the last step on validation tasks."""
    candidates = [replace(pretrained.algorithm, step_size=step_size) for step_size in STEP_SIZES]
    errors = []
    for algorithm in candidates:
        found = evaluate(algorithm.build(family.spec), pretrained.params, family, 200, STEPS, "validation")
        errors.append(float(found.scores["loss"][-1].mean().nan_to_num(torch.inf)))
    return candidates[int(np.argmin(errors))]


def draw_errors(results: Mapping[str, Any], path: Path) -> None:
    """Draw errors over steps, a panel for each setting: seeds faint, their mean strong."""
    columns = len(results) // 2
    figure = Figure(figsize=(3.6 * columns + 1.5, 6.4), dpi=150, layout="constrained")
    grid = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (setting, found) in zip(grid.flat, results.items(), strict=True):
        for index, name in enumerate(ALGORITHMS):
            seeds = np.array([one["mean"] for one in found[name].values()])
            curves = np.broadcast_to(seeds, (len(seeds), STEPS + 1))
            look = {"color": COLOURS[index]}
            axes.plot(curves.T, alpha=0.3, linewidth=0.8, **look)
            marker = MARKERS[index] if seeds.shape[1] > 1 else ""  # the oracle takes no steps
            axes.plot(curves.mean(0), marker=marker, markersize=4, label=LABELS[name], **look)
        axes.set(yscale="log", title=setting)
        axes.grid(color="0.9", linewidth=0.8)
    for axes in grid[1]:
        axes.set_xlabel("gradient steps")
    for axes in grid[:, 0]:
        axes.set_ylabel("mean squared error")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path)


def draw_curves(
    trained: Mapping[tuple[str, int], Trained], results: Mapping[str, Any], options: Options, path: Path
) -> None:
    """Draw the first seed's networks before and after 1 and 10 steps on two tasks, and the points that they saw."""
    seed = options.seeds[0]
    settings = [(options.shots[0], False), (options.shots[0], True)]
    figure = Figure(figsize=(15, 6.4), dpi=150, layout="constrained")
    grid = figure.subplots(len(settings), 4, sharex=True, sharey=True)
    for row, (shots, half) in zip(grid, settings, strict=True):
        family = replace(Sinusoid(), shots=shots, half_range=half)
        tasks = family.sample(2, "test", stream(2, "tasks"))
        support = tasks.draw("support", stream(2, "support"))
        for index, name in enumerate(("maml", "pretrained")):
            algorithm, params = trained[name, seed]
            if name == "maml":
                algorithm = replace(algorithm, schedule=options.schedule)
            else:
                step_size = results[setting_name(shots, half)]["pretrained"][str(seed)]["step_size"]
                algorithm = replace(algorithm, step_size=step_size)
            inputs, outputs = fitted(algorithm, family, params, tasks, support)
            for task in range(2):
                title = f"{LABELS[name]}, {setting_name(shots, half)}"
                draw_task(row[2 * index + task], inputs, outputs[:, task], tasks, support, task, title)
    for axes in grid[-1]:
        axes.set_xlabel("input")
    for axes in grid[:, 0]:
        axes.set_ylabel("output")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path)


def fitted(
    algorithm: Any, family: Sinusoid, params: Params, tasks: Tasks, support: Examples
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs ``[point]`` and the outputs there ``[step, task, point]`` before and after each step."""
    learner = algorithm.build(family.spec)
    inputs = torch.linspace(*family.inputs, 201)
    with torch.no_grad():
        state, outputs = learner.begin(params, tasks.descriptors), []
        for _ in range(STEPS + 1):
            outputs.append(learner.predict(state, inputs.reshape(1, -1, 1).expand(2, -1, 1))[0].squeeze(-1))
            state = learner.adapt(state, support)
    return inputs.numpy(), torch.stack(outputs).numpy()


def draw_task(
    axes: Axes, inputs: np.ndarray, outputs: np.ndarray, tasks: Tasks, support: Examples, task: int, title: str
) -> None:
    """Draw one task: the wave, the points, and the network's outputs ``[step, point]``."""
    amplitude, phase = (float(tasks.parameters[name][task]) for name in ("amplitude", "phase"))
    axes.plot(inputs, amplitude * np.sin(inputs - phase), color=COLOURS[1], linewidth=2.2, label="the task")
    for step, dash in ((0, ":"), (1, "--"), (STEPS, "-")):
        label = f"after {step} step{'s' * (step > 1)}" if step else "before adaptation"
        axes.plot(inputs, outputs[step], dash, color=COLOURS[0], linewidth=1.4, label=label)
    points = (support.inputs[task].flatten().numpy(), support.targets[task].flatten().numpy())
    axes.plot(*points, "^", color=COLOURS[3], markersize=7, label="support points")
    axes.set_title(title, fontsize="small")
    axes.set_ylim(-6, 6)
    axes.grid(color="0.9", linewidth=0.8)


def _plain(value: Any) -> Any:
    """Return what JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
