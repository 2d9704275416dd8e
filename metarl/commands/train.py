"""``metarl train ALGORITHM TASKS``: meta-train into a run folder."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from metarl import plugins, runs, training
from metarl.cli import DONE, INTERRUPTED, STOPPED_BY, Execute
from metarl.commands import beginning, groups
from metarl.commands.parsing import made_with, parse
from metarl.files import typed
from metarl.outer import default_outer
from metarl.plugins import DEFAULT, NONE
from metarl.speed import ranks
from metarl.trained import Trained
from metarl.training import Experiment, Settings
from metarl.types import Params, PrefersOuter, Spec

Fields = list[tuple[str, Any, Any]]
"""Names, types and defaults of options."""

START_FROM = (
    "Where the initial meta-parameters come from: another run, pretrained:NAME, or a Stable-Baselines3 model (PPO or "
    "A2C), whose actor is taken. Names and shapes must fit; what is not in there starts as always."
)

START_WITHOUT = (
    "Parameters that start as always in spite of --start-from, by their names or parts of these: head leaves out the "
    "last layer, and its step sizes where they are learned."
)

RECIPE = (
    "Named set of options that is known to work; other options override it. 'metarl list recipes' shows all recipes. "
    "none: use no recipe."
)

RESUME = (
    "Go on with the run in that folder, if the same command has started one; start it otherwise. A run that is done is "
    "no error, so the same command can be repeated until it is."
)

SEEDS = (
    "Train a run for each of these seeds, in processes of their own, into folders seed-0, seed-1, ... of the folder "
    "--out, by default runs/ALGORITHM-TASKS. evaluate, plot, compare and other commands take that folder."
)

JOBS = "How many seeds are trained at a time. Default: one for each CPU, or one on a GPU."

REQUIRED: dict[plugins.Group, str] = {"algorithms": "algorithm", "tasks": "tasks"}
"""Where options that have no default stand on the command line."""

TRAIN_HELP = """Meta-train an algorithm on a family of tasks. 'metarl list' shows both.

