"""Contestants that take turns: each in a process of its own (``entrant.py``), one of them working at any time.

Standard library only: what measures must not take memory or processors from what is measured.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Contestant(NamedTuple):
    """Who takes part."""

    name: str
    make: str
    """``module:function`` of this folder; the function returns an Entrant."""
    arguments: Mapping[str, Any]
    threads: tuple[int | None, ...] = (None,)
    """Numbers of torch's threads to try, of which the best counts; None leaves the number alone."""
    absent: str | None = None
    """Why it does not take part, if so: a row that says it."""


class Group(NamedTuple):
    """Contestants that are compared; the first is the base of the ratios."""

    name: str
    sizes: Mapping[str, Any]
    """What was measured, for the record and for the counts of operations."""
    contestants: list[Contestant]
    rounds: int
    count: int = 1
    """Times that each works in its turn."""


class Seat:
    """A contestant's process."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant, self.turns = contestant, 0
        self.row: dict[str, Any] = {}
        self.series: dict[int | None, list[float]] = {threads: [] for threads in contestant.threads}
        self.numbers: list[dict[str, float]] = []
        self.strangers, self.processors = 0.0, 0.0
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        command = [sys.executable, str(HERE / "entrant.py"), contestant.make, json.dumps(dict(contestant.arguments))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None and "absent" not in self.row and "failed" not in self.row

    def listen(self) -> dict[str, Any]:
        """Return the next answer; empty where the process failed, whose error is then in the row."""
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or [f"exit code {self._process.returncode}"]
        self.row["failed"] = lines[-1]
        print("\n".join(lines[-30:]), file=sys.stderr)
        return {}

    def work(self, count: int, threads: int | None, warming: bool) -> None:
        order = {"first": self.turns, "count": count, "threads": threads}
        with suppress(BrokenPipeError):  # where it has died, listening tells why
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        answer = self.listen()
        self.turns += count
        if answer and warming:
            self.row.setdefault("first_seconds", answer["seconds"][0])
        elif answer:
            self.series[threads].append(statistics.median(answer["seconds"]))
            self.numbers += answer["numbers"]
            self.strangers += answer["strangers"] or 0.0
            self.processors += answer["processors"] if answer["strangers"] is not None else 0.0

    def close(self) -> None:
        runs = self.runs
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self.row |= self.listen() if runs else {}
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def compete(group: Group) -> dict[str, dict[str, Any]]:
    """Let the contestants of a group take turns; return a row for each, and how they compare round by round."""
    seats = [Seat(contestant) for contestant in group.contestants if not contestant.absent]
    try:
        for seat in seats:
            seat.row |= seat.listen()
        for turn in range(group.rounds + 1):  # the first one warms up
            for seat in seats:
                for threads in seat.series:
                    if seat.runs:
                        seat.work(group.count if turn else 1, threads, warming=not turn)
    finally:
        for seat in seats:
            seat.close()
    rows = {contestant.name: {"absent": contestant.absent} for contestant in group.contestants}
    rows |= {seat.contestant.name: seat.row | summary(seat) for seat in seats}
    compare(rows)
    return rows


def summary(seat: Seat) -> dict[str, Any]:
    """Return medians at the best number of threads; empty for who did not finish."""
    if "peak_bytes" not in seat.row:
        return {}
    threads, series = min(seat.series.items(), key=lambda item: statistics.median(item[1]))
    found: dict[str, Any] = {"seconds": statistics.median(series), "series": series}
    found |= {} if threads is None else {"threads": threads}
    found |= {"strangers": round(max(0.0, seat.strangers / seat.processors), 3)} if seat.processors else {}
    names = seat.numbers[0] if seat.numbers else ()
    return found | {"numbers": {name: statistics.median(row[name] for row in seat.numbers) for name in names}}


def compare(rows: dict[str, dict[str, Any]]) -> None:
    """Set beside each row how many times the base's seconds it took, for a step where steps are counted.

    The median of the rounds' ratios: a busy machine slows all contestants of a round.
    """
    base = next(iter(rows.values()))
    for row in rows.values():
        if "series" in base and "series" in row:
            amount = base["numbers"].get("steps", 1) / row["numbers"].get("steps", 1)
            ratios = [amount * own / other for own, other in zip(row["series"], base["series"], strict=True)]
            row["ratio"] = statistics.median(ratios)
