"""``metarl plot RUN [RUN ...]``: draw learning curves, and adaptation curves of evaluated runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from metarl import runs
from metarl.cli import DONE, Execute
from metarl.commands.parsing import parse
from metarl.files import check_folder
from metarl.pictures import plotting
from metarl.runs.logger import read_progress


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Options of ``metarl plot``."""

    runs: Positional[tuple[Path, ...]]
    """Run folders. Several runs are drawn in one plot."""
    out: Path | None = None
    """Folder for the plots. Default: the first run folder."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN [RUN ...]``: draw learning curves, and adaptation curves of evaluated runs."""
    chosen = parse(PlotOptions, arguments, "plot", "Draw learning curves, and adaptation curves of evaluated runs.")
    if not chosen.runs:
        raise ValueError("plot needs at least one run folder")
    folders = _labelled(chosen.runs)
    progress, evaluated, notes = _read(folders)
    out = chosen.out or chosen.runs[0]
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder for the pictures")
    check_folder(out)

    def execute() -> int:
        out.mkdir(parents=True, exist_ok=True)
        for note in notes:
            print(note)
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

    Raises RunError if a folder holds no run, or no run has an iteration yet.
    """
    for folder in folders.values():
        runs.read_config(folder)
    rows = {label: read_progress(folder / runs.PROGRESS) for label, folder in folders.items()}
    progress = {label: run_rows for label, run_rows in rows.items() if run_rows}
    if not progress:
        named = ", ".join(map(str, folders.values()))
        raise runs.RunError(f"nothing to draw yet: {runs.PROGRESS} holds no iteration in {named}")
    evaluations = {
        label: runs.read_evaluation(folder) for label, folder in folders.items() if (folder / runs.EVALUATION).exists()
    }
    evaluated = {_dated(label, evaluation, rows[label]): evaluation for label, evaluation in evaluations.items()}
    left_out = {
        "without an iteration, so not in learning.png": [label for label in folders if label not in progress],
        "without an evaluation, so not in adaptation.png": [label for label in folders if label not in evaluations],
    }
    return progress, evaluated, [f"{reason}: {', '.join(labels)}" for reason, labels in left_out.items() if labels]


def _dated(label: str, evaluation: Mapping[str, Any], rows: Rows) -> str:
    """Return the label, with the iteration if the evaluated parameters are not the run's last ones."""
    iteration = evaluation.get("iteration")
    last = int(rows[-1]["iteration"]) if rows else 0
    return label if iteration is None or iteration >= last else f"{label} (iteration {iteration} of {last})"
