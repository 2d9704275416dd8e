"""Documentation pages, run as a reader would: from top to bottom, in an empty folder.

A ```` ```python ```` block is executed, in a namespace that the blocks of a page share; one with a title,
```` ```python title="my_module.py" ````, is written to that file instead. Of ```` ```sh ```` blocks, what ``metarl`` is
called with is run, and other programs are not; trainings and evaluations are cut to two tasks. A block under a comment
``<!-- not run: REASON -->`` is not run; where the reason is that it takes minutes, hours or days, its trainings must be
understood.
"""

import glob
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from metarl import cli
from metarl.commands import train

LANGUAGES = ("python", "sh")
CUTS = {
    "train": ("--iterations", "2", "--meta-batch-size", "2"),
    "tune": ("--iterations", "2", "--meta-batch-size", "2", "--budget", "2", "--validate-every", "1"),
    "resume": ("--iterations", "3"),
    "evaluate": ("--tasks", "2"),
}
"""Options that commands are given, in place of those that the page says."""
FENCE = re.compile(
    r"^(?P<comment><!--[^\n]*-->\n\s*)?(?P<fence>```+)(?P<language>\w*)(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
LONG = re.compile(r"\b(minutes|hours|days)\b")
LIST_CALLS = """
metarl() { printf '%s\\0' "$@"; printf '\\n\\0'; }
command_not_found_handle() { :; }
cd() { :; }
PATH=
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str
    line: int
    file: str | None
    skipped: str | None
    """Why it is not run; None where it is."""


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page that are run, or say why not. Raises ValueError for one that does not say why."""
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        title = re.search(r'title="([^"]+)"', match["info"])
        comment = re.fullmatch(r"<!-- not run:(.*)-->\s*", match["comment"] or "")
        if comment and not comment[1].strip():
            raise ValueError(f"line {line}: tell why the block is not run")
        if match["language"] in LANGUAGES:
            skipped = comment[1].strip() if comment else None
            found.append(Block(match["language"], match["code"], line, title[1] if title else None, skipped))
    return found


def calls(code: str) -> list[list[str]]:
    """Return the arguments of every call of metarl that a shell script makes, with its variables and loops."""
    told = subprocess.run(["bash", "-c", LIST_CALLS + code], capture_output=True, check=False).stdout.decode()
    return [call.split("\0")[:-1] for call in told.split("\n\0")[:-1]]


def cut(arguments: list[str]) -> list[str]:
    """Return a command line that takes seconds, with file patterns expanded."""
    options = CUTS.get(arguments[0], ())
    if "--help" in arguments:
        return arguments
    kept = list(arguments)
    for name in options[::2]:
        if name in kept:
            del kept[kept.index(name) : kept.index(name) + 2]
    expanded = [name for word in kept for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    return [*expanded, *options]


def run(text: str, page: str = "page") -> None:
    """Run a page in the working directory. Raises what its Python raises, and AssertionError for a failed command."""
    namespace = {"__name__": "__main__"}
    for block in blocks(text):
        if block.skipped is not None:
            _understood(block, page)
        elif block.file is not None:
            Path(block.file).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * block.line + block.code, page, "exec"), namespace)
        else:
            for arguments in calls(block.code):
                code = cli.main(cut(arguments))
                assert code == cli.DONE, f"{page}: metarl {' '.join(arguments)} ended with exit code {code}"


def _understood(block: Block, page: str) -> None:
    """Check a block that is not run: the syntax of Python; the trainings that only take long."""
    if block.language == "python":
        compile("\n" * block.line + block.code, page, "exec")
        return
    if LONG.search(block.skipped or ""):
        for arguments in {_of_any_seed(call): call for call in calls(block.code) if call[0] == "train"}.values():
            train.prepare([*arguments[1:], "--out", f"understood-{block.line}", "--overwrite"])


def _of_any_seed(call: list[str]) -> str:
    """Return a training's words without its seed and folder: those of a loop over seeds are understood once."""
    return re.sub(r" --(seed|out) \S+", "", " ".join(call))


@contextmanager
def own_modules(folder: Path) -> Iterator[None]:
    """Forget the modules that a page has written, and where they were found."""
    path, before = list(sys.path), set(sys.modules)
    sys.path.insert(0, os.fspath(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and folder in Path(file).parents:
                del sys.modules[name]
