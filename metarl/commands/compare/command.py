"""``metarl compare RUN_OR_GROUP ...``: scores beside each other, with paired differences, as a table and a picture."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from tyro.conf import Positional

from metarl.cli import DONE, Execute
from metarl.commands import groups
from metarl.commands.compare import records, table
from metarl.commands.parsing import parse
from metarl.files import check_place, write_bytes
from metarl.pictures import comparing
from metarl.runs import Checkpoint
from metarl.speed import Device
from metarl.types import Split

SUFFIXES = {"csv": (".csv",), "markdown": (".md", ".markdown")}


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Options of ``metarl compare``."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, groups of seeds, or pretrained:NAME. The others are compared with the first."""
    evaluate: bool = False
    """Evaluate all of them anew, on the same tasks. By default, the evaluations in their folders are compared. Nothing
    is written into the folders."""
    tasks: int = 40
    """With --evaluate: held-out tasks."""
    steps: int = 3
    """With --evaluate: adaptation steps."""
    split: Split = "test"
    """With --evaluate: split of the tasks."""
    seed: int = 0
    """With --evaluate: seed of the tasks and of all random numbers in adaptation."""
    checkpoint: Checkpoint = "last"
    """With --evaluate: parameters to use, as in 'metarl evaluate'."""
    device: Device = "auto"
    """With --evaluate: device for networks and data."""
    csv: Path | None = None
    """File to write the table to, ending in .csv."""
    markdown: Path | None = None
    """File to write the table to, ending in .md."""
    out: Path = Path("comparison.png")
    """Picture to write; the suffix sets its format."""
    overwrite: bool = False
    """Replace an existing table."""
    allow_code: bool = False
    """Import code that the runs name outside of installed plugins, also if you did not train them here."""

    def __post_init__(self) -> None:
        if self.tasks < 1 or self.steps < 0:
            raise ValueError(f"--tasks {self.tasks} --steps {self.steps}: expected at least 1 task and 0 steps")
        for name, suffixes in SUFFIXES.items():
            path: Path | None = getattr(self, name)
            if path is None:
                continue
            if path.suffix not in suffixes:
                raise ValueError(f"--{name} {path}: expected a file that ends in {suffixes[0]}")
            if path.exists() and not self.overwrite:
                raise ValueError(f"--{name} {path} exists; choose another file, or replace it with --overwrite")
            check_place(path)
        comparing.check_suffix(self.out)
        check_place(self.out)


COMPARE_HELP = """Compare runs and groups of seeds on the same held-out tasks: means, interquartile means, paired
differences from the first, and the probability of improvement over it, with 95 % intervals over seeds and tasks.

The measures are those of rliable (arXiv:2108.13264)."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN_OR_GROUP ...``: compare scores on the same tasks."""
    chosen = parse(CompareOptions, arguments, "compare", COMPARE_HELP)
    if len(chosen.runs) < 2:
        raise ValueError("compare needs at least two runs or groups, e.g. 'metarl compare runs/maml runs/reptile'")
    folders = groups.labelled(chosen.runs)
    if len(folders) < len(chosen.runs):
        raise ValueError("a run is named twice: name each run or group once")
    if not chosen.evaluate:
        compared = records.read(folders)
        return lambda: _tell(compared, chosen)
    options = ("tasks", "steps", "split", "seed", "checkpoint", "device")
    words = [word for name in options for word in (f"--{name}", str(getattr(chosen, name)))]
    evaluate = records.anew(folders, [*words, *(["--allow-code"] if chosen.allow_code else [])])
    return lambda: _tell(evaluate(), chosen)


def _tell(compared: Mapping[str, records.Evaluated], chosen: CompareOptions) -> int:
    rows = table.rows(compared)
    print(table.terminal(rows))
    for path, text in ((chosen.csv, table.csv(rows)), (chosen.markdown, table.markdown(rows))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, text.encode())
            print(f"wrote {path}")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    scores = {label: one.scores for label, one in compared.items()}
    print(f"wrote {comparing.comparison(scores, table.estimates(rows), chosen.out, records.told(compared))}")
    return DONE
