"""The only training loop: sample tasks, adapt, move the meta-parameters; log, checkpoint, resume.

It knows no family, no algorithm and no picture. Start reading in ``start`` (``train``, ``resume``, ``open_run``), then
``loop``, then ``iteration``; ``callbacks`` has some callbacks, ``compiling`` makes a graph of a whole iteration.
"""

from metarl.training.data import check_data
from metarl.training.experiment import Experiment, recipe
from metarl.training.interrupts import stop_on_interrupt
from metarl.training.iteration import gather
from metarl.training.progress import Callback, Iteration, Progress, TrainingError, training_score
from metarl.training.settings import Settings, default_settings
from metarl.training.start import (
    Recorded,
    Source,
    load,
    open_run,
    opened,
    recorded,
    reopen,
    resume,
    source,
    start,
    train,
)

__all__ = [
    "Callback",
    "Experiment",
    "Iteration",
    "Progress",
    "Recorded",
    "Settings",
    "Source",
    "TrainingError",
    "callbacks",
    "check_data",
    "default_settings",
    "gather",
    "load",
    "open_run",
    "opened",
    "recipe",
    "recorded",
    "reopen",
    "resume",
    "source",
    "start",
    "stop_on_interrupt",
    "train",
    "training_score",
]