These options apply to every run. 'metarl train ALGORITHM TASKS --help' also shows the options of the algorithm, the
tasks and the outer update."""


def prepare(arguments: list[str]) -> Execute:
    """``ALGORITHM TASKS [options]``: meta-train into a run folder."""
    algorithm_name, tasks_name, options = named(arguments, "train", "point-navigation", of_train, TRAIN_HELP)
    asked, chosen = requested(algorithm_name, tasks_name, options, f"train {algorithm_name} {tasks_name}", of_train)
    if chosen.seeds is not None:
        return _group(asked, chosen, options)
    if chosen.jobs is not None:
        raise ValueError("--jobs is for several seeds: give --seeds too")
    name = f"{algorithm_name}-{tasks_name}-{chosen.settings.seed}".replace(":", ".")
    return _prepared(asked, chosen, chosen.out or Path("runs") / name)


def named(
    arguments: list[str], command: str, example: str, own: Callable[[], Fields], told: str
) -> tuple[str, str, list[str]]:
    """Return the algorithm, the tasks and the options of a command line. For --help, print the options of every run.

    ``example`` are tasks for the error message, ``own`` the options of the command itself, ``told`` its help. Raises
    ValueError where a name is missing.
    """
    if arguments in (["-h"], ["--help"]):
        control = training.default_settings(Spec((1,), 1, "continuous"))
        parse(joined(common(own(), control)), ["--help"], f"{command} ALGORITHM TASKS", told)
    if len(arguments) < 2 or arguments[0].startswith("-") or arguments[1].startswith("-"):
        raise ValueError(
            f"{command} needs an algorithm and tasks, e.g. 'metarl {command} maml {example}'; 'metarl list' shows them"
        )
    return arguments[0], arguments[1], arguments[2:]


def requested(
    algorithm_name: str, tasks_name: str, options: list[str], command: str, own: Callable[[], Fields]
) -> tuple[Experiment, Any]:
    """Return the experiment that a command line asks for, and its options, among them those of the command itself.

    Raises ValueError and PluginError.
    """
    given = {name: _read_ahead(options, name) for name in ("recipe", "outer", "algorithm.architecture")}
    make = {group: made_with(prefix, options, command) for group, prefix in REQUIRED.items()}
    experiment = training.recipe(algorithm_name, tasks_name, given["recipe"], given["outer"], make)
    if experiment.recipe is not None:
        experiment = training.with_architecture(experiment, given["algorithm.architecture"])
    if given["outer"] is None and experiment.recipe is None:
        experiment = _with_preferred_outer(experiment, options)
    chosen = _chosen(experiment, options, command, own)
    asked = dataclasses.replace(
        experiment, algorithm=chosen.algorithm, tasks=chosen.tasks, outer=chosen.update, settings=chosen.settings
    )
    return asked, chosen


def _group(experiment: Experiment, chosen: Any, options: list[str]) -> Execute:
    """Make a run for each seed, and return what trains them all."""
    if _read_ahead(options, "seed") is not None:
        raise ValueError("--seed and --seeds were given: --seeds alone says which seeds to train")
    if chosen.overwrite:
        raise ValueError("--overwrite replaces one run, not a group of seeds: choose another folder with --out")
    folder = chosen.out or Path("runs") / "-".join(experiment.names[:2]).replace(":", ".")
    start = _start(chosen)

    def begin(seed: int, out: Path) -> None:
        settings = dataclasses.replace(experiment.settings, seed=seed)
        of_seed = dataclasses.replace(experiment, settings=settings)
        if chosen.resume and (out / runs.CONFIG).exists():
            training.check_same(of_seed, out, start)
            return
        run = of_seed.start(out, start_from=start)
        if run.claim is not None:
            run.claim.release()  # the process that trains it takes it

    manner = groups.Manner(chosen.jobs, experiment.settings.iterations, None, chosen.quiet)
    return groups.trained(folder, chosen.seeds, begin, manner, chosen.resume)


def _prepared(experiment: Experiment, chosen: Any, out: Path) -> Execute:
    """Start a run, or with --resume go on with it where there is one, as where torchrun starts the ranks again."""
    restarted = ranks.restarts() > 0 and out.exists() and _is_of(experiment, out)
    resume, overwrite = chosen.resume or restarted, chosen.overwrite and not restarted
    try:
        run, progress = training.begin(experiment, out, overwrite, _start(chosen), resume)
    except runs.FinishedError:
        return lambda: DONE if chosen.quiet else _say_done(out)

    def execute() -> int:
        if not chosen.quiet and ranks.is_first():
            _say_begun(out, progress.iteration)
        return finish(run.train(progress, chosen.quiet), out, chosen.quiet)

    return execute


def _start(chosen: Any) -> Params | None:
    return beginning.given(chosen.start_from, chosen.start_without, chosen.algorithm, chosen.tasks)


def _say_begun(out: Path, iteration: int) -> None:
    if ranks.restarts() and iteration > 0:
        print(f"torchrun has started the ranks again: {out} goes on after iteration {iteration}")
    elif iteration == 0 and (aside := runs.aside_note(out)):
        print(f"{out} has no checkpoint yet{aside}, until there is one")


def _say_done(out: Path) -> int:
    if ranks.is_first():
        print(f"{out} is done: nothing is left to do. Next: metarl evaluate {typed(out)}")
    return DONE


def _is_of(asked: Experiment, out: Path) -> bool:
    """Return whether a folder holds a run of this experiment."""
    try:
        config = runs.read_config(out)
    except runs.RunError:
        return False
    return all(config.get(name) == json.loads(json.dumps(part)) for name, part in asked.record().items())


def _chosen(experiment: Experiment, options: list[str], command: str, own: Callable[[], Fields]) -> Any:
    """Read the options of a run. Raises ValueError, which names the recipe that the other options come from."""
    description = f"{_first_line(experiment.algorithm)}\n\n{_first_line(experiment.tasks)}"
    try:
        return parse(_options(experiment, own), options, command, description)
    except ValueError as error:
        if experiment.recipe is None or "Unrecognized" in str(error):
            raise
        others = f"the other options are those of the recipe {experiment.recipe}, unless --recipe none"
        raise ValueError(f"{error}; {others}") from None


def _first_line(target: Any) -> str:
    return (type(target).__doc__ or "").strip().split("\n")[0]


def _with_preferred_outer(experiment: Experiment, options: list[str]) -> Experiment:
    """Return the experiment with the outer update that the algorithm prefers, given its options."""
    if not isinstance(experiment.algorithm, PrefersOuter):
        return experiment
    words = [word for word in options if word not in ("-h", "--help")]
    parts = joined([("algorithm", type(experiment.algorithm), experiment.algorithm)])
    algorithm = parse(parts, words, "train ALGORITHM TASKS", "", partial=True).algorithm
    update = default_outer(algorithm, experiment.tasks.spec)
    return dataclasses.replace(experiment, outer=update)


def _read_ahead(options: list[str], name: str) -> str | None:
    """Return the value of an option before parsing: it determines which other options exist, or their defaults."""
    value = None
    for index, word in enumerate(options):
        if word == f"--{name}" and index + 1 < len(options):
            value = options[index + 1]
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
    return value


def _options(experiment: Experiment, own: Callable[[], Fields]) -> type[Any]:
    """Join the options of a run into one dataclass for tyro."""
    variant = NONE if experiment.recipe is None else experiment.recipe.rpartition("/")[2]
    return joined(
        [
            *common(own(), experiment.settings, experiment.names[2], variant),
            ("algorithm", type(experiment.algorithm), experiment.algorithm),
            ("tasks", type(experiment.tasks), experiment.tasks),
            ("update", Annotated[type(experiment.outer), arg(name="outer")], experiment.outer),
        ]
    )


def common(own: Fields, settings: Settings, outer: str | None = None, variant: str = DEFAULT) -> Fields:
    """Return the options of every run, and a command's ``own``. ``outer`` and the recipe's ``variant`` are defaults."""
    names = ", ".join(plugin.name for plugin in plugins.installed("outers"))
    help_outer = f"Outer update of the meta-parameters: {names}, or module:attribute." + (
        " Default: the algorithm's choice." if outer is None else ""
    )
    return [
        ("recipe", Annotated[str, arg(help=RECIPE)], variant),
        ("outer", Annotated[str | None if outer is None else str, arg(help=help_outer)], outer),
        ("settings", OmitArgPrefixes[Settings], settings),
        *own,
    ]


def of_train() -> Fields:
    """Return the options of ``metarl train`` itself."""
    return [
        ("out", Annotated[Path | None, arg(help="Run folder. Default: runs/ALGORITHM-TASKS-SEED.")], None),
        ("overwrite", Annotated[bool, arg(help="Replace an existing run in that folder.")], False),
        ("resume", Annotated[bool, arg(help=RESUME)], False),
        ("seeds", Annotated[tuple[int, ...] | None, arg(help=SEEDS)], None),
        ("jobs", Annotated[int | None, arg(help=JOBS)], None),
        ("quiet", Annotated[bool, arg(help="Print no table and no progress bar.")], False),
        ("start_from", Annotated[Path | None, arg(help=START_FROM)], None),
        ("start_without", Annotated[tuple[str, ...], arg(help=START_WITHOUT)], ()),
    ]


def joined(fields: Fields) -> type[Any]:
    """Join fields into one dataclass for tyro."""
    return dataclasses.make_dataclass("Train", fields, frozen=True)


def finish(result: Trained, out: Path, quiet: bool) -> int:
    """Print how training ended and what to do next, once for all ranks. Return the exit code."""
    if not ranks.is_first():
        return DONE if not result.interrupted else INTERRUPTED
    if result.interrupted:
        print(f"stopped; the checkpoint is saved. Go on with: metarl resume {typed(out)}")
        return INTERRUPTED if result.signal is None else STOPPED_BY + result.signal
    refused = int(result.rows[-1]["outer/refused"]) if result.rows else 0
    if refused:
        print(
            f"the last {refused} updates were refused: the meta-gradient was not finite; try a smaller step size, or "
            "see whether labels are from 0 to 1 and numbers of a size of about 1"
        )
    if not quiet:
        print(f"done: {out}. Next: metarl evaluate {typed(out)}")
    return DONE
