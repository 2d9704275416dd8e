"""The evaluation of a group: that of each seed, and all of them joined."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl import evaluation, runs
from metarl.cli import DONE, Execute
from metarl.commands.groups.folder import read_group
from metarl.evaluation import comparison
from metarl.pictures import plotting

OfOne = Callable[[Any], Execute]
"""Prepare the evaluation of one run, given the options of ``metarl evaluate``."""
Metrics = Mapping[str, Mapping[str, Any]]
Compare = Callable[[Mapping[str, Any]], list[Metrics]]
"""Return the scores of the oracle and of the pre-trained run, where they are asked for, given an evaluation."""
Records = Mapping[int, Mapping[str, Any]]
"""What ``metarl evaluate`` writes, by seed."""
OTHER_TASKS = "evaluated on other tasks than those of training"
OF_ALL = (
    "tasks",
    "split",
    "seed",
    "steps",
    "checkpoint",
    "schedule",
    "episodes",
    "mean",
    "family",
    "strata",
    "parameters",
    "training_ranges",
    "differs",
)
"""What the evaluations of a group have in common."""


def evaluated(chosen: Any, prepare: OfOne, compare: Compare) -> Execute:
    """Evaluate every run of a group, each into its folder, and write their joined evaluation into the group's.

    With --out, the runs' evaluations are written beside it, as ``NAME-seed-N.json``.
    """
    group, out = read_group(chosen.run), chosen.out
    places = {seed: _place(path, out, seed) for seed, path in group.runs.items()}
    prepared = {}
    for seed, path in group.runs.items():
        own = None if out is None else places[seed]
        prepared[seed] = prepare(dataclasses.replace(chosen, run=path, out=own))

    def execute() -> int:
        records = {}
        for seed, one in prepared.items():
            with contextlib.redirect_stdout(io.StringIO()):
                one()
            records[seed] = runs.read_evaluation_file(places[seed])
            print(f"seed {seed}: wrote {places[seed]}")
        record = joined(group.folder, records)
        if compared := compare(next(iter(records.values()))):
            own = comparison.of_seeds([one["metrics"] for one in records.values()])
            record |= gap_record(chosen, own, compared, record.get("strata"))
        _write(group.folder, out, record)
        return DONE

    return execute


def gap_record(chosen: Any, own: Metrics, compared: Sequence[Metrics], among: Sequence[int] | None) -> dict[str, Any]:
    """Return what an evaluation records of the gap between the oracle and the pre-trained run that ``own`` closes."""
    gap = comparison.gap_closed(own, compared[0], compared[1], among)
    return {"gap_closed": gap, "oracle": str(chosen.oracle), "pretrained": str(chosen.pretrained)}


def _place(run: Path, out: Path | None, seed: int) -> Path:
    return run / runs.EVALUATION if out is None else out.with_name(f"{out.stem}-seed-{seed}.json")


def joined(folder: Path, records: Records) -> dict[str, Any]:
    """Join the evaluations of a group's runs: means, and intervals over seeds and tasks.

    Raises RunError if they are of different tasks, steps or parameters.
    """
    (first, one), *others = records.items()
    for seed, other in others:
        found = comparison.apart(one, other, "steps", "checkpoint", "schedule")
        if found is not None:
            raise runs.RunError(
                f"{folder}: seed {first} was evaluated with {found} for seed {seed}: metarl evaluate the group again"
            )
    metrics = evaluation.over_seeds([record["metrics"] for record in records.values()], one.get("strata"))
    return {"metrics": metrics, **{name: one[name] for name in OF_ALL if name in one}, "seeds": list(records)}


def recorded(folder: Path) -> dict[int, dict[str, Any]]:
    """Read the evaluations of a group's runs. Raises RunError where one is missing."""
    found = {}
    for seed, path in read_group(folder).runs.items():
        if not (path / runs.EVALUATION).exists():
            raise runs.RunError(f"seed {seed} of {folder} has not been evaluated: metarl evaluate the group")
        found[seed] = runs.read_evaluation(path)
    return found


def _write(folder: Path, out: Path | None, record: dict[str, Any]) -> None:
    print(evaluation.table(record["metrics"]))
    if "differs" in record:
        print(f"{OTHER_TASKS}: {record['differs']}")
    if "gap_closed" in record:
        print(comparison.table(record["gap_closed"]))
    if out is None:
        runs.write_evaluation(folder, record)
        picture = folder / "adaptation.png"
    else:
        runs.write_record(out, record)
        picture = out.with_name(f"{out.stem}-adaptation.png")
    print(f"wrote {folder / runs.EVALUATION if out is None else out}: mean and 95 % interval over seeds and tasks")
    print(f"wrote {plotting.adaptation_curve({folder.resolve().name: record}, picture)}")
