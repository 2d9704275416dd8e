"""``metarl resume RUN``: continue a run, or all runs of a group, exactly where they stopped."""

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from metarl import training
from metarl.cli import Execute
from metarl.commands import groups
from metarl.commands.parsing import parse
from metarl.commands.train import finish
from metarl.speed import Device


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Options of ``metarl resume``."""

    run: Positional[Path]
    """Run folder, or group of seeds: the folder of 'metarl train ... --seeds'."""
    iterations: int | None = None
    """Total number of iterations. Default: the number that the run was started with."""
    device: Device | None = None
    """Device to train on. Default: the device that the run used."""
    jobs: int | None = None
    """Of a group: how many seeds are trained at a time. Default: one for each CPU, or one on a GPU."""
    allow_changes: bool = False
    """Go on with what the run's module:name is now, also if it has changed since; the run records that."""
    quiet: bool = False
    """Print no table and no progress bar."""
    allow_code: bool = False
    """Import code that the run names outside of installed plugins, also if you did not train it here."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN``: continue a run exactly where it stopped."""
    chosen = parse(ResumeOptions, arguments, "resume", "Continue a run exactly where it stopped.")
    allowed = chosen.allow_changes, chosen.allow_code
    if groups.is_group(chosen.run):
        manner = groups.Manner(chosen.jobs, chosen.iterations, chosen.device, chosen.quiet, groups.allowing(*allowed))
        return groups.resumed(chosen.run, manner)
    if chosen.jobs is not None:
        raise ValueError(f"--jobs is for a group of seeds, and {chosen.run} is not one")
    run, progress = training.reopen(chosen.run, chosen.iterations, chosen.device, *allowed)
    return lambda: finish(run.train(progress, chosen.quiet), chosen.run, chosen.quiet)
