"""The search: ask the study for options, train them, tell it what came of them, until the budget is used up."""

import csv
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from metarl import runs
from metarl.files import expanded, write_bytes
from metarl.plugins import PluginError
from metarl.runs import logger
from metarl.seeding import stream
from metarl.training import Experiment
from metarl.tuning.budget import Budget, parse_budget
from metarl.tuning.space import Space, applied, dotted, space_for
from metarl.tuning.storage import JOURNAL, Store, StudyError, import_optuna, opened, quiet_optuna
from metarl.tuning.trials import (
    FOLDER,
    PARAMETERS,
    REASON,
    Objective,
    Outcome,
    begun,
    given_up,
    objective,
    reopened,
    run_trial,
)

Pruner = Literal["median", "halving", "none"]
TRIALS = "trials.csv"
VALIDATIONS = 10
"""How often a trial is validated, where the settings do not say."""
WARM_UP = 0.2
"""Share of a trial before which the median ends none: the first validations tell little."""
MOST_REFUSED, MOST_FAILED = 300, 10
"""Proposals in a row that may be too large, or the same as before, and trials in a row that may fail with none before
them that did not."""
_OPTIONS = "options"
_TOO_LARGE, _TRIED = "more parameters than allowed", "tried before"
"""Reasons why proposals are not trained; these are no trials."""


