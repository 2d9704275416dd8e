"""``metarl train ALGORITHM TASKS``: meta-train into a run folder."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from metarl import plugins, runs, sb3, training
from metarl.cli import DONE, INTERRUPTED, Execute
from metarl.commands.parsing import parse
from metarl.outer import default_outer
from metarl.training import Result, Settings, Source, default_settings

START_FROM = "PPO or A2C model of Stable-Baselines3 whose actor the meta-parameters begin with."

TRAIN_HELP = """Meta-train an algorithm on a family of tasks; 'metarl list' shows both.

Below are the options of every run. Name both, 'metarl train ALGORITHM TASKS --help', for the algorithm's, the tasks'
and the outer update's, too."""


def prepare(arguments: list[str]) -> Execute:
    """``ALGORITHM TASKS [options]``: meta-train into a run folder."""
    if arguments in (["-h"], ["--help"]):
        parse(_joined(_common(Settings())), ["--help"], "train ALGORITHM TASKS", TRAIN_HELP)
    if len(arguments) < 2 or arguments[0].startswith("-") or arguments[1].startswith("-"):
        raise ValueError(
            "train needs an algorithm and tasks, e.g. 'metarl train maml point-navigation'; 'metarl list' shows them"
        )
    algorithm_name, tasks_name, options = arguments[0], arguments[1], arguments[2:]
    algorithm = training.source("algorithms", algorithm_name).target
    tasks = training.source("tasks", tasks_name).target
    update = _chosen_update(options) or _default_update(algorithm, tasks)
    chosen = parse(
        _options(algorithm, tasks, update),
        options,
        f"train {algorithm_name} {tasks_name}",
        f"{_first_line(algorithm)}\n\n{_first_line(tasks)}",
    )
    out = chosen.out or Path("runs") / f"{algorithm_name}-{tasks_name}-{chosen.settings.seed}".replace(":", ".")
    sources = Source(chosen.algorithm, algorithm_name), Source(chosen.tasks, tasks_name)
    actor = None
    if chosen.start_from is not None:
        actor = sb3.import_actor(chosen.start_from, chosen.algorithm, chosen.tasks)
    outer = Source(chosen.update, update.reference)
    run = training.start(*sources, outer, chosen.settings, out, chosen.overwrite, actor)

    def execute() -> int:
        if not chosen.quiet and (told := runs.told(out)):
            print(f"{out} has no checkpoint yet{told}, until there is one")
        return finish(run.train(run.first(), chosen.quiet), out, chosen.quiet)

    return execute


def _first_line(target: Any) -> str:
    return (type(target).__doc__ or "").strip().split("\n")[0]


def _default_update(algorithm: Any, tasks: Any) -> Source:
    update = default_outer(algorithm, tasks.spec)
    return Source(update, plugins.name_of("outers", type(update)))


def _chosen_update(options: list[str]) -> Source | None:
    """Read --outer ahead of the rest: it decides which options there are."""
    name = None
    for index, word in enumerate(options):
        if word == "--outer" and index + 1 < len(options):
            name = options[index + 1]
        elif word.startswith("--outer="):
            name = word.removeprefix("--outer=")
    return None if name is None else training.source("outers", name)


def _options(algorithm: Any, tasks: Any, update: Source) -> type[Any]:
    """Join the options of a run into one dataclass, which tyro turns into a command line."""
    return _joined(
        [
            *_common(default_settings(tasks.spec), update.reference),
            ("algorithm", type(algorithm), algorithm),
            ("tasks", type(tasks), tasks),
            ("update", Annotated[type(update.target), arg(name="outer")], update.target),
        ]
    )


def _common(settings: Settings, outer: str | None = None) -> list[tuple[str, Any, Any]]:
    """Options that every run has; ``outer`` is what is taken where none is named, if that is known."""
    names = ", ".join(plugin.name for plugin in plugins.available("outers"))
    help_outer = f"How the meta-parameters move: {names}, or module:attribute" + (
        "; by default as the algorithm says." if outer is None else "."
    )
    return [
        ("outer", Annotated[str | None if outer is None else str, arg(help=help_outer)], outer),
        ("settings", OmitArgPrefixes[Settings], settings),
        ("out", Annotated[Path | None, arg(help="Run folder; by default runs/ALGORITHM-TASKS-SEED.")], None),
        ("overwrite", Annotated[bool, arg(help="Replace the run that the folder holds.")], False),
        ("quiet", Annotated[bool, arg(help="No table and no progress bar.")], False),
        ("start_from", Annotated[Path | None, arg(help=START_FROM)], None),
    ]


def _joined(fields: list[tuple[str, Any, Any]]) -> type[Any]:
    return dataclasses.make_dataclass("Train", fields, frozen=True)


def finish(result: Result, out: Path, quiet: bool) -> int:
    """Tell how a training ended, and what comes next."""
    if result.interrupted:
        print(f"stopped; the checkpoint is saved. Go on with: metarl resume {out}")
        return INTERRUPTED
    refused = int(result.rows[-1]["outer/refused"]) if result.rows else 0
    if refused:
        print(f"the last {refused} updates were refused: the meta-gradient was not finite; try a smaller step size")
    if not quiet:
        print(f"done: {out}. Next: metarl evaluate {out}")
    return DONE
