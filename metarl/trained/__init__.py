"""What is done with what was learnt: opening a run, adapting to tasks, films.

Run folders and evaluation come in, not the training loop. Start reading in ``opening``; ``films`` shows policies
before and after each adaptation step.
"""

from metarl.trained.opening import Trained, open_run, opened

__all__ = [
    "Trained",
    "films",
    "open_run",
    "opened",
]
