"""What ``metarl tune`` prints at its end: the best trials, and how to train the best one again."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from metarl.cli import DONE, INTERRUPTED, STOPPED_BY
from metarl.tuning import Tuned, words

SHOWN = 5
"""Trials in the table."""


def finish(found: Tuned, train: Sequence[str], again: Sequence[str]) -> int:
    """Print what a search has found. Return the exit code."""
    print("\n".join(table(found)))
    if found.best is not None:
        print(f"train it again: {retrain(found, train)}")
    if found.signal is None:
        return DONE
    print(f"stopped; the study is saved. Go on with: {shlex.join(again)}")
    return STOPPED_BY + found.signal if found.signal else INTERRUPTED


def table(found: Tuned) -> list[str]:
    """Return the best trials, a line each, and how all of them ended."""
    ended = [row for row in found.trials if row["state"] == "complete"]
    ended.sort(key=lambda row: row["value"], reverse=found.objective.up)
    lines = [f"{'trial':>5} {found.objective.metric:>18} {'parameters':>10}  options"]
    for row in ended[:SHOWN]:
        options = ", ".join(f"{name}={_shown(value)}" for name, value in row.items() if "." in name)
        lines.append(f"{row['trial']:>5} {row['value']:>18.4g} {row['parameters'] or '':>10}  {options}")
    counts = {state: sum(row["state"] == state for row in found.trials) for state in ("complete", "pruned", "failed")}
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    return [*lines, f"{len(found.trials)} trials: {told}; {near(found.folder / 'trials.csv')} has them all"]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def retrain(found: Tuned, train: Sequence[str]) -> str:
    """Return the command line that trains the best trial."""
    assert found.best is not None
    given = {word.partition("=")[0] for word in train}
    every = found.best.settings.validate_every
    validated = [] if "--validate-every" in given else ["--validate-every", str(every)]
    return shlex.join(
        [*train, *words(found.best, found.options), *validated, "--out", str(near(found.folder / "best"))]
    )


def near(path: Path) -> Path:
    """Return a path as seen from the working folder, if it is in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
