"""Search for hyper-parameters and architectures with Optuna: every trial is a run, judged by its validation scores.

Start reading in ``search``. ``space`` holds what is searched for one experiment, of the ``ranges`` of its options;
``trials`` trains one choice, ``storage`` opens the study, and ``budget`` says when to end.
"""

from metarl.tuning.budget import Budget, parse_budget
from metarl.tuning.search import Search, Tuned, prepared, tune
from metarl.tuning.space import Space, space_for, words
from metarl.tuning.storage import StudyError, check_installed

__all__ = [
    "Budget",
    "Search",
    "Space",
    "StudyError",
    "Tuned",
    "check_installed",
    "parse_budget",
    "prepared",
    "space_for",
    "tune",
    "words",
]
