"""Train, resume, evaluate and plot: each takes a command line and returns what to execute, or raises ValueError."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from gymnasium.spaces import Space
from torch import Tensor
from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from metarl import comparison, evaluation, plotting, runs, training
from metarl.cli import DONE, INTERRUPTED, Execute
from metarl.grouping import Classes
from metarl.logger import read_progress
from metarl.networks import Architecture
from metarl.outer import OUTER_UPDATES, default_outer
from metarl.training import Device, Result, Settings, Source
from metarl.types import Learner, Split

EVALUATED = ("tasks", "split", "seed", "steps", "checkpoint", "schedule", "episodes")
"""What evaluation.json repeats of the request."""
Update = Literal["trpo", "promp", "adam", "sgd"]

TRAIN_HELP = """Meta-train an algorithm on a family of tasks; 'metarl list' shows both.

Below are the options of every run. Name both, 'metarl train ALGORITHM TASKS --help', for the algorithm's, the tasks'
and the outer update's, too."""

registry = ConstructorRegistry()


@registry.primitive_rule
def _architecture(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Architecture] | None:
    """On the command line an architecture is a name: functions are given as module:attribute."""
    if info.type != Architecture:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str) or callable(value),
        str_from_instance=lambda value: [str(value)],
    )


@registry.primitive_rule
def _held(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Spaces, tensors and splits of classes have no form on the command line: they stay as the family has them."""
    kind: Any = info.type
    if not (kind == Classes | None or (isinstance(kind, type) and issubclass(kind, Space | Tensor))):
        return None

    def refuse(words: list[str]) -> Any:
        raise ValueError("this cannot be given on the command line; bind a family to a name, pass 'module:name'")

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{fixed}",
        instance_from_str=refuse,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value) if isinstance(value, Space) else type(value).__name__],
    )


def parse(kind: Any, arguments: list[str], command: str, description: str, partial: bool = False) -> Any:
    """Parse a command line into a dataclass, if ``partial`` leaving out options that it does not have.

    Raises ValueError, in one line, for a wrong one; --help exits.
    """
    said = io.StringIO()
    told: dict[str, Any] = {"prog": f"metarl {command}", "description": description, "registry": registry}
    try:
        with contextlib.redirect_stderr(said):
            if partial:
                return tyro.cli(kind, args=arguments, return_unknown_args=True, **told)[0]
            return tyro.cli(kind, args=arguments, **told)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_message(said.getvalue())}; 'metarl {command} --help' tells the options") from None


def _message(box: str) -> str:
    """Return the message in tyro's box, without the frame, the title and the advice under it.

    Where the terminal cannot draw it, rules of hyphens stand between the three.
    """
    sections: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))):
        if line.strip("─-"):
            sections[-1].append(line)
        elif line:
            sections.append([])
    framed = "╭" in box
    told = " ".join(sections[0] if framed or len(sections) == 1 else sections[1]) or box.strip()
    return re.sub(r"^Error parsing (?!--)[\w.]+: ", "", told)  # a dataclass's own error needs no name before it


def train(arguments: list[str]) -> Execute:
    """``ALGORITHM TASKS [options]``: meta-train into a run folder."""
    if arguments in (["-h"], ["--help"]):
        parse(Settings, ["--help"], "train ALGORITHM TASKS", TRAIN_HELP)
    if len(arguments) < 2 or arguments[0].startswith("-") or arguments[1].startswith("-"):
        raise ValueError(
            "train needs an algorithm and tasks, e.g. 'metarl train maml point-navigation'; 'metarl list' shows them"
        )
    algorithm_name, tasks_name, options = arguments[0], arguments[1], arguments[2:]
    algorithm = training.source("algorithms", algorithm_name).target
    tasks = training.source("tasks", tasks_name).target
    update = _chosen_update(options, default_outer(algorithm, tasks.spec))
    chosen = parse(
        _options(algorithm, tasks, update),
        options,
        f"train {algorithm_name} {tasks_name}",
        f"{_first_line(algorithm)}\n\n{_first_line(tasks)}",
    )
    out = chosen.out or Path("runs") / f"{algorithm_name}-{tasks_name}-{chosen.settings.seed}".replace(":", ".")
    sources = Source(chosen.algorithm, algorithm_name), Source(chosen.tasks, tasks_name)
    run = training.start(*sources, chosen.update, chosen.settings, out, chosen.overwrite)
    return lambda: _finish(run.train(run.first(), chosen.quiet), out, chosen.quiet)


def _first_line(target: Any) -> str:
    return (type(target).__doc__ or "").strip().split("\n")[0]


def _chosen_update(options: list[str], default: Any) -> Any:
    """Read --outer ahead of the rest: it decides which options there are."""
    name = None
    for index, word in enumerate(options):
        if word == "--outer" and index + 1 < len(options):
            name = options[index + 1]
        elif word.startswith("--outer="):
            name = word.removeprefix("--outer=")
    if name is None:
        return default
    if name not in OUTER_UPDATES:
        raise ValueError(f"unknown outer update {name!r}; expected {', '.join(OUTER_UPDATES)}")
    return OUTER_UPDATES[name]()


def _options(algorithm: Any, tasks: Any, update: Any) -> type[Any]:
    """Join the options of a run into one dataclass, which tyro turns into a command line."""
    name: Any = next(name for name, kind in OUTER_UPDATES.items() if isinstance(update, kind))
    return dataclasses.make_dataclass(
        "Train",
        [
            ("outer", Annotated[Update, arg(help="How the meta-parameters move.")], name),
            ("settings", OmitArgPrefixes[Settings], training.default_settings(tasks.spec)),
            ("out", Annotated[Path | None, arg(help="Run folder (default: runs/ALGORITHM-TASKS-SEED).")], None),
            ("overwrite", Annotated[bool, arg(help="Replace the run that the folder holds.")], False),
            ("quiet", Annotated[bool, arg(help="No table and no progress bar.")], False),
            ("algorithm", type(algorithm), algorithm),
            ("tasks", type(tasks), tasks),
            ("update", Annotated[type(update), arg(name="outer")], update),
        ],
        frozen=True,
    )


def _finish(result: Result, out: Path, quiet: bool) -> int:
    if result.interrupted:
        print(f"stopped; the checkpoint is saved. Go on with: metarl resume {out}")
        return INTERRUPTED
    refused = int(result.rows[-1]["outer/refused"]) if result.rows else 0
    if refused:
        print(f"the last {refused} updates were refused: the meta-gradient was not finite; try a smaller step size")
    if not quiet:
        print(f"done: {out}. Next: metarl evaluate {out}")
    return DONE


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Options of ``metarl resume``."""

    run: Positional[Path]
    """Run folder."""
    iterations: int | None = None
    """Go on to this many iterations instead of those that the run was started with."""
    quiet: bool = False
    """No table and no progress bar."""


def resume(arguments: list[str]) -> Execute:
    """``RUN``: go on exactly where a run stopped."""
    chosen = parse(ResumeOptions, arguments, "resume", "Go on exactly where a run stopped.")
    run, progress = training.reopen(chosen.run, chosen.iterations)
    return lambda: _finish(run.train(progress, chosen.quiet), chosen.run, chosen.quiet)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``metarl evaluate``."""

    run: Positional[Path]
    """Run folder."""
    tasks: int = 40
    """Held-out tasks to adapt to."""
    steps: int | None = None
    """Adaptation steps; scores are given after 0, 1, ..., this many (default: 3, or 1 where a memory is shown
    examples)."""
    split: Split = "test"
    """Which tasks."""
    seed: int = 0
    """Decides the tasks, and the random numbers of adaptation."""
    checkpoint: Literal["last", "best"] = "last"
    """The last parameters, or those of the best training score (the MAML paper's protocol)."""
    schedule: tuple[float, ...] | None = None
    """Factors of the inner step size at step 1, 2, ...; by default the run's own."""
    episodes: int | None = None
    """Episodes before each adaptation step (default: the run's own)."""
    oracle: Path | None = None
    """Run of an algorithm that knows each task, evaluated on the same ones, to tell with --pretrained how much of the
    gap between the two is closed."""
    pretrained: Path | None = None
    """Run of a network trained on all tasks at once, evaluated on the same ones."""
    device: Device = "auto"
    """Where to run."""

    def __post_init__(self) -> None:
        if (self.oracle is None) != (self.pretrained is None):
            raise ValueError("--oracle and --pretrained go together: the gap is the one between them")
        if self.tasks < 1:
            raise ValueError(f"--tasks {self.tasks}: expected at least 1")
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"--steps {self.steps}: expected at least 0")


EVALUATE_HELP = """Adapt to held-out tasks and score every step on the way.

Options of the run's algorithm and tasks can be changed for it: --algorithm.step-size 0.05, --tasks.shots 5."""


def evaluate(arguments: list[str]) -> Execute:
    """``RUN``: scores after 0..k adaptation steps on held-out tasks."""
    chosen, run = _evaluated(arguments)
    path = chosen.run / (runs.CHECKPOINT if chosen.checkpoint == "last" else runs.BEST)
    progress, config = run.restore(path), runs.read_config(chosen.run)
    asked = {name: getattr(chosen, name) for name in EVALUATED}
    asked["algorithm"] = runs.describe(run.algorithm, config["algorithm"]["reference"])
    asked["family"] = runs.describe(run.family, config["tasks"]["reference"])
    compared = [
        comparison.comparable(folder, asked, steps)
        for folder, steps in ((chosen.oracle, 0), (chosen.pretrained, asked["steps"]))
        if folder is not None
    ]

    def execute() -> int:
        sizes = chosen.tasks, asked["steps"]
        found = evaluation.evaluate(
            run.learner, progress.params, run.family, *sizes, chosen.split, chosen.seed, run.device
        )
        kept = {"batch_norm": run.learner.batch_norm, "iteration": progress.iteration, "versions": runs.versions()}
        record = {"metrics": found.metrics, **asked, **kept}
        print(evaluation.table(found.metrics, run.learner.batch_norm))
        if compared:
            gap = comparison.gap_closed(found.metrics, *compared)
            record |= {"gap_closed": gap, "oracle": str(chosen.oracle), "pretrained": str(chosen.pretrained)}
            print(comparison.table(gap))
        runs.write_json(chosen.run / runs.EVALUATION, record)
        for picture in _pictures(chosen.run, run.family, found, record):
            print(f"wrote {picture}")
        return DONE

    return execute


def _evaluated(arguments: list[str]) -> tuple[EvaluateOptions, training.Run]:
    """Read what is asked for, and rebuild the run with the options that it is evaluated with."""
    changes = any(word.startswith(("--algorithm.", "--tasks.")) for word in arguments)
    chosen = parse(EvaluateOptions, arguments, "evaluate", EVALUATE_HELP, partial=changes)
    algorithm, family, outer, settings = training.recorded(chosen.run, chosen.device)
    if changes:
        fields: list[Any] = [
            ("request", OmitArgPrefixes[EvaluateOptions]),
            ("algorithm", type(algorithm), algorithm),
            ("family", Annotated[type(family), arg(name="tasks")], family),
        ]
        both = parse(dataclasses.make_dataclass("Evaluate", fields), arguments, "evaluate", EVALUATE_HELP)
        algorithm, family = both.algorithm, both.family
    algorithm = _with_option(algorithm, "schedule", chosen.schedule)
    family = family if chosen.episodes is None else _with_episodes(family, chosen.episodes)
    run = training.Run(algorithm, family, outer, settings, chosen.run, chosen.split)
    return dataclasses.replace(chosen, steps=_steps(run.learner) if chosen.steps is None else chosen.steps), run


def _steps(learner: Learner) -> int:
    """Return how many steps to evaluate: a memory is made for one look at the support items, not for more."""
    return 1 if learner.replay is not None and not learner.spec.control else 3


def _with_option(target: Any, name: str, value: Any) -> Any:
    if value is None:
        return target
    if not hasattr(target, name):
        raise ValueError(f"{type(target).__name__} has no option {name}, so --{name} cannot be given")
    return dataclasses.replace(target, **{name: value})


def _with_episodes(family: Any, episodes: int) -> Any:
    sampling = getattr(family, "sampling", None)
    if sampling is None:
        raise ValueError(f"{type(family).__name__} has no episodes, so --episodes cannot be given")
    return dataclasses.replace(family, sampling=dataclasses.replace(sampling, episodes=episodes))


def _pictures(folder: Path, family: Any, found: evaluation.Evaluation, record: dict[str, Any]) -> list[Path]:
    """Draw the adaptation curve, and whatever picture of adaptation the family itself offers."""
    curve = plotting.adaptation_curve({folder.resolve().name: record}, folder / "adaptation.png")
    draw = getattr(family, "picture", None)
    return [curve] if draw is None else [curve, draw(found.tasks, found.queries, folder / "tasks.png")]


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Options of ``metarl plot``."""

    runs: Positional[tuple[Path, ...]]
    """Run folders; several are drawn into one picture."""
    out: Path | None = None
    """Folder for the pictures (default: the first run's)."""


def plot(arguments: list[str]) -> Execute:
    """``RUN [RUN ...]``: learning curves, and adaptation curves where there are evaluations."""
    chosen = parse(PlotOptions, arguments, "plot", "Draw learning curves, and adaptation curves of evaluated runs.")
    if not chosen.runs:
        raise ValueError("plot needs at least one run folder")
    folders = _labelled(chosen.runs)
    progress = {label: _progress(folder) for label, folder in folders.items()}
    evaluated = {
        label: runs.read_evaluation(folder) for label, folder in folders.items() if (folder / runs.EVALUATION).exists()
    }
    out = chosen.out or chosen.runs[0]
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder for the pictures")

    def execute() -> int:
        out.mkdir(parents=True, exist_ok=True)
        print(f"wrote {plotting.learning_curve(progress, out / 'learning.png')}")
        if evaluated:
            print(f"wrote {plotting.adaptation_curve(evaluated, out / 'adaptation.png')}")
        return DONE

    return execute


def _labelled(folders: Sequence[Path]) -> dict[str, Path]:
    """Run folders by their names; where two have the same one, by their paths."""
    named = {folder.resolve().name: folder for folder in folders}
    return named if len(named) == len(folders) else {str(folder): folder for folder in folders}


def _progress(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's progress.csv. Raises RunError where the folder holds no run, or one without an iteration."""
    runs.read_config(folder)
    rows = read_progress(folder / runs.PROGRESS)
    if not rows:
        raise runs.RunError(f"{folder} has nothing to draw yet: {runs.PROGRESS} holds no iteration")
    return rows
