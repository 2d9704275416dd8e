"""The evaluations that are compared: those in run folders, or new ones; refused where they are of different tasks."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarl import plugins, runs
from metarl.commands import evaluate, groups
from metarl.evaluation import comparison


class Evaluated(NamedTuple):
    """The evaluations of a run, or of the runs of a group."""

    record: Mapping[str, Any]
    """What they have in common, as in evaluation.json."""
    scores: Mapping[str, np.ndarray]
    """``[seed, task]`` by name, such as return/step_1."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Means and intervals over seeds and tasks."""


def read(folders: Mapping[str, Path]) -> dict[str, Evaluated]:
    """Read evaluations. Raises RunError where one is missing, or where two are of different tasks, splits or steps."""
    compared = {label: _joined(folder, _recorded(folder)) for label, folder in folders.items()}
    check(compared)
    return compared


def _recorded(folder: Path) -> dict[int, dict[str, Any]]:
    if groups.is_group(folder):
        return groups.recorded(folder)
    folder = plugins.run_folder(folder)
    config = runs.read_config(folder)
    if not (folder / runs.EVALUATION).exists():
        raise runs.RunError(f"{folder} has not been evaluated: metarl evaluate it, or compare with --evaluate")
    return {int(config["settings"].get("seed", 0)): runs.read_evaluation(folder)}


def _joined(folder: Path, records: Mapping[int, Mapping[str, Any]]) -> Evaluated:
    first = next(iter(records.values()))
    joined = groups.joined(folder, records) if len(records) > 1 else dict(first)
    names = [name for name in joined["metrics"] if "/step_" in name]
    per_task = {name: [record["metrics"][name].get("per_task") for record in records.values()] for name in names}
    if wrong := [name for name, rows in per_task.items() if not all(isinstance(row, list) for row in rows)]:
        raise runs.RunError(
            f"the evaluation of {folder} has no scores of single tasks in {wrong[0]}: evaluate it again"
        )
    scores = {name: np.array(rows, float) for name, rows in per_task.items()}
    return Evaluated(joined, scores, joined["metrics"])


def check(compared: Mapping[str, Evaluated]) -> None:
    """Raise RunError, which names the first difference, unless all were evaluated alike."""
    (first, one), *others = compared.items()
    for label, other in others:
        # A baseline takes no step: it is compared before adaptation.
        more = () if {"deterministic"} & {*one.record, *other.record} else ("steps",)
        found = comparison.apart(one.record, other.record, *more)
        if found is not None:
            raise runs.RunError(
                f"{first} was evaluated with {found} for {label}: evaluate them alike, or compare with --evaluate"
            )


def anew(folders: Mapping[str, Path], words: Sequence[str]) -> Callable[[], dict[str, Evaluated]]:
    """Return what evaluates runs by the same options of ``metarl evaluate``, without writing into their folders.

    Raises ValueError where one cannot be evaluated, or is of other tasks than the first.
    """
    _check_tasks(folders)
    place = tempfile.TemporaryDirectory(prefix="metarl-compare-")
    outs = {label: Path(place.name) / f"{number}.json" for number, label in enumerate(folders)}
    try:
        prepared = {
            label: evaluate.prepare([str(folder), *words, "--out", str(outs[label])])
            for label, folder in folders.items()
        }
    except BaseException:
        place.cleanup()
        raise

    def execute() -> dict[str, Evaluated]:
        compared = {}
        with place:
            for label, one in prepared.items():
                with contextlib.redirect_stdout(io.StringIO()):
                    one()
                compared[label] = _joined(folders[label], _written(outs[label], folders[label]))
        check(compared)
        return compared

    return execute


def _written(out: Path, folder: Path) -> dict[int, dict[str, Any]]:
    if not groups.is_group(folder):
        return {0: runs.read_evaluation_file(out)}
    seeds = groups.read_group(folder).runs
    return {seed: runs.read_evaluation_file(out.with_name(f"{out.stem}-seed-{seed}.json")) for seed in seeds}


def _check_tasks(folders: Mapping[str, Path]) -> None:
    """Raise RunError unless all were trained on the same family, before any is evaluated."""
    families = {}
    for label, folder in folders.items():
        path = next(iter(groups.read_group(folder).runs.values())) if groups.is_group(folder) else folder
        families[label] = {"family": runs.read_config(plugins.run_folder(path))["tasks"]}
    (first, one), *others = families.items()
    for label, other in others:
        if (found := comparison.apart(one, other)) is not None:
            raise runs.RunError(f"{first} was trained with {found} for {label}: their test tasks are not the same")


def told(compared: Mapping[str, Evaluated]) -> str:
    """Return what the scores are of, for a title."""
    record = next(iter(compared.values())).record
    seeds = " and ".join(sorted({str(len(next(iter(one.scores.values())))) for one in compared.values()}))
    return f"{record['tasks']} {record['split']} tasks, {seeds} seed{'' if seeds == '1' else 's'}"
