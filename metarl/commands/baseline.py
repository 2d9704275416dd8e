"""``metarl baseline ALGORITHM TASKS``: train a Stable-Baselines3 algorithm on the same tasks, for comparison."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from metarl import control, evaluation, origins, plugins, runs, sb3, training
from metarl.cli import DONE, INTERRUPTED, Execute
from metarl.commands.parsing import made_with, parse
from metarl.files import typed, write_bytes
from metarl.pictures import plotting
from metarl.runs import logger
from metarl.seeding import stream
from metarl.types import Split

SPLIT: Split = "test"
BASELINE_HELP = """Train ppo or sac of Stable-Baselines3 on a family of tasks, and score it on held-out tasks.

A baseline does not adapt. Compare its scores with those of other runs before and after adaptation. 'metarl baseline ppo
TASKS --help' shows all options."""


@dataclasses.dataclass(frozen=True)
class BaselineSettings:
    """Options common to every baseline."""

    timesteps: int = 100_000
    """Total environment steps of training, over all lanes."""
    num_envs: int = 8
    """Number of lanes (parallel environments)."""
    train_tasks: int | None = None
    """Train on this many fixed tasks (default: a new task for every episode)."""
    tasks: int = 40
    """Held-out tasks to score: the same tasks as in 'metarl evaluate'."""
    deterministic: bool = False
    """Score the most likely actions. By default, actions are sampled, as in all other scores."""
    seed: int = 0
    """Seed of all random numbers."""

    def __post_init__(self) -> None:
        for name in ("timesteps", "num_envs", "tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.train_tasks is not None and self.train_tasks < 1:
            raise ValueError(f"train_tasks={self.train_tasks} must be at least 1")


def prepare(arguments: list[str]) -> Execute:
    """``ALGORITHM TASKS [options]``: train an SB3 algorithm on the same tasks, for comparison."""
    if arguments in (["-h"], ["--help"]):
        parse(BaselineSettings, ["--help"], "baseline ALGORITHM TASKS", BASELINE_HELP)
    if len(arguments) < 2 or arguments[0] not in sb3.BASELINES or arguments[1].startswith("-"):
        raise ValueError(
            f"baseline needs {' or '.join(sb3.BASELINES)}, and tasks, e.g. 'metarl baseline ppo point-navigation'"
        )
    name, tasks_name, options = arguments[0], arguments[1], arguments[2:]
    make = made_with("tasks", options, f"baseline {name} {tasks_name}")
    family = training.source("tasks", tasks_name, make).target
    kind = _options(sb3.BASELINES[name], family)
    chosen = parse(kind, options, f"baseline {name} {tasks_name}", BASELINE_HELP)
    tasks = plugins.absolute_paths(plugins.checked_options(chosen.tasks))
    chosen = dataclasses.replace(chosen, tasks=tasks)
    out = chosen.out or Path("runs") / f"{name}-{tasks_name}-{chosen.settings.seed}".replace(":", ".")
    out = out.absolute()  # absolute, because families may change the working directory
    model = _model(chosen)
    held = runs.create(out, _record(name, tasks_name, chosen), chosen.overwrite)

    def execute() -> int:
        with held:
            return trained()

    def trained() -> int:
        interrupted = sb3.train(model, chosen.settings.timesteps, out, chosen.quiet)
        write_bytes(out / runs.MODEL, sb3.saved(model))
        runs.settle(out)
        if interrupted:
            print(f"stopped after {model.num_timesteps} steps; {out / runs.MODEL} is saved but not scored")
            return INTERRUPTED
        _score(model, chosen, out)
        return DONE

    return execute


def _options(baseline: Any, family: Any) -> type[Any]:
    return dataclasses.make_dataclass(
        "Baseline",
        [
            ("settings", OmitArgPrefixes[BaselineSettings], BaselineSettings()),
            ("out", Annotated[Path | None, arg(help="Run folder (default: runs/ALGORITHM-TASKS-SEED).")], None),
            ("overwrite", Annotated[bool, arg(help="Replace an existing run in that folder.")], False),
            ("quiet", Annotated[bool, arg(help="Print no table.")], False),
            ("algorithm", OmitArgPrefixes[type(baseline)], baseline),  # type: ignore[misc]
            ("tasks", type(family), family),
        ],
        frozen=True,
    )


def _model(chosen: Any) -> Any:
    """Return a new model of Stable-Baselines3. Raises ValueError for tasks that cannot be sampled or acted in."""
    settings, tasks = chosen.settings, None
    splits: tuple[Split, ...] = ("train", SPLIT)
    for split in splits:
        control.check_tasks(chosen.tasks, split)
    if settings.train_tasks is not None:
        tasks = chosen.tasks.sample(settings.train_tasks, "train", stream(settings.seed, "tasks/train"))
    env = sb3.TaskVecEnv(chosen.tasks, settings.num_envs, tasks, seed=settings.seed)
    return chosen.algorithm.build(env, settings.seed, "cpu")


def _record(name: str, tasks_name: str, chosen: Any) -> dict[str, Any]:
    definition = origins.defined(chosen.tasks, tasks_name)
    return {
        "baseline": name,
        "algorithm": runs.describe(chosen.algorithm, f"metarl.sb3:{type(chosen.algorithm).__name__}"),
        "tasks": runs.describe(chosen.tasks, tasks_name),
        "outer": {},
        "settings": dataclasses.asdict(chosen.settings),
        **({} if definition is None else {origins.DEFINITIONS: {"tasks": definition}}),
    }


def _score(model: Any, chosen: Any, out: Path) -> None:
    """Score the model on the tasks of ``metarl evaluate``, and write the same files."""
    settings = chosen.settings
    tasks = chosen.tasks.sample(settings.tasks, SPLIT, stream(settings.seed, f"tasks/{SPLIT}"))
    with logger.open_bar("scoring the model") as progress:
        scores = sb3.scores(model, chosen.tasks, tasks, settings.seed, settings.deterministic, progress)
    metrics = {f"{name}/step_0": evaluation.summary(values) for name, values in scores.items()}
    asked = {"tasks": settings.tasks, "split": SPLIT, "seed": settings.seed, "steps": 0}
    kept = {"deterministic": settings.deterministic, "timesteps": model.num_timesteps, "versions": runs.versions()}
    record = {"metrics": metrics, **asked, **kept}
    runs.write_record(out / runs.EVALUATION, record)
    print(evaluation.table(metrics))
    print(f"wrote {plotting.adaptation_curve({out.resolve().name: record}, out / 'adaptation.png')}")
    print(f"done: {out}. Next: metarl plot {typed(out)} OTHER_RUN")
