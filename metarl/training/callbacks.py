"""What may look at meta-training after every iteration, and stop it: ``train(..., callbacks=[...])``.

A callback depends on what it is told, and on its own files in the run folder, alone: so a run that was killed goes on
as if nothing had happened, when ``resume`` is given the same callbacks.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarl import evaluation, runs
from metarl.files import write_json
from metarl.training.progress import Iteration, Progress, training_score
from metarl.training.settings import Settings
from metarl.types import Split


@dataclass(frozen=True)
class Evaluate:
    """Adapts to held-out tasks every so often, and keeps the parameters that score best.

    In the run folder, ``evaluations.json`` is the curve, and ``best_evaluation.pt`` the checkpoint of the best score:
    the mean return, or minus the loss, after the last step.
    """

    every: int = 50
    """Iterations between evaluations."""
    tasks: int = 20
    """Held-out tasks."""
    steps: int = 1
    """Adaptation steps."""
    split: Split = "validation"
    """Which tasks: the test tasks are for the end."""
    seed: int = 0
    """Decides the tasks, and the random numbers of adaptation."""
    stop_at: float | None = None
    """Score at which training stops."""

    def __post_init__(self) -> None:
        if min(self.every, self.tasks) < 1 or self.steps < 0:
            raise ValueError(f"every={self.every} and tasks={self.tasks} are at least 1, steps={self.steps} at least 0")

    def __call__(self, told: Iteration) -> bool:
        """Evaluate where it is time to."""
        run, params = told.run, told.progress.params
        if told.progress.iteration % self.every:
            return True
        sizes = self.tasks, self.steps
        found = evaluation.evaluate(run.learner, params, run.family, *sizes, self.split, self.seed, run.device)
        score = training_score({name: values["mean"] for name, values in found.metrics.items()})
        if run.folder is not None:
            _keep(run.folder, told.progress, found.metrics, score)
        return self.stop_at is None or score < self.stop_at


def _keep(folder: Path, progress: Progress, metrics: Mapping[str, Any], score: float) -> None:
    """Write a point of the curve, and the parameters if they are the best so far."""
    path = folder / runs.CURVE
    curve = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    # What a killed run had evaluated after its last checkpoint comes again.
    curve = [point for point in curve if point["iteration"] < progress.iteration]
    if not math.isnan(score) and not any(point["score"] >= score for point in curve):
        runs.save_checkpoint(folder / runs.BEST_EVALUATION, progress._asdict())
    write_json(path, [*curve, {"iteration": progress.iteration, "score": score, "metrics": metrics}])


@dataclass(frozen=True)
class KeepCheckpoints:
    """Keeps the checkpoint of every so many iterations, as ``checkpoint-ITERATION.pt`` in the run folder."""

    every: int = 100
    """Iterations between them."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1")

    def __call__(self, told: Iteration) -> None:
        """Write a checkpoint where it is time to. Raises ValueError where there is no run folder to write to."""
        folder, iteration = told.run.folder, told.progress.iteration
        if folder is None:
            raise ValueError("KeepCheckpoints needs a run folder: train(..., out=...)")
        if iteration % self.every == 0:
            runs.save_checkpoint(folder / runs.KEPT.format(iteration), told.progress._asdict())


@dataclass(frozen=True)
class StopAtScore:
    """Stops when the training score is reached: the mean return, or minus the loss, after the last adaptation."""

    threshold: float
    """Score at which training stops."""

    def __call__(self, told: Iteration) -> bool:
        """Look at the score of logged iterations."""
        return told.row is None or not training_score(told.row) >= self.threshold


def validation(settings: Settings) -> list[Evaluate]:
    """Return what evaluates on validation tasks while training, if the settings ask for it."""
    if settings.validate_every is None:
        return []
    return [Evaluate(settings.validate_every, settings.validation_tasks, settings.validation_steps)]
