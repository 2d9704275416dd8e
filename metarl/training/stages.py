"""A run whose settings have schedules: what it is at each moment, with the numbers of the schedules at that time."""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from metarl import plugins, runs
from metarl.runs import logger
from metarl.seeding import stream
from metarl.speed import Graphs, singly
from metarl.training.compiling import Compiling
from metarl.training.progress import Learnt, Progress
from metarl.training.settings import SCHEDULED, scheduled, with_scheduled
from metarl.types import Learner, check_served

MOST_COMPILED = 4
"""Different values of schedules in a compiled run: each is compiled anew, which takes up to a minute."""


LONG = 16
"""Longer lists are compared as a whole, not number by number, with what they were before a callback."""


class Stages:
    """The stages of a run: copies of it without schedules, in which the parts have the schedules' numbers."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.known: dict[tuple[Any, ...], Any] = {}
        self.seen: tuple[int, int] | None = None  # iteration, and tasks that were sampled up to it

    def learn(self, progress: Progress) -> Learnt:
        """Run one meta-iteration as the schedules have it, and add their numbers to its row."""
        values = self.values(progress.iteration)
        stage = self.stage(values)
        reached, row, experience = stage.learn(progress)
        count = self._seen_until(progress.iteration) + stage.settings.meta_batch_size
        self.seen = reached.iteration, count
        told = {f"schedule/{name}": float(value) for name, value in values.items() if not isinstance(value, tuple)}
        return Learnt(reached, row | {"tasks/seen": count} | told, experience)

    def values(self, number: int) -> dict[str, plugins.Value]:
        """Return the numbers of the schedules after so many iterations."""
        return scheduled(self.run.settings, self._parts(), number / self.run.settings.iterations)

    def stage(self, values: Mapping[str, plugins.Value]) -> Any:
        """Return the run with these numbers, made anew where they have changed; a compiled one is kept."""
        key = tuple(values.items())
        if key not in self.known:
            if not self.run.settings.compile:
                self.known.clear()
            self.known[key] = self._made(values)
        return self.known[key]

    def check(self) -> list[Any]:
        """Return the run as it is where the schedules begin, bend and end.

        Raises ValueError for schedules that the parts cannot take, and for too many values of a compiled run.
        """
        last, schedules = self.run.settings.iterations, self.run.settings.schedules.values()
        knots = {min(math.ceil(place * last), last - 1) for schedule in schedules for place, _ in schedule.points}
        found = [self._made(self.values(number)) for number in sorted({0, last - 1, *knots})]
        if self.run.settings.compile:
            different = len({tuple(self.values(number).items()) for number in range(last)})
            if different > MOST_COMPILED:
                raise ValueError(
                    f"compile=True: the schedules take {different} different values in {last} iterations, and each is "
                    f"compiled anew: use at most {MOST_COMPILED}, by jumps such as 4/8@0.5, or leave compile out"
                )
        return found

    def _parts(self) -> dict[str, Any]:
        return dict(zip(SCHEDULED, (self.run.algorithm, self.run.family, self.run.outer), strict=True))

    def _made(self, values: Mapping[str, plugins.Value]) -> Any:
        run, stage = self.run, copy.copy(self.run)
        stage.stages = None
        stage.settings, parts = with_scheduled(run.settings, self._parts(), values)
        stage.algorithm, stage.family, stage.outer = parts.values()
        if stage.family.spec != run.family.spec:
            asked = f"tasks ask for {stage.family.spec}, not {run.family.spec}"
            raise ValueError(f"schedules: with {dict(values)}, {asked}")
        if any(name.startswith("tasks.") and not name.startswith("tasks.sampling.") for name in values):
            stage.ends = None  # they may differ from stage to stage, and making an environment to ask takes long
        if stage.algorithm is not run.algorithm:
            built = stage.algorithm.build(run.family.spec)
            check_served(built, run.family.spec)
            stage.learner = singly(built) if run.settings.exact_sums else built
            if _shapes(stage.learner) != _shapes(run.learner):
                raise ValueError(f"schedules: with {dict(values)}, the algorithm has parameters of other shapes")
        stage.compiling = run.compiling and Compiling(stage._plain, stage._streams)
        stage.graphs = run.graphs and Graphs()
        return stage

    def _seen_until(self, number: int) -> int:
        """Return how many tasks were sampled in the first iterations, as the run has logged them, or would have."""
        if self.seen is not None and self.seen[0] == number:
            return self.seen[1]
        folder, usual = self.run.folder, self.run.settings.meta_batch_size
        rows = logger.read_rows(folder / runs.PROGRESS, number) if folder is not None else []
        begun, count = next(
            ((int(row["iteration"]), int(row["tasks/seen"])) for row in reversed(rows) if "tasks/seen" in row), (0, 0)
        )
        sizes = [self.values(one).get("meta_batch_size", usual) for one in range(begun, number)]
        return count + sum(size for size in sizes if isinstance(size, int))


def options_of(run: Any) -> dict[str, Any]:
    """Return all options of a run by their dotted names, as objects, to see later whether somebody has changed them."""
    parts = dict(zip(SCHEDULED, (run.algorithm, run.family, run.outer), strict=True))
    return dict(_flat("settings", run.settings)) | {
        name: value for part, target in parts.items() for name, value in _flat(part, target)
    }


def warn_of_edits(before: Mapping[str, Any], run: Any, number: int) -> dict[str, Any]:
    """Warn of options that were changed since ``before``, which config.json does not learn of; return those of now."""
    now = options_of(run)
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old is not new and not (type(old) is type(new) and isinstance(new, int | float | str) and old == new):
            warnings.warn(
                f"a callback has changed {name} in iteration {number}: config.json does not say so, and a resumed run "
                "begins without it; numbers that change during training are values of Settings(schedules=...)",
                stacklevel=5,
            )
            break
    return now


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            if item.init:
                yield from _flat(f"{name}.{item.name}", getattr(value, item.name))
    elif isinstance(value, tuple | list) and len(value) <= LONG:
        for index, part in enumerate(value):
            yield from _flat(f"{name}.{index}", part)
    else:
        yield name, value


def _shapes(learner: Learner) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in learner.init(stream(0, "initialisation")).items()}