@dataclass(frozen=True)
class Search:
    """How to search."""

    budget: str = "40"
    """Trials of the study in all, such as 40, or for how long this process begins new ones: 90m or 2h."""
    pruner: Pruner = "median"
    """Which trials end early. median: those whose best validation is worse than the median of the others at the same
    iteration, after a fifth of its training. halving: successive halving, which ends more of them. none: none."""
    storage: str | None = None
    """URL of a database for the study, such as sqlite:///study.db, or a file for Optuna's journal. By default
    study.journal in the folder --out. Processes, also on several machines, that name the same one share the study."""
    max_parameters: int | None = None
    """Most meta-parameters that a trial may have. Larger proposals are not trained, and do not count as trials.
    Nor do those that were tried before."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", str(self.budget))  # a number of trials is as good
        parse_budget(self.budget)
        if self.pruner not in get_args(Pruner):
            raise ValueError(f"pruner={self.pruner!r}: expected one of {', '.join(get_args(Pruner))}")
        if self.max_parameters is not None and self.max_parameters < 1:
            raise ValueError(f"max_parameters={self.max_parameters} must be at least 1")


class Tuned(NamedTuple):
    """What a search has found."""

    best: Experiment | None
    """The experiment of the best trial; None if no trial has ended yet."""
    value: float
    """Its best validation score."""
    options: Mapping[str, Mapping[str, Any]]
    """The options that the search chose for it, by part and field."""
    objective: Objective
    trials: Sequence[Mapping[str, Any]]
    """A row for each trial: number, state, value, parameters, and options by their dotted names."""
    folder: Path
    signal: int | None = None
    """The signal that stopped the call, such as SIGINT for Ctrl-C; None if it was none."""


@dataclass
class _Course:
    """A search under way."""

    store: Store
    experiment: Experiment
    space: Space
    search: Search
    objective: Objective
    folder: Path
    say: Callable[[str], None]
    began: float = field(default_factory=lambda: time.monotonic())

    @property
    def budget(self) -> Budget:
        return parse_budget(self.search.budget)

    def used(self) -> float:
        """Return how much of the budget is used: trials that others are at count, too large ones do not."""
        return self.budget.share(sum(map(self.counts, self.store.study.trials)), time.monotonic() - self.began)

    def counts(self, trial: Any) -> bool:
        if trial.state.name == "RUNNING":
            return not self.is_left(trial)
        return trial.user_attrs.get(REASON) not in (_TOO_LARGE, _TRIED)

    def is_left(self, trial: Any) -> bool:
        """Return whether a trial was begun in this folder by a process that no longer runs."""
        place = self.place(trial.number)
        return (place / runs.CONFIG).exists() and runs.holder(place) is None

    def place(self, number: int) -> Path:
        return self.folder / f"trial-{number:04}"


def tune(
    experiment: Experiment,
    space: str | Mapping[str, Any] = "default",
    out: Path | str | None = None,
    search: Search | None = None,
    quiet: bool = True,
) -> Tuned:
    """Search for the options of an experiment that validate best, with Optuna.

    ``space`` is the name of an installed space, a TOML file, or ranges by part and field, such as
    ``{"algorithm": {"step_size": {"low": 0.01, "high": 1.0, "log": True}}}``. The folder ``out``, by default
    ``runs/tune-ALGORITHM-TASKS``, holds a run folder for each trial, the study, and ``trials.csv``. Where it holds this
    study already, the search goes on, and so does a trial that was stopped.

    The score is the best validation of a trial after the last adaptation step: the return, the accuracy, or the error.
    Without ``validate_every`` in the settings, ten validations are made.

    Raises:
        ValueError: Optuna is missing, an option or the space is wrong, or the storage cannot be used (StudyError).
        PluginError: there is no such space, or the space has an option that does not exist.
        RolloutError: an environment broke.
    """
    return prepared(experiment, space, out, search or Search(), quiet=quiet)()


def prepared(
    experiment: Experiment,
    space: str | Mapping[str, Any],
    out: Path | str | None,
    search: Search,
    fixed: Sequence[str] = (),
    quiet: bool = True,
) -> Callable[[], Tuned]:
    """Check a search, and open its study. Return what searches. Raises as ``tune`` does.

    ``fixed`` are the dotted names of options that are left out of the space, such as ``algorithm.step_size``.
    """
    import_optuna()
    experiment = _validated(experiment)
    chosen = space_for(experiment, space, fixed)
    aim = objective(experiment.tasks.spec, experiment.settings.validation_steps)
    name = "-".join(("tune", *experiment.names[:2])).replace(":", ".")
    folder = expanded(out if out is not None else Path("runs") / name).absolute()
    if (folder / runs.CONFIG).exists():
        raise StudyError(f"{folder} contains a run: a search needs a folder of its own; choose another with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot create the folder {folder}: {error.strerror}") from error
    told = {"max_parameters": search.max_parameters, "metric": aim.metric}
    with quiet_optuna():
        store = opened(experiment, chosen, aim.up, search.storage or folder / JOURNAL, told)
    say: Callable[[str], None] = (lambda text: None) if quiet else print
    course = _Course(store, experiment, chosen, search, aim, folder, say)
    return lambda: _searched(course, quiet)


def _validated(experiment: Experiment) -> Experiment:
    """Return an experiment that is validated. Raises ValueError where that happens after its last iteration."""
    settings = experiment.settings
    if settings.validate_every is None:
        settings = replace(settings, validate_every=max(1, settings.iterations // VALIDATIONS))
    if settings.validate_every is None or settings.validate_every > settings.iterations:
        raise ValueError(
            f"validate_every={settings.validate_every} is beyond the {settings.iterations} iterations of a trial, "
            "which is judged by its validations"
        )
    return replace(experiment, settings=settings)


def _searched(course: _Course, quiet: bool) -> Tuned:
    failed = 0
    with quiet_optuna(), _bar(course, quiet) as report:
        course.store.study.pruner = _pruner(course)
        while (outcome := _next(course, report)) is not None:
            _tell(course, outcome)
            if outcome.state == "stopped":
                return _found(course, outcome.signal or 0)
            failed = failed + 1 if outcome.state == "failed" else 0
            if failed == MOST_FAILED and not _complete(course):
                raise StudyError(f"{failed} trials in a row could not be trained; the last one: {outcome.told}")
    return _found(course, None)


@contextmanager
def _bar(course: _Course, quiet: bool) -> Iterator[Callable[[float], None]]:
    if quiet:
        yield lambda share: None
        return
    with logger.open_bar("trials") as show:
        yield _shown(course, show)


def _shown(course: _Course, show: Callable[[float], None]) -> Callable[[float], None]:
    """Return what shows the share of the search that is done, given that of the trial under way."""
    used, before = 0.0, 1.0

    def report(share: float) -> None:
        nonlocal used, before
        if share <= before:  # another trial has begun; asking the study in each iteration would take long
            used = course.used()
        before = share
        # A trial under way counts as a whole one: what it has not done yet is taken off.
        show(used - (0.0 if course.budget.trials is None else (1 - share) / course.budget.trials))

    return report


def _next(course: _Course, report: Callable[[float], None]) -> Outcome | None:
    """Go on with a trial that was left, or else begin a new one; None where the budget is used up."""
    for trial in course.store.study.get_trials(states=(import_optuna().trial.TrialState.RUNNING,)):
        if course.is_left(trial):
            place = course.place(trial.number)
            course.say(f"trial {trial.number}: goes on")
            try:
                return run_trial(
                    course.store, course.store.trial(trial.number), reopened(place), place, course.objective, report
                )
            except runs.RunError:
                if runs.holder(place) is None:
                    raise
                continue  # another process was faster
    return None if course.used() >= 1 else _begun(course, report)


def _begun(course: _Course, report: Callable[[float], None]) -> Outcome | None:
    """Begin a new trial; None where nothing new is left to try."""
    refused = set[str]()
    for _ in range(MOST_REFUSED):
        trial, values = _asked(course)
        try:
            tried = applied(course.experiment, values, course.space.where)
            size = _size(tried)
        except (ValueError, PluginError) as error:
            return given_up(course.store, trial, " ".join(str(error).split()))
        trial.set_user_attr(PARAMETERS, size)
        if (reason := _refused(course, trial, size)) is not None:
            refused.add(reason)
            continue
        place = course.place(trial.number)
        trial.set_user_attr(FOLDER, place.name)
        return run_trial(course.store, trial, begun(tried, place), place, course.objective, report)
    if refused == {_TOO_LARGE}:
        raise StudyError(
            f"{MOST_REFUSED} proposals in a row had more than {course.search.max_parameters} parameters: allow more, "
            "or change the space"
        )
    course.say(f"the last {MOST_REFUSED} proposals were tried before: the search ends")
    return None


def _refused(course: _Course, trial: Any, size: int) -> str | None:
    """Tell the study of a proposal that is not trained, and return why. Return None for one that is to be trained."""
    twin = next((one for one in course.store.study.trials if one.number < trial.number and _is_twin(one, trial)), None)
    if course.search.max_parameters is not None and size > course.search.max_parameters:
        given_up(course.store, trial, _TOO_LARGE)
        return _TOO_LARGE
    if twin is None:
        return None
    if twin.value is None:
        given_up(course.store, trial, _TRIED)
    else:
        trial.set_user_attr(REASON, _TRIED)
        course.store.study.tell(trial.number, twin.value)
    return _TRIED


def _is_twin(one: Any, trial: Any) -> bool:
    """Return whether a trial that has ended, or is under way, has the options of another."""
    return FOLDER in one.user_attrs and one.params == trial.params


def _asked(course: _Course) -> tuple[Any, dict[str, Any]]:
    """Ask for a trial, and draw its options by the seed of the settings and its number."""
    optuna, study = import_optuna(), course.store.study
    share = course.used()
    trial = study.ask()
    seed = stream(course.experiment.settings.seed, f"trials/{trial.number}").initial_seed() % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # before Optuna 5, it says so
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    values = course.space.draw(trial, share)
    trial.set_user_attr(_OPTIONS, values)
    return trial, values


def _size(experiment: Experiment) -> int:
    learner = experiment.algorithm.build(experiment.tasks.spec)
    return sum(value.numel() for value in learner.init(stream(0, "initialisation")).values())


def _pruner(course: _Course) -> Any:
    pruners, settings = import_optuna().pruners, course.experiment.settings
    if course.search.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=int(settings.iterations * WARM_UP))
    if course.search.pruner == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=settings.validate_every, reduction_factor=3)
    return pruners.NopPruner()


def _complete(course: _Course) -> list[Any]:
    """Return the trials that were trained to their end, the best ones first."""
    found = course.store.study.get_trials(states=(import_optuna().trial.TrialState.COMPLETE,))
    trained = [trial for trial in found if FOLDER in trial.user_attrs]
    return sorted(trained, key=lambda trial: -trial.value if course.objective.up else trial.value)


def _tell(course: _Course, outcome: Outcome) -> None:
    write_trials(course)
    shown = "" if math.isnan(outcome.value) else f" {course.objective.metric} {outcome.value:.4g}"
    best = f" (best: {done[0].value:.4g})" if (done := _complete(course)) else ""
    course.say(f"trial {outcome.number}: {outcome.state}{shown}{best}" + (f": {outcome.told}" if outcome.told else ""))


def write_trials(course: _Course) -> None:
    """Write trials.csv."""
    rows = _rows(course)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(course.folder / TRIALS, text.getvalue().encode())


def _rows(course: _Course) -> list[dict[str, Any]]:
    return [
        {"trial": trial.number, "state": _state(trial), "value": _value(trial, course.objective)}
        | {PARAMETERS: trial.user_attrs.get(PARAMETERS), FOLDER: trial.user_attrs.get(FOLDER)}
        | {REASON: trial.user_attrs.get(REASON)}
        | dotted(trial.user_attrs.get(_OPTIONS, {}))
        for trial in course.store.study.trials
        if trial.user_attrs.get(REASON) not in (_TOO_LARGE, _TRIED)
    ]


def _state(trial: Any) -> str:
    return "failed" if trial.user_attrs.get(REASON) or trial.state.name == "FAIL" else str(trial.state.name.lower())


def _value(trial: Any, aim: Objective) -> float | None:
    values = [trial.value] if trial.value is not None else list(trial.intermediate_values.values())
    return (max if aim.up else min)(values) if values else None


def _found(course: _Course, signal: int | None) -> Tuned:
    write_trials(course)
    rows = _rows(course)
    done = _complete(course)
    if not done:
        return Tuned(None, math.nan, {}, course.objective, rows, course.folder, signal)
    trial = done[0]
    options = trial.user_attrs[_OPTIONS]
    best = applied(course.experiment, options, course.space.where)
    return Tuned(best, float(trial.value), options, course.objective, rows, course.folder, signal)
