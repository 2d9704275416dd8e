"""Regression on a table in a CSV file, with a column that tells each row's group, such as OpenML's data sets have."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Generator

from metarl.fewshot import FRACTIONS, Count, Missing, TableRegression, TableTasks, from_table, split_classes
from metarl.types import Spec, Split, Units

OPTIONS = ("shots", "queries", "train_shots", "test_queries", "drop_small", "normalise", "missing")
"""Options of ``TableRegression`` that are the same here."""


@dataclass(frozen=True)
class Table:
    """A table (CSV) whose rows come in groups: predict a column for new groups, from a few rows of each.

    The first line names the columns. Cells that are empty, or say NA, NaN or ?, are missing. Inputs and the target are
    in standard units: a loss of 1 is the target's variance in the training groups. Task parameters: ``group``
    ``[task]``, numbered by the order of the keys; ``shots`` ``[task]`` where they are a range. Descriptors are empty.
    """

    file: Path | None = None
    """The table; it must be given."""
    group: str = "group"
    """The column of the groups: numbers or texts."""
    target: str = "target"
    """The column to predict."""
    inputs: tuple[str, ...] = ()
    """The columns to predict from; by default all others, which must hold numbers."""
    shots: Count = 10
    """Support rows, or a range such as 5 20, from which each task draws."""
    queries: Count | None = None
    """Query rows in meta-training; by default as many as shots. A range: as many as are left, up to its end."""
    train_shots: Count | None = None
    """Support rows in meta-training; by default as many as shots."""
    test_queries: Count | None = None
    """Query rows in validation and test; by default as many as shots."""
    drop_small: bool = False
    """Leave out groups with fewer rows than support and query take; a warning says how many."""
    normalise: bool = True
    """Bring inputs and target into standard units."""
    missing: Missing = "refuse"
    """What to do about missing inputs: refuse them, or put the mean of the training groups there (mean)."""
    fractions: tuple[float, float, float] = FRACTIONS
    """Shares of the groups in train, validation and test."""
    split_seed: int = 0
    """Decides which groups these are."""

    def __post_init__(self) -> None:
        split_classes(100, self.fractions)

    @property
    def spec(self) -> Spec:
        """Input: the chosen columns of a row. Output: the target. Raises ValueError for a wrong table.

        As long as no file is named, it is that of a table of one input.
        """
        return Spec((1,), 1, "regression") if self.file is None else self._family.spec

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> TableTasks:
        """Sample groups. Raises ValueError for fewer than one task, and for a split that cannot fill an episode."""
        return self._family.sample(num_tasks, split, generator)

    def check_split(self, split: Split) -> None:
        """Raise ValueError for a split that has groups, but cannot fill an episode."""
        self._family.check_split(split)

    def fingerprint(self) -> str:
        """Return a digest of the rows and their groups."""
        return self._family.fingerprint()

    def units(self) -> Units:
        """Return the standard units of inputs and target."""
        return self._family.units()

    def with_units(self, units: Units) -> "Table":
        """Return the family in the units of another one, such as that of training."""
        copy = replace(self)
        vars(copy)["_family"] = self._family.with_units(units)
        return copy

    @cached_property
    def _family(self) -> TableRegression:
        if self.file is None:
            raise ValueError("which table? Name a CSV file with --tasks.file (in Python: file)")
        options = {name: getattr(self, name) for name in OPTIONS}
        given = from_table(self.file, self.group, self.target, self.inputs or None, **options)
        parts = split_classes(len(given.keys), self.fractions, self.split_seed)
        if self.fractions == FRACTIONS and self.split_seed == 0:
            return given
        splits = {split: [given.keys[number] for number in numbers] for split, numbers in parts.items()}
        return replace(given, splits=splits)
