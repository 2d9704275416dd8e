"""``metarl report RUN_OR_GROUP ... --out report.html``: all that is known of runs, as one page of HTML."""

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from metarl.cli import DONE, Execute
from metarl.commands import groups
from metarl.commands.parsing import parse
from metarl.commands.report import contents, page
from metarl.files import check_place, write_bytes
from metarl.runs import logger

SUFFIXES = (".html", ".htm")


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Options of ``metarl report``."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, groups of seeds, or pretrained:NAME. Several are compared with the first."""
    out: Path = Path("report.html")
    """File to write."""
    title: str | None = None
    """Title of the page; by default the names of the runs."""
    overwrite: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("report needs at least one run or group, e.g. 'metarl report runs/maml'")
        if self.out.suffix not in SUFFIXES:
            raise ValueError(f"--out {self.out}: expected a file that ends in .html")
        if self.out.exists() and not self.overwrite:
            raise ValueError(f"--out {self.out} exists; choose another file, or replace it with --overwrite")
        check_place(self.out)


REPORT_HELP = """Write a page of HTML on runs and groups: what they are, curves, scores, and how they compare.

The page is one file that needs nothing else, and holds no scripts. It shows what is in the folders; 'metarl evaluate'
first adds scores."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN_OR_GROUP ...``: write a page of HTML."""
    chosen = parse(ReportOptions, arguments, "report", REPORT_HELP)
    folders = groups.labelled(chosen.runs)
    if len(folders) < len(chosen.runs):
        raise ValueError("a run is named twice: name each run or group once")
    found = contents.read(folders)
    title = chosen.title or f"Report on {', '.join(folders)}"

    def execute() -> int:
        parts = []
        with logger.open_bar(f"writing {chosen.out.name}") as progress:
            for number, part in enumerate(contents.parts(folders, found, title), start=1):
                parts.append(part)
                progress(number / (number + 1))
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(chosen.out, page.document(title, parts).encode())
        print(f"wrote {chosen.out}")
        return DONE

    return execute
