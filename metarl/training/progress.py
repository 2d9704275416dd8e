"""The state of a run, the result of training, and the argument of callbacks."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from metarl.training.settings import Settings
from metarl.types import Family, Learner, Params


class Progress(NamedTuple):
    """The state of a run: everything that the next iteration depends on."""

    iteration: int
    """Number of completed iterations."""
    params: Params
    outer: dict[str, Any]
    """State of the outer update."""
    best: float | None
    """Best training score so far."""
    refused: int
    """Number of updates in a row that were refused because the meta-gradient was not finite."""


class Result(NamedTuple):
    """The result of training."""

    params: Params
    learner: Learner
    rows: list[dict[str, float]]
    """One row of metrics for each iteration of this call."""
    interrupted: bool


class Running(Protocol):
    """The part of a run that callbacks can use."""

    @property
    def learner(self) -> Learner:
        """The learner that is trained."""

    @property
    def family(self) -> Family:
        """The task family that it is trained on."""

    @property
    def settings(self) -> Settings:
        """The settings of the run."""

    @property
    def device(self) -> torch.device:
        """Device of networks and data."""

    @property
    def folder(self) -> Path | None:
        """The run folder; None if nothing is saved."""


class Iteration(NamedTuple):
    """The argument of a callback: one meta-iteration of a run."""

    run: Running
    """The run."""
    progress: Progress
    """The state of the run after this iteration."""
    row: Mapping[str, float] | None
    """The metrics logged for this iteration; None if it is not logged."""


Callback = Callable[[Iteration], bool | None]
"""Called after every iteration, before its checkpoint. Returning False stops training; see
``metarl.training.callbacks``."""


def training_score(row: Mapping[str, float]) -> float:
    """Return the score that selects the best checkpoint: the return, or minus the loss, after the last adaptation.

    Without either among a learner's metrics: minus the meta-loss, as Adam and SGD log it; nan without that, too.
    """
    returns = [value for name, value in row.items() if name.startswith("return/step_")]
    losses = [value for name, value in row.items() if name.startswith("loss/step_")] or [
        row.get("outer/loss", math.nan)
    ]
    return returns[-1] if returns else -losses[-1]
