"""Options common to every training run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any, Literal, cast

from metarl import plugins
from metarl.spec import Spec
from metarl.speed import Device, check_device

BY_KIND = cast(int, None)
"""An option whose default depends on the kind of tasks; a run's own settings hold a number in its place."""
CONTROL = {"iterations": 500, "meta_batch_size": 40, "checkpoint_every": 10, "log_every": 1}
EXAMPLES = {"iterations": 20_000, "meta_batch_size": 25, "checkpoint_every": 1000, "log_every": 100}


Schedules = Mapping[str, plugins.Schedule | str]
"""Schedules by what they change: ``metarl.Schedule``, or text such as ``5..40``, of which one is made."""
SCHEDULED = ("algorithm", "tasks", "outer")


@dataclass(frozen=True)
class Settings:
    """Options common to every training run."""

    iterations: int = BY_KIND
    """Meta-iterations. Each makes one outer update. By default 500 for control, and 20,000 for labelled examples, whose
    iterations are short."""
    meta_batch_size: int = BY_KIND
    """Tasks sampled for each outer update. By default 40, and 25 for labelled examples."""
    seed: int = 0
    """Seed of all random numbers."""
    device: Device = "auto"
    """Device for networks and data: auto, cpu, cuda, or one GPU of several, such as cuda:1. Auto uses cuda if it is
    available."""
    compile: bool = False
    """Compile iterations with torch.compile. Compiling takes up to a minute at the start. With labelled examples, the
    whole iteration is compiled, which makes small networks several times faster. For control, the steps of
    environments written in PyTorch are compiled and, on a GPU, TRPO's update. If compiling fails, a warning gives the
    reason and training continues uncompiled. Do not change options of the tasks, the algorithm or the outer update
    during training: compiled code does not see the change. Compiled results are compared with uncompiled ones at
    iterations 1, 2, 4, 8, ... and every 200 (control: every 50), so such a change is found, but not at once."""
    checkpoint_every: int = BY_KIND
    """Iterations between checkpoints. The last iteration always writes one. By default 10, and 1000 for labelled
    examples."""
    log_every: int = BY_KIND
    """Iterations between rows of the logs. By default 1, and 100 for labelled examples. A row holds the metrics of one
    iteration, not a mean over several. The last iteration is always logged. The best checkpoint is chosen among logged
    iterations."""
    validate_every: int | None = None
    """Iterations between evaluations on held-out validation tasks. The parameters with the best score after the last
    adaptation step are kept; use them with --checkpoint validated. By default, there is no validation."""
    validation_tasks: int = 40
    """Number of tasks in each validation."""
    validation_steps: int = 3
    """Adaptation steps in each validation."""
    schedules: Schedules = field(default_factory=dict)
    """Numbers that change during training: meta_batch_size, or a field of the algorithm, the tasks or the outer update,
    such as meta-batch-size=5..40 or tasks.goal-range=0.1..0.5@0.8. 5..40 is a straight line over the whole training,
    5..40@0.5 one over its first half, and 4/8@0.5 jumps from 4 to 8 in the middle. Evaluation and validation use the
    tasks' own options. Compiled runs need schedules of few values, such as 4/8@0.5: each is compiled anew."""
    step_timeout: float | None = 600.0
    """Seconds that one step, reset or draw of a task family may take; None: no limit. Training stops with an error that
    names the task, and the last checkpoint is intact. Native code that never returns is stopped in worker processes
    only."""
    when_diverging: Literal["warn", "stop"] = "warn"
    """What to do where training is not learning: losses beyond 1e6, or a line search that refuses every step. warn:
    warn once and go on; stop: stop with an error, so that the last checkpoint is one from before."""
    exact_sums: bool = False
    """Compute task by task, and add the tasks' terms up in their order, on one thread. Then any number of ranks
    (torchrun), one included, is bit for bit the same run on machines of the same kind. Otherwise it is the same but for
    rounding. It is slower, and every rank runs the episodes of all tasks."""
    rank_timeout: float = 1800.0
    """Seconds that a rank of a run in several processes waits for the others before it gives up."""
    wandb: str | None = None
    """Weights & Biases project that the logs are also sent to; needs pip install "metarl-toolkit[wandb]"."""

    mlflow: str | None = None
    """MLflow experiment that the logs are also sent to, at MLFLOW_TRACKING_URI; needs
    pip install "metarl-toolkit[mlflow]"."""

    def __post_init__(self) -> None:
        for name, value in plugins.checked_fields(self).items():
            object.__setattr__(self, name, value)  # NumPy's numbers, as Python's
        schedules = plugins.checked_schedules(self.schedules, SCHEDULED, ("meta_batch_size",))
        object.__setattr__(self, "schedules", schedules)
        check_device(self.device)
        for name in ("iterations", "meta_batch_size", "checkpoint_every", "log_every", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.step_timeout is not None and not self.step_timeout > 0:
            raise ValueError(f"step_timeout={self.step_timeout}: expected more than 0 seconds, or None")
        if not 0 < self.rank_timeout < inf:
            raise ValueError(f"rank_timeout={self.rank_timeout}: expected a number of seconds above 0")
        if self.exact_sums and self.compile:
            raise ValueError("exact_sums computes task by task, and compile does not: leave one of them out")
        if self.validation_tasks < 1 or self.validation_steps < 0:
            raise ValueError(
                f"validation_tasks={self.validation_tasks} must be at least 1, "
                f"validation_steps={self.validation_steps} at least 0"
            )

    def record(self) -> dict[str, Any]:
        """Return the settings as plain data; ``Settings(**record)`` makes them again."""
        record = {item.name: getattr(self, item.name) for item in fields(self)}
        del record["schedules"]
        told = {name: str(schedule) for name, schedule in self.schedules.items()}
        return record | ({"schedules": told} if told else {})

    def filled(self, spec: Spec) -> "Settings":
        """Return settings in which nothing is left open: what is None is as the kind of tasks needs it."""
        defaults = CONTROL if spec.control else EXAMPLES
        changes: dict[str, Any] = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **changes)


def scheduled(settings: Settings, parts: Mapping[str, Any], share: float) -> dict[str, plugins.Value]:
    """Return the numbers of a run's schedules at a share of its training, by name.

    ``parts`` are algorithm, tasks and outer update by these names. Raises ValueError for fields that are no numbers.
    """
    found = {}
    for name, schedule in settings.schedules.items():
        assert isinstance(schedule, plugins.Schedule)  # as __post_init__ has made it
        part, dot, field = name.partition(".")
        holder, number = (parts[part], field) if dot else (settings, name)
        try:
            found[name] = plugins.fitting(holder, number, schedule.at(share))
        except ValueError as error:
            raise ValueError(f"schedules[{name!r}]: {error}") from None
    return found


def with_scheduled(
    settings: Settings, parts: Mapping[str, Any], values: Mapping[str, plugins.Value]
) -> tuple[Settings, dict[str, Any]]:
    """Return settings without schedules, and the parts, with the numbers of ``scheduled``. Raises ValueError."""
    own = {name: value for name, value in values.items() if "." not in name}
    changed = dict(parts)
    for part, target in parts.items():
        of_part = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{part}.")}
        try:
            changed[part] = plugins.with_values(target, of_part)
        except ValueError as error:
            raise ValueError(f"schedules: {part} cannot take {of_part}: {error}") from None
    return replace(plugins.with_values(settings, own), schedules={}), changed


def default_settings(spec: Spec) -> Settings:
    """Return the settings of a family where none are given."""
    return Settings().filled(spec)
