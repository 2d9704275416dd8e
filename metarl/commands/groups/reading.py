"""What plots and reports show of a run or a group: the rows of its training, and its evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metarl import plugins, runs
from metarl.commands.groups.curves import pooled, with_environment_steps
from metarl.commands.groups.evaluating import joined
from metarl.commands.groups.folder import is_group, read_group
from metarl.runs.logger import read_progress

Rows = Sequence[Mapping[str, Any]]
Evaluation = Mapping[str, Any]


class Scores(NamedTuple):
    """Rows of progress.csv (of a group, means over its seeds), and the evaluation (of a group, joined) or None."""

    rows: Rows
    evaluation: Evaluation | None


def read_scores(folder: Path, over_steps: bool = False) -> Scores:
    """Read what a run or a group has, with ``environment_steps`` in its rows if asked. Raises RunError as both do."""
    if not is_group(folder):
        return _of_run(folder, over_steps)
    read = {seed: _of_run(path, over_steps) for seed, path in read_group(folder).runs.items()}
    evaluations = {seed: one.evaluation for seed, one in read.items() if one.evaluation is not None}
    whole = len(evaluations) == len(read)
    return Scores(pooled([one.rows for one in read.values()]), joined(folder, evaluations) if whole else None)


def _of_run(folder: Path, over_steps: bool) -> Scores:
    folder = plugins.run_folder(folder)
    runs.read_config(folder)
    evaluation = runs.read_evaluation(folder) if (folder / runs.EVALUATION).exists() else None
    rows: Rows = read_progress(folder / runs.PROGRESS)
    return Scores(with_environment_steps(rows, str(folder)) if over_steps else rows, evaluation)
