"""The state of a run, and the argument of callbacks."""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch

from metarl.training.settings import Settings
from metarl.types import Experience, Family, Kind, Learner, Params, holding


class Progress(NamedTuple):
    """The state of a run: everything that the next iteration depends on."""

    iteration: int
    """Number of completed iterations."""
    params: Params
    outer: dict[str, Any]
    """State of the outer update."""
    best: float | None = None
    """Best training score so far."""
    refused: int = 0
    """Number of updates in a row that were refused because the meta-gradient was not finite."""
    buffers: Params = {}  # noqa: RUF012  # never written to
    """What the learner keeps beside its meta-parameters; see ``metarl.types.Buffers``."""


class Learnt(NamedTuple):
    """The result of one meta-iteration in a run."""

    progress: Progress
    row: dict[str, torch.Tensor | float]
    """Its metrics, scalars that may still be on the device."""
    experience: Experience | None
    """What this process learnt from; None where the iteration is compiled as one graph."""


class Running(Protocol):
    """The part of a run that callbacks can use."""

    @property
    def learner(self) -> Learner:
        """The learner that is trained; it holds no buffers: ``Iteration.learner`` does."""

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
    experience: Experience | None = None
    """What this iteration learnt from: the rollouts or examples of its tasks, in a run of several processes those of
    this process. It is not kept after the callbacks. None with labelled examples and ``compile=True``, where the whole
    iteration is one graph."""

    @property
    def learner(self) -> Learner:
        """The learner that is trained, with its buffers as they are after this iteration."""
        return holding(self.run.learner, self.progress.buffers)


Callback = Callable[[Iteration], bool | None]
"""Called after every iteration, before its checkpoint. Returning False stops training; see
``metarl.training.callbacks``."""


HUGE = 1e6
"""A loss beyond this is nothing that learning reaches by itself."""
LARGE = 1e3
"""A first squared error beyond this tells of targets that are far from 1."""
REFUSED_IN_A_ROW = 20


class TrainingError(RuntimeError):
    """Training cannot go on; the last checkpoint is intact."""


class Watch:
    """Warns, once of each kind, of training that is not learning; with "stop", raises TrainingError instead."""

    def __init__(self, kind: Kind, answer: Literal["warn", "stop"] = "warn") -> None:
        self._answer = answer
        self._kind, self._told, self._refused, self._first = kind, set[str](), 0, True

    def see(self, row: Mapping[str, float]) -> None:
        """Look at a logged row."""
        number = int(row["iteration"])
        losses = {name: value for name, value in row.items() if name.startswith("loss/step_") or name == "outer/loss"}
        if self._kind == "regression" and self._first and max(losses.values(), default=0.0) > LARGE:
            self._warn(
                f"the loss is {max(losses.values()):.2g} in iteration {number}: targets seem to be far from 1; scale "
                "inputs and targets, to a mean of 0 and a standard deviation of 1, say"
            )
        elif bad := [name for name, value in losses.items() if abs(value) > HUGE]:  # nan is refused
            self._warn(
                f"{bad[0]} is {row[bad[0]]:.2g} in iteration {number}: training diverges; try a smaller step size"
            )
        self._first = False
        self._refused = self._refused + 1 if row.get("outer/accepted") == 0 else 0
        if self._refused == REFUSED_IN_A_ROW:
            self._warn(
                f"the line search has refused all of {self._refused} logged steps up to iteration {number}: the "
                "parameters do not change; try a smaller max_kl, or another seed"
            )

    def _warn(self, told: str) -> None:
        kind = told.partition(" in iteration")[0].partition(" is ")[0]
        if "the loss" not in self._told and kind not in self._told:
            self._told.add(kind)
            if self._answer == "stop":
                raise TrainingError(f"{told}; the last checkpoint is intact (when_diverging=stop)")
            warnings.warn(told, stacklevel=4)


def training_score(row: Mapping[str, float]) -> float:
    """Return the score that selects the best checkpoint: the return, or minus the loss, after the last adaptation.

    Without either among a learner's metrics: minus the meta-loss, as Adam and SGD log it; nan without that, too.
    """
    returns = [value for name, value in row.items() if name.startswith("return/step_")]
    losses = [value for name, value in row.items() if name.startswith("loss/step_")] or [
        row.get("outer/loss", math.nan)
    ]
    return returns[-1] if returns else -losses[-1]
