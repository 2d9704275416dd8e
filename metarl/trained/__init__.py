"""Using trained runs: open a run folder, adapt to tasks, make films.

This package uses run folders and evaluation, not the training loop. Start reading in ``opening``. ``films`` shows
policies before and after each adaptation step.
"""

from metarl.trained.opening import Trained, open_run, opened

__all__ = [
    "Trained",
    "films",
    "open_run",
    "opened",
]
