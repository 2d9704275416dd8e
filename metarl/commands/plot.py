"""``metarl plot RUN_OR_GROUP ...``: draw learning curves, and adaptation curves of evaluated runs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional

from metarl import plugins, runs
from metarl.cli import DONE, Execute
from metarl.commands import groups
from metarl.commands.parsing import parse
from metarl.evaluation import ranges
from metarl.files import check_folder
from metarl.pictures import parameters, plotting


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Options of ``metarl plot``."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, groups of seeds, or pretrained:NAME. Several are drawn in one plot. A group is drawn as the mean of
    its seeds, with a band from the lowest to the highest."""
    over: Literal["iterations", "steps"] = "iterations"
    """Horizontal axis of learning curves: iterations, or environment steps."""
    parameter: str | None = None
    """Also draw the score of each evaluated task over this task parameter, such as velocity, into parameter-NAME.png;
    the range that was trained on is shaded. Of a parameter of several numbers, name one: goal_0, goal_1, ..."""
    out: Path | None = None
    """Folder for the plots. Default: the first run folder."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN [RUN ...]``: draw learning curves, and adaptation curves of evaluated runs."""
    chosen = parse(PlotOptions, arguments, "plot", "Draw learning curves, and adaptation curves of evaluated runs.")
    if not chosen.runs:
        raise ValueError("plot needs at least one run folder")
    if chosen.out is None and plugins.is_pretrained(chosen.runs[0]):
        raise ValueError(f"{chosen.runs[0]} has no folder of its own for the pictures: choose one with --out")
    progress, evaluated, notes = _read(groups.labelled(chosen.runs), chosen.over == "steps")
    column = "environment_steps" if chosen.over == "steps" else "iteration"
    out = chosen.out or chosen.runs[0]
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder for the pictures")
    check_folder(out)
    values = {} if chosen.parameter is None else _parameter(chosen.parameter, evaluated)

    def execute() -> int:
        out.mkdir(parents=True, exist_ok=True)
        for note in notes:
            print(note)
        if progress:
            print(f"wrote {plotting.learning_curve(progress, out / 'learning.png', column)}")
        if evaluated:
            print(f"wrote {plotting.adaptation_curve(evaluated, out / 'adaptation.png')}")
        if chosen.parameter is not None:
            shown = {label: evaluated[label] for label in values}
            path = out / f"parameter-{chosen.parameter}.png"
            print(f"wrote {parameters.score_over_parameter(shown, values, chosen.parameter, path)}")
        return DONE

    return execute


def _parameter(name: str, evaluated: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the values of a task parameter in each evaluation that has it. Raises RunError where none has."""
    columns = {
        label: ranges.columns({key: torch.tensor(values) for key, values in one.get("parameters", {}).items()})
        for label, one in evaluated.items()
    }
    found = {label: values[name] for label, values in columns.items() if name in values}
    if not found:
        known = sorted({key for values in columns.values() for key in values})
        told = f"there are {', '.join(known)}" if known else "there is no evaluation with parameters: metarl evaluate"
        raise runs.RunError(f"no evaluation has the task parameter {name!r}: {told}")
    return found


def _read(
    folders: Mapping[str, Path], over_steps: bool
) -> tuple[dict[str, groups.Rows], dict[str, groups.Evaluation], list[str]]:
    """Return the rows and the evaluations of runs by label, and notes about runs that are left out of a plot.

    Raises RunError if no folder can be read, or no run has a score yet.
    """
    read, notes, problems = dict[str, groups.Scores](), list[str](), list[runs.RunError]()
    for label, folder in folders.items():
        try:
            read[label] = groups.read_scores(folder, over_steps)
        except runs.RunError as error:
            problems.append(error)
            notes.append(f"left out: {error}")
    if not read:
        raise problems[0]
    progress = {label: rows for label, (rows, _) in read.items() if plotting.has_scores(rows)}
    evaluations = {
        label: evaluation
        for label, (_, evaluation) in read.items()
        if evaluation is not None and any(map(plotting.is_score, evaluation["metrics"]))
    }
    if not progress and not evaluations:
        named = ", ".join(str(folders[label]) for label in read)
        raise runs.RunError(f"nothing to draw yet: {runs.PROGRESS} holds no score in {named}")
    evaluated = {_dated(label, evaluation, read[label][0]): evaluation for label, evaluation in evaluations.items()}
    left_out = {
        "without a score so far, so not in learning.png": [label for label in read if label not in progress],
        "without an evaluation, so not in adaptation.png": [label for label in read if label not in evaluations],
    }
    notes += [f"{reason}: {', '.join(labels)}" for reason, labels in left_out.items() if labels]
    return progress, evaluated, notes


def _dated(label: str, evaluation: Mapping[str, Any], rows: groups.Rows) -> str:
    """Return the label, with the iteration if the evaluated parameters are not the run's last ones."""
    iteration = evaluation.get("iteration")
    last = int(rows[-1]["iteration"]) if rows else 0
    return label if iteration is None or iteration >= last else f"{label} (iteration {iteration} of {last})"
