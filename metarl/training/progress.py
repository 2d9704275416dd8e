"""Where a run stands, what training returns, and what callbacks are told."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from metarl.training.settings import Settings
from metarl.types import Family, Learner, Params


class Progress(NamedTuple):
    """Where a run stands: everything that the next iteration depends on."""

    iteration: int
    params: Params
    outer: dict[str, Any]
    best: float | None
    """Best training score so far."""
    refused: int


class Result(NamedTuple):
    """What training returns."""

    params: Params
    learner: Learner
    rows: list[dict[str, float]]
    """One row of metrics for each iteration of this call."""
    interrupted: bool


class Running(Protocol):
    """What a callback may know of the run that it is called from."""

    @property
    def learner(self) -> Learner:
        """What is trained."""

    @property
    def family(self) -> Family:
        """What it is trained on."""

    @property
    def settings(self) -> Settings:
        """How long, from which seed, and so on."""

    @property
    def device(self) -> torch.device:
        """Where networks and data live."""

    @property
    def folder(self) -> Path | None:
        """The run folder; None where nothing is kept."""


class Iteration(NamedTuple):
    """What a callback is told of a meta-iteration."""

    run: Running
    """The run itself."""
    progress: Progress
    """Where the run stands after it."""
    row: Mapping[str, float] | None
    """The metrics that were logged of it; None in iterations that are not logged."""


Callback = Callable[[Iteration], bool | None]
"""Called after every iteration, before its checkpoint; False stops training. ``metarl.training.callbacks`` has some."""


def training_score(row: Mapping[str, float]) -> float:
    """The number by which the best checkpoint is chosen: the return, or minus the loss, after the last adaptation.

    Where a learner's metrics tell neither: minus the meta-loss, as Adam and SGD log it; nan where nothing does.
    """
    returns = [value for name, value in row.items() if name.startswith("return/step_")]
    losses = [value for name, value in row.items() if name.startswith("loss/step_")] or [
        row.get("outer/loss", math.nan)
    ]
    return returns[-1] if returns else -losses[-1]
