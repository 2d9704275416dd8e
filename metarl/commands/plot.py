"""``metarl plot RUN [RUN ...]``: learning curves, and adaptation curves where there are evaluations."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional

from metarl import plotting, runs
from metarl.cli import DONE, Execute
from metarl.commands.parsing import parse
from metarl.logger import read_progress


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Options of ``metarl plot``."""

    runs: Positional[tuple[Path, ...]]
    """Run folders; several are drawn into one picture."""
    out: Path | None = None
    """Folder for the pictures; by default the first run's."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN [RUN ...]``: learning curves, and adaptation curves where there are evaluations."""
    chosen = parse(PlotOptions, arguments, "plot", "Draw learning curves, and adaptation curves of evaluated runs.")
    if not chosen.runs:
        raise ValueError("plot needs at least one run folder")
    folders = _labelled(chosen.runs)
    progress = {label: _progress(folder) for label, folder in folders.items()}
    evaluated = {
        label: runs.read_evaluation(folder) for label, folder in folders.items() if (folder / runs.EVALUATION).exists()
    }
    out = chosen.out or chosen.runs[0]
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder for the pictures")

    def execute() -> int:
        out.mkdir(parents=True, exist_ok=True)
        print(f"wrote {plotting.learning_curve(progress, out / 'learning.png')}")
        if evaluated:
            print(f"wrote {plotting.adaptation_curve(evaluated, out / 'adaptation.png')}")
        return DONE

    return execute


def _labelled(folders: Sequence[Path]) -> dict[str, Path]:
    """Run folders by their names; where two have the same one, by their paths."""
    named = {folder.resolve().name: folder for folder in folders}
    return named if len(named) == len(folders) else {str(folder): folder for folder in folders}


def _progress(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's progress.csv. Raises RunError where the folder holds no run, or one without an iteration."""
    runs.read_config(folder)
    rows = read_progress(folder / runs.PROGRESS)
    if not rows:
        raise runs.RunError(f"{folder} has nothing to draw yet: {runs.PROGRESS} holds no iteration")
    return rows
