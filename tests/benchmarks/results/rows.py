"""The rows of the results page and the points of the study, as data: what to train, how to score it, what to reach."""

import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROWS, STUDY = HERE / "rows.toml", HERE / "study.toml"


@dataclass(frozen=True)
class Row:
    """A line of a table: a command, its seeds, and what it should reach. ``rows.toml`` tells what the fields mean."""

    name: str
    part: str
    """Heading of the page's section."""
    title: str
    train: str
    seeds: tuple[int, ...]
    evaluate: str = ""
    bar: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    oracle: str | None = None
    pretrained: str | None = None
    gap: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    others: tuple[Mapping[str, Any], ...] = ()
    ships: str | None = None
    note: str = ""
    parameters: bool = True
    """Whether the store keeps the trained parameters."""
    of: str | None = None
    """The row whose training this one scores again, in another way. ``train`` and ``seeds`` are that row's."""
    also: tuple["Row", ...] = ()
    """The rows that score this one's training again."""
    choice: str = ""
    """Of a point of the study: what it changes; and ``value``, to what."""
    value: str = ""

    @property
    def words(self) -> list[str]:
        """What follows ``metarl train``, without seed and folder."""
        return shlex.split(self.train)

    @property
    def checkpoint(self) -> str:
        """Which parameters are scored."""
        words = shlex.split(self.evaluate)
        return words[words.index("--checkpoint") + 1] if "--checkpoint" in words else "last"


class Job(NamedTuple):
    """A training of a row."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.row.name}-{self.seed}"

    @property
    def also(self) -> "list[Job]":
        """The same training, as other rows score it."""
        return [Job(row, self.seed) for row in self.row.also]


def rows() -> list[Row]:
    """Return all rows in the queue's order, the study's last. Raises ValueError, which names the file and the fault."""
    found = [*_read_rows(ROWS), *_read_study(STUDY)]
    names = [row.name for row in found]
    for row in found:
        if names.count(row.name) > 1:
            raise ValueError(f"two rows are called {row.name}")
        if strange := [other for other in (row.oracle, row.pretrained) if other is not None and other not in names]:
            raise ValueError(f"{row.name} names {strange[0]}, which is no row")
    return found


def jobs(found: list[Row]) -> list[Job]:
    """Return the trainings of rows, in their order. A row that scores another one's training has none of its own."""
    return [Job(row, seed) for row in found if row.of is None for seed in row.seeds]


def position(score: str) -> int:
    """Return the number at the end of a score's name: of its adaptation step, or of its drawing."""
    return int(score.rpartition("_")[2])


def _read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file. A row ``of`` another one takes that one's training, and is among its ``also``."""
    tables = [(f"row {number}", options) for number, options in enumerate(_table(path).get("row", []), start=1)]
    trained = {options["name"]: options for _, options in tables if "of" not in options and "name" in options}
    found = []
    for where, options in tables:
        if "of" not in options:
            found.append(_row(path, where, options))
            continue
        if strange := sorted({"train", "seeds", "also", "ships"} & set(options)):
            raise ValueError(f"{path}: {where} has {', '.join(strange)}, which a row of another one takes from there")
        if options["of"] not in trained:
            raise ValueError(f"{path}: {where} is of {options['of']!r}, which is no row with a training")
        taken = {name: trained[options["of"]][name] for name in ("train", "seeds") if name in trained[options["of"]]}
        found.append(_row(path, where, options | taken | {"parameters": False}))
    for row in found:
        yield replace(row, also=tuple(each for each in found if each.of == row.name))


def _read_study(path: Path) -> Iterator[Row]:
    study = _table(path)
    for number, point in enumerate(study["point"], start=1):
        outer = point.get("outer", study["outer"])
        options = (
            f"{study['base']} {outer} {point['options']} --iterations {point.get('iterations', study['iterations'])}"
        )
        for family in study["families"]:
            settings = {
                "name": f"study-{number:02}-{family}",
                "part": f"Study: {family}",
                "title": f"{point['choice']}: {point['value']}",
                "train": f"maml {family} {options}",
                "seeds": study["seeds"],
                "evaluate": study["evaluate"],
                "parameters": False,
                "choice": point["choice"],
                "value": point["value"],
            }
            yield _row(path, f"point {number}", settings)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _row(path: Path, where: str, options: Mapping[str, Any]) -> Row:
    known = {each.name for each in fields(Row)} - {"also"}
    if strange := sorted(set(options) - known):
        raise ValueError(f"{path}: {where} has {', '.join(strange)}: expected some of {', '.join(sorted(known))}")
    try:
        row = Row(**{**options, "seeds": tuple(options["seeds"]), "others": tuple(options.get("others", ()))})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {where}: {error}") from error
    if not row.seeds:
        raise ValueError(f"{path}: {row.name} has no seeds")
    if row.gap and not row.source:
        raise ValueError(f"{path}: {row.name} has a gap to close without its source")
    return row


def fast() -> dict[str, dict[str, Any]]:
    """Return short trainings by name, with the intervals that their scores must stay in."""
    return dict(_table(HERE / "fast.toml"))


def study_base() -> str:
    """Return the study's base setting: the command that each point changes in one place."""
    study = _table(STUDY)
    options = f"{study['base']} {study['outer']} --iterations {study['iterations']}"
    return f"metarl train maml {'|'.join(study['families'])} {options}"
