"""The table of a comparison: a row for each score and run; as text, CSV and Markdown."""

import csv as comma_separated
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metarl.commands.compare.records import Evaluated
from metarl.evaluation import comparison, reliable
from metarl.evaluation.reliable import Estimate


class Row(NamedTuple):
    """A score of a run, and how it compares with that of the first run."""

    score: str
    run: str
    seeds: int
    tasks: int
    mean: Estimate
    iqm: Estimate
    """Interquartile mean."""
    difference: Estimate | None
    """Mean minus that of the first run, on the same tasks. None for the first, or where it has no such score."""
    improvement: Estimate | None
    """Probability of being better than the first run."""


def rows(compared: Mapping[str, Evaluated]) -> list[Row]:
    """Compute the table, score by score."""
    names = dict.fromkeys(name for one in compared.values() for name in one.scores)
    first = next(iter(compared))
    return [
        _row(name, label, one, None if label == first else compared[first])
        for name in names
        for label, one in compared.items()
        if name in one.scores
    ]


def _row(name: str, label: str, one: Evaluated, first: Evaluated | None) -> Row:
    scores, among, values = one.scores[name], one.record.get("strata"), one.metrics[name]
    mean = Estimate(values["mean"], values["low"], values["high"])
    iqm = reliable.interquartile_mean(scores, among)
    seeds, tasks = scores.shape
    if first is None or name not in first.scores:
        return Row(name, label, seeds, tasks, mean, iqm, None, None)
    before, falls = first.scores[name], comparison.falls(name)
    difference = reliable.paired_difference(before, scores, among)
    improvement = reliable.probability_of_improvement(before, scores, falls, among)
    return Row(name, label, seeds, tasks, mean, iqm, difference, improvement)


Estimates = Mapping[str, Mapping[str, Estimate]]


def estimates(table: Sequence[Row]) -> dict[str, Estimates]:
    """Return means and differences by kind, score and run, for pictures."""
    found: dict[str, dict[str, dict[str, Estimate]]] = {"mean": {}, "difference": {}}
    for row in table:
        found["mean"].setdefault(row.score, {})[row.run] = row.mean
        if row.difference is not None:
            found["difference"].setdefault(row.score, {})[row.run] = row.difference
    return {kind: dict(by_score) for kind, by_score in found.items()}


HEADINGS = ("score", "run", "seeds", "mean", "interquartile mean", "difference", "P(better)")
NOTE = "difference and P(better): from the first run, on the same tasks; brackets: 95 % intervals over seeds and tasks"


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, under ``HEADINGS``."""
    return (
        row.score,
        row.run,
        str(row.seeds),
        _shown(row.mean),
        _shown(row.iqm),
        _shown(row.difference, "+"),
        _shown(row.improvement),
    )


def _shown(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None or math.isnan(estimate.value):
        return f"{estimate.value:{sign}.4g}"
    return f"{estimate.value:{sign}.4g} [{estimate.low:{sign}.4g}, {estimate.high:{sign}.4g}]"


def terminal(table: Sequence[Row]) -> str:
    """Return the table as aligned text."""
    lines = [HEADINGS, *map(cells, table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, NOTE])


def markdown(table: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *map(cells, table)]
    escaped = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*escaped, "", f"{NOTE[0].upper()}{NOTE[1:]}.", ""])


ESTIMATES = ("mean", "iqm", "difference", "improvement")


def csv(table: Sequence[Row]) -> str:
    """Return the table as CSV, with full precision; what there is not is empty."""
    text = io.StringIO()
    writer = comma_separated.writer(text, lineterminator="\n")
    columns = [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")]
    writer.writerow(["score", "run", "seeds", "tasks", *columns])
    for row in table:
        numbers = [value for name in ESTIMATES for value in (getattr(row, name) or (None, None, None))]
        writer.writerow([row.score, row.run, row.seeds, row.tasks, *numbers])
    return text.getvalue()
