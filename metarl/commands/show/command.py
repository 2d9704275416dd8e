"""``metarl show RUN_OR_GROUP``: what a run is, how far it is, and its scores, in one screen."""

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from metarl import plugins
from metarl.cli import DONE, Execute
from metarl.commands import groups
from metarl.commands.parsing import parse
from metarl.commands.show import summary

WIDTH = 12


@dataclasses.dataclass(frozen=True)
class ShowOptions:
    """Options of ``metarl show``."""

    run: Positional[Path]
    """Run folder, group of seeds, or pretrained:NAME."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN_OR_GROUP``: say what a run is, and how far."""
    chosen = parse(ShowOptions, arguments, "show", "Show what a run is, how far it is, and its best and last scores.")
    if groups.is_group(chosen.run):
        lines = summary.of_group(groups.read_group(chosen.run))
    else:
        lines = summary.of_run(plugins.run_folder(chosen.run), str(chosen.run))

    def execute() -> int:
        print("\n".join(f"{name:<{WIDTH}}{text}" for name, text in lines))
        return DONE

    return execute
