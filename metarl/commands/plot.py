"""``metarl plot RUN [RUN ...]``: draw learning curves, and adaptation curves of evaluated runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from metarl import plugins, runs
from metarl.cli import DONE, Execute
from metarl.commands.parsing import parse
from metarl.files import check_folder
from metarl.pictures import plotting
from metarl.runs.logger import read_progress


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Options of ``metarl plot``."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, or pretrained:NAME. Several runs are drawn in one plot."""
    out: Path | None = None
    """Folder for the plots. Default: the first run folder."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN [RUN ...]``: draw learning curves, and adaptation curves of evaluated runs."""
    chosen = parse(PlotOptions, arguments, "plot", "Draw learning curves, and adaptation curves of evaluated runs.")
    if not chosen.runs:
        raise ValueError("plot needs at least one run folder")
    if chosen.out is None and plugins.is_pretrained(chosen.runs[0]):
        raise ValueError(f"{chosen.runs[0]} has no folder of its own for the pictures: choose one with --out")
    folders = _labelled([plugins.run_folder(run) for run in chosen.runs])
    progress, evaluated, notes = _read(folders)
    out = chosen.out or chosen.runs[0]
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder for the pictures")
    check_folder(out)

    def execute() -> int:
        out.mkdir(parents=True, exist_ok=True)
        for note in notes:
            print(note)
        if progress:
            print(f"wrote {plotting.learning_curve(progress, out / 'learning.png')}")
        if evaluated:
            print(f"wrote {plotting.adaptation_curve(evaluated, out / 'adaptation.png')}")
        return DONE

    return execute


def _labelled(folders: Sequence[Path]) -> dict[str, Path]:
    """Return run folders by name, or by path if two have the same name."""
    named = {folder.resolve().name: folder for folder in folders}
    return named if len(named) == len(folders) else {str(folder): folder for folder in folders}


Rows = list[dict[str, str]]


def _read(folders: Mapping[str, Path]) -> tuple[dict[str, Rows], dict[str, dict[str, Any]], list[str]]:
    """Return the rows and the evaluations of runs by label, and notes about runs that are left out of a plot.

    Raises RunError if no folder can be read, or no run has a score yet.
    """
    read, notes, problems = dict[str, tuple[Rows, dict[str, Any] | None]](), list[str](), list[runs.RunError]()
    for label, folder in folders.items():
        try:
            runs.read_config(folder)
            evaluation = runs.read_evaluation(folder) if (folder / runs.EVALUATION).exists() else None
            read[label] = read_progress(folder / runs.PROGRESS), evaluation
        except runs.RunError as error:
            problems.append(error)
            notes.append(f"left out: {error}")
    if not read:
        raise problems[0]
    progress = {label: rows for label, (rows, _) in read.items() if _scored(rows)}
    evaluations = {label: evaluation for label, (_, evaluation) in read.items() if evaluation is not None}
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


def _scored(rows: Rows) -> bool:
    return any(value for row in rows for name, value in row.items() if "/step_" in name)


def _dated(label: str, evaluation: Mapping[str, Any], rows: Rows) -> str:
    """Return the label, with the iteration if the evaluated parameters are not the run's last ones."""
    iteration = evaluation.get("iteration")
    last = int(rows[-1]["iteration"]) if rows else 0
    return label if iteration is None or iteration >= last else f"{label} (iteration {iteration} of {last})"
