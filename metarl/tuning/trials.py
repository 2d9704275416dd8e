"""One trial: a training whose validation scores go to the study, which may stop it early."""

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from metarl import runs
from metarl.evaluation import DivergenceWarning
from metarl.plugins import PluginError
from metarl.spec import Spec
from metarl.trained import Trained
from metarl.training import Experiment, Iteration, Progress, Run, TrainingError, reopen
from metarl.tuning.storage import Store, import_optuna

REASON, PARAMETERS, FOLDER = "reason", "parameters", "folder"
"""Attributes of trials: why one was given up, how many meta-parameters it has, and its run folder's name."""
DIVERGING = ".*(targets seem to be far from 1|training diverges|line search has refused)"
"""The warnings of training that is not learning; see ``metarl.training.progress.Watch``."""
Start = Callable[[], tuple[Run, Progress]]
"""Makes or opens the run of a trial."""
Report = Callable[[float], None]
"""Called with the share of a trial that is done."""


class Objective(NamedTuple):
    """What a search makes large or small: a metric of the validation."""

    metric: str
    up: bool

    def value(self, curve: list[dict[str, Any]]) -> float:
        """Return the best value of a run's validations; nan if none is finite."""
        values = [value for _, value in self.points(curve)]
        return (max if self.up else min)(values) if values else math.nan

    def points(self, curve: list[dict[str, Any]]) -> list[tuple[int, float]]:
        """Return iterations and values of a run's validations that are finite."""
        found = [(int(point["iteration"]), float(point["metrics"][self.metric]["mean"])) for point in curve]
        return [(iteration, value) for iteration, value in found if math.isfinite(value)]


def objective(spec: Spec, steps: int) -> Objective:
    """Return what is searched for: the return, the accuracy, or the error, after the last validation step."""
    if spec.control:
        return Objective(f"return/step_{steps}", True)
    return (
        Objective(f"accuracy/step_{steps}", True)
        if spec.kind == "classification"
        else Objective(f"loss/step_{steps}", False)
    )


class Outcome(NamedTuple):
    """How a trial ended."""

    number: int
    state: str
    """``complete``, ``pruned``, ``failed`` or ``stopped``."""
    value: float
    """The best validation; nan if there was none."""
    told: str = ""
    signal: int | None = None


class Watching:
    """A callback of training that reports validations to the study, and stops where the study prunes the trial."""

    def __init__(self, store: Store, trial: Any, objective: Objective, folder: Path, report: Report) -> None:
        self.store, self.trial, self.objective, self.folder, self.report = store, trial, objective, folder, report
        self.pruned = False
        self.known = set(store.study.trials[trial.number].intermediate_values)

    def __call__(self, iteration: Iteration) -> bool:
        """Return False where the trial is pruned."""
        done, settings = iteration.progress.iteration, iteration.run.settings
        self.report(done / settings.iterations)
        if settings.validate_every is None or done % settings.validate_every:
            return True
        for number, value in self.objective.points(runs.read_curve(self.folder)):
            if number not in self.known:
                self.known.add(number)
                self.trial.report(value, number)
        self.pruned = done < settings.iterations and bool(self.trial.should_prune())
        return not self.pruned


def begun(experiment: Experiment, folder: Path) -> Start:
    """Return what makes the run of a new trial. It raises ValueError for options that do not go together."""

    def start() -> tuple[Run, Progress]:
        run = experiment.start(folder)
        return run, run.first()

    return start


def run_trial(
    store: Store,
    trial: Any,
    start: Start,
    folder: Path,
    objective: Objective,
    report: Report,
) -> Outcome:
    """Train a trial, and tell the study how it ended. A stopped one is left open, to go on with.

    Any exception but those of options and of diverging training is raised, after the trial is told to have failed.
    """
    states = import_optuna().trial.TrialState
    try:
        trained, pruned = _trained(start, partial(Watching, store, trial, objective, folder, report))
    except (ValueError, PluginError, TrainingError) as error:
        if runs.holder(folder) is not None:
            raise
        return given_up(store, trial, " ".join(str(error).split()))
    except Exception:
        store.study.tell(trial.number, state=states.FAIL, skip_if_finished=True)
        raise
    value = objective.value(runs.read_curve(folder))
    if trained is not None and trained.interrupted and not pruned:
        return Outcome(trial.number, "stopped", value, signal=trained.signal)
    if pruned:
        store.study.tell(trial.number, state=states.PRUNED, skip_if_finished=True)
        return Outcome(trial.number, "pruned", value, f"at iteration {trained.iteration if trained else 0}")
    if math.isnan(value):
        return given_up(store, trial, "no validation score is finite")
    # A process that finds the finished run before its trainer has told of it tells the same.
    store.study.tell(trial.number, value, skip_if_finished=True)
    return Outcome(trial.number, "complete", value)


def _trained(start: Start, watch: Callable[[], Watching]) -> tuple[Trained | None, bool]:
    """Train. Return None for what was trained before, by a process that ended before it could tell."""
    try:
        run, progress = start()
    except runs.FinishedError:
        return None, False
    watching = watch()  # once nobody else trains it
    with warnings.catch_warnings():
        # Some choices do not learn: that is what a search finds out. The trial's score tells it.
        warnings.filterwarnings("ignore", DIVERGING, UserWarning)
        warnings.simplefilter("ignore", DivergenceWarning)
        return run.train(progress, callbacks=[watching]), watching.pruned


def given_up(store: Store, trial: Any, reason: str) -> Outcome:
    """Tell the study that a trial could not be trained: it counts as worse than all others."""
    optuna = import_optuna()
    with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process has told
        trial.set_user_attr(REASON, reason)
    store.study.tell(trial.number, state=optuna.trial.TrialState.PRUNED, skip_if_finished=True)
    return Outcome(trial.number, "failed", math.nan, reason)


def reopened(folder: Path) -> Start:
    """Return what goes on with the run of a trial."""
    return lambda: reopen(folder)
