"""``metarl resume RUN``: go on exactly where a run stopped."""

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from metarl import training
from metarl.cli import Execute
from metarl.commands.parsing import parse
from metarl.commands.train import finish
from metarl.speed import Device


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Options of ``metarl resume``."""

    run: Positional[Path]
    """Run folder."""
    iterations: int | None = None
    """Go on to this many iterations instead of those that the run was started with."""
    device: Device | None = None
    """Where to go on; by default where the run was trained."""
    quiet: bool = False
    """No table and no progress bar."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN``: go on exactly where a run stopped."""
    chosen = parse(ResumeOptions, arguments, "resume", "Go on exactly where a run stopped.")
    run, progress = training.reopen(chosen.run, chosen.iterations, chosen.device)
    return lambda: finish(run.train(progress, chosen.quiet), chosen.run, chosen.quiet)
