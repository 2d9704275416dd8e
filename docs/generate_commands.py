"""Write docs/commands.md: the help of every command, and the options of all plugins that come with metarl.

python docs/generate_commands.py
"""

import contextlib
import io
import os
import re
import textwrap
from pathlib import Path

from metarl import cli, plugins

PAGE = Path(__file__).with_name("commands.md")
COLUMNS = "88"
INTRODUCTION = """# Commands

<!-- Written by docs/generate_commands.py from the commands themselves: change their help, then run it again. -->

Options of the algorithm, the tasks and the outer update have the prefixes `--algorithm.`, `--tasks.` and `--outer.`.
This page lists the commands first, then the options of all plugins that come with metarl. For other plugins, use
`metarl train ALGORITHM TASKS --help`.

Exit codes:

- 0: done.
- 1: the command failed while running. It prints a traceback, and the last checkpoint is intact.
- 2: the request was invalid. One line on standard error explains why.
- 130: stopped by Ctrl-C; 128 + number: by another signal, such as 143 for SIGTERM.
"""
TITLE = re.compile(r"^ (\w.*)\n -+\n", re.MULTILINE)
"""The title of a group of options, in output without boxes."""


def printed(*arguments: str) -> str:
    """Return what a command prints in a terminal of ``COLUMNS`` columns."""
    output, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with contextlib.redirect_stdout(output):
            code = cli.main(list(arguments))
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {} if before is None else {"COLUMNS": before}
    if code != cli.DONE:
        raise ValueError(f"metarl {' '.join(arguments)} ended with exit code {code}")
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()).rstrip()


def options(prefix: str, *arguments: str) -> str:
    """Return the part of a command's help with the options of a prefix, such as 'algorithm'."""
    _, *groups = TITLE.split(printed(*arguments, "--help"))
    bodies = [body.rstrip() for title, body in zip(groups[::2], groups[1::2], strict=True) if title.startswith(prefix)]
    if not bodies:
        raise ValueError(f"the help of metarl {' '.join(arguments)} has no options of the {prefix}")
    return textwrap.dedent("\n\n".join(bodies))


def section(title: str, contents: str, level: int = 3) -> str:
    """Return a heading with a block of text under it."""
    return f"{'#' * level} {title}\n\n```text\n{contents}\n```\n"


def shipped(group: plugins.Group) -> list[str]:
    """Return the names of the plugins that come with metarl."""
    return [plugin.name for plugin in plugins.available(group) if plugin.package == "metarl-toolkit"]


def page() -> str:
    """Return the whole page."""
    commands = [section(f"metarl {name}", printed(name, "--help"), 2) for name in cli.COMMANDS]
    algorithms = [
        section(name, options("algorithm", "train", name, "sinusoid", "--recipe", "none"))
        for name in shipped("algorithms")
    ]
    tasks = [section(name, options("tasks", "train", "maml", name, "--recipe", "none")) for name in shipped("tasks")]
    outers = [section(name, options("outer", "train", "maml", "bandit", "--outer", name)) for name in shipped("outers")]
    parts = [
        INTRODUCTION,
        section("metarl", printed("--help"), 2),
        *commands,
        "## Options of algorithms\n",
        *algorithms,
        "## Options of tasks\n",
        *tasks,
        "## Options of outer updates\n",
        *outers,
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
