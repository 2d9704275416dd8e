"""The only training loop: sample tasks, adapt, move the meta-parameters; log, checkpoint, resume.

It knows no family, no algorithm and no picture. Start reading in ``start`` (``train``, ``resume``, ``open_run``), then
``loop``, then ``iteration``; ``callbacks`` has some callbacks, ``compiling`` makes a graph of a whole iteration.
"""

from metarl.training.experiment import Experiment, Source, recipe, source, with_architecture, with_options
from metarl.training.interrupts import stop_on_interrupt
from metarl.training.iteration import gather, streams
from metarl.training.loop import Run
from metarl.training.progress import Callback, Iteration, Progress, TrainingError, training_score
from metarl.training.settings import Schedules, Settings, default_settings
from metarl.training.start import (
    Saving,
    begin,
    check_same,
    load,
    open_run,
    opened,
    recorded,
    reopen,
    resume,
    save_run,
    start,
    train,
)

__all__ = [
    "Callback",
    "Experiment",
    "Iteration",
    "Progress",
    "Run",
    "Saving",
    "Schedules",
    "Settings",
    "Source",
    "TrainingError",
    "begin",
    "callbacks",
    "check_same",
    "default_settings",
    "gather",
    "load",
    "open_run",
    "opened",
    "recipe",
    "recorded",
    "reopen",
    "resume",
    "save_run",
    "source",
    "start",
    "stop_on_interrupt",
    "streams",
    "train",
    "training_score",
    "with_architecture",
    "with_options",
]
