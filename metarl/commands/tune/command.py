"""``metarl tune ALGORITHM TASKS``: search for the options that validate best."""

import os
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from metarl import tuning
from metarl.cli import Execute
from metarl.commands.train import Fields, named, requested
from metarl.commands.tune.telling import finish
from metarl.speed import ranks

TUNE_HELP = """Search for the options of an algorithm that validate best on held-out tasks, with Optuna. Every trial is
a run folder in the folder --out. The same command goes on with a study that is there.

All options of metarl train hold for every trial; those that are given are not searched. 'metarl tune ALGORITHM TASKS
--help' also shows the options of the algorithm, the tasks and the outer update."""
SPACE = (
    "What is searched: default, architecture (networks), the name of a space of an installed package, or a TOML file."
)
OUT = "Folder of the study and its trials. Default: runs/tune-ALGORITHM-TASKS."
OWN = ("space", "out", "quiet", "budget", "pruner", "storage", "max-parameters")


def prepare(arguments: list[str]) -> Execute:
    """``ALGORITHM TASKS [options]``: search for the options that validate best."""
    algorithm, tasks, options = named(arguments, "tune", "sinusoid", of_tune, TUNE_HELP)
    _work_alone()
    tuning.check_installed()
    experiment, chosen = requested(algorithm, tasks, options, f"tune {algorithm} {tasks}", of_tune)
    kept = without_own(options)
    execute = tuning.prepared(experiment, chosen.space, chosen.out, chosen.search, given_options(kept), chosen.quiet)
    return lambda: finish(execute(), ["metarl", "train", algorithm, tasks, *kept], ["metarl", "tune", *arguments])


def of_tune() -> Fields:
    """Return the options of ``metarl tune`` itself."""
    return [
        ("space", Annotated[str, arg(help=SPACE)], "default"),
        ("search", OmitArgPrefixes[tuning.Search], tuning.Search()),
        ("out", Annotated[Path | None, arg(help=OUT)], None),
        ("quiet", Annotated[bool, arg(help="Print no line for each trial and no progress bar.")], False),
    ]


def _work_alone() -> None:
    """Forget what torchrun says of the other processes: each works on trials of its own. A GPU each, if there are."""
    if ranks.are_many():
        for name in ranks.VARIABLES:
            os.environ.pop(name, None)


def without_own(options: list[str]) -> list[str]:
    """Return the words of a command line that ``metarl train`` understands, too."""
    kept, own = list[str](), False
    for word in options:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("_", "-")
            own = name.removeprefix("no-") in OWN
        if not own:
            kept.append(word)
    return kept


def given_options(options: list[str]) -> list[str]:
    """Return the dotted names of the options that a command line gives, as a space has them."""
    names = [word[2:].partition("=")[0].replace("-", "_") for word in options if word.startswith("--")]
    return [name for given in names for name in _spellings(given)]


def _spellings(name: str) -> list[str]:
    """Return what an option may be called in a space: its network's options stand among the algorithm's own."""
    part, dot, field = name.rpartition(".")
    fields = [field, field.removeprefix("no_")]
    if not dot:
        return [f"settings.{one}" for one in fields]
    return [f"{prefix}.{one}" for prefix in (part, f"{part}.network") for one in fields]
