"""The study of a search in Optuna's storage: a journal file or a database, which several processes may share."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metarl.runs import logger
from metarl.safety import optional
from metarl.training import Experiment
from metarl.tuning.space import Space

JOURNAL = "study.journal"
_RECORD = "metarl"
"""Name of the attribute of a study that says what is tuned."""
_FREE = ("settings.device", "settings.checkpoint_every", "settings.log_every", "settings.wandb", "settings.mlflow")
"""Options that processes of one study may differ in."""


class StudyError(ValueError):
    """A study that cannot be used as asked; says what is wrong with it and what to do."""

    is_told = True
    """Commands print the message, and no traceback."""


class Store(NamedTuple):
    """Where a study is kept."""

    study: Any
    """Optuna's ``Study``."""
    storage: Any
    """Optuna's storage, which it is in."""
    where: str
    """What is told of it in messages."""

    def trial(self, number: int) -> Any:
        """Return Optuna's ``Trial`` of a number, to go on with it."""
        study = self.storage.get_study_id_from_name(self.study.study_name)
        one = self.storage.get_trial_id_from_study_id_trial_number(study, number)
        return import_optuna().trial.Trial(self.study, one)


def import_optuna() -> Any:
    """Return the package optuna. Raises ValueError if it is not installed."""
    return optional("optuna", "tuning needs Optuna", "tune")


def check_installed() -> None:
    """Raise ValueError if Optuna is not installed."""
    import_optuna()


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Let Optuna print warnings only: what it logs of each trial, metarl tells by itself."""
    optuna = import_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def opened(experiment: Experiment, space: Space, up: bool, place: str | Path, told: Mapping[str, Any]) -> Store:
    """Open the study of an experiment, or make it. ``told`` is what else its processes must have in common.

    ``place`` is a file, for Optuna's journal, or the URL of a database, such as ``sqlite:///study.db``.

    Raises:
        StudyError: the storage cannot be read, or holds a study of something else.
    """
    where, name = str(place), "-".join(experiment.names[:2])
    with _told_as_one(where):
        storage = _storage(import_optuna(), where)
        names = import_optuna().get_all_study_names(storage)
    if (others := [other for other in names if other != name]) and "://" not in where:
        raise StudyError(f"{where} holds a study of {others[0]}, and {name} is asked for: choose another --out")
    with _told_as_one(where):
        study = _study(name, storage, "maximize" if up else "minimize", name in names)
        recorded = study.user_attrs.get(_RECORD)
    asked = _record(experiment, space, told)
    if recorded is None:
        study.set_user_attr(_RECORD, asked)
    elif (difference := _difference(recorded, asked)) is not None:
        raise StudyError(
            f"{where} holds a study with {difference} is asked for now: give the command that began it, or choose "
            "another --out (or --storage)"
        )
    return Store(study, storage, where)


def _study(name: str, storage: Any, direction: str, there: bool) -> Any:
    optuna = import_optuna()
    if there:  # creating it again would be written into the journal
        return optuna.load_study(study_name=name, storage=storage)
    return optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)


@contextlib.contextmanager
def _told_as_one(where: str) -> Iterator[None]:
    """Raise a StudyError for whatever a broken storage makes its reader stumble over."""
    try:
        yield
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise StudyError(
            f"{where} cannot be used as the storage of a study ({cause}); move it away, or choose another with "
            "--storage"
        ) from error


def _storage(optuna: Any, where: str) -> Any:
    if "://" in where:
        return optuna.storages.RDBStorage(where)
    if not _ends_in_a_line(Path(where)):  # Optuna would put its next record behind it, into the same line
        raise ValueError("it ends in the middle of a line, as a full disk or a killed process leaves it: remove that")
    journal = optuna.storages.journal
    return optuna.storages.JournalStorage(journal.JournalFileBackend(where))


def _ends_in_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _record(experiment: Experiment, space: Space, told: Mapping[str, Any]) -> dict[str, Any]:
    options = logger.hyperparameters(experiment.record())
    kept = {name: value for name, value in options.items() if name not in _FREE}
    searched = logger.hyperparameters({"settings": {"space": json.loads(json.dumps(space.table))}})
    return kept | {name.removeprefix("settings."): value for name, value in searched.items()} | dict(told)


def _difference(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    for name in (*recorded, *asked):
        if recorded.get(name) != asked.get(name):
            return f"{name}={recorded.get(name)}, and {asked.get(name)}"
    return None
