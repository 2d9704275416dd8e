"""Callbacks, called after every meta-iteration; they can stop training: ``train(..., callbacks=[...])``.

A callback depends only on its argument and on its own files in the run folder. So a killed run that is resumed with the
same callbacks continues as if it had never stopped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarl import evaluation, plugins, runs
from metarl.files import write_json
from metarl.training.progress import Iteration, Progress, training_score
from metarl.training.settings import Settings
from metarl.types import Split


@dataclass(frozen=True)
class Evaluate:
    """Evaluate on held-out tasks at regular intervals, and keep the parameters with the best score.

    In the run folder, ``evaluations.json`` holds the scores over training, and ``best_evaluation.pt`` the checkpoint
    with the best score: the mean return, or minus the loss, after the last adaptation step.
    """

    every: int = 50
    """Iterations between evaluations."""
    tasks: int = 20
    """Number of held-out tasks."""
    steps: int = 1
    """Adaptation steps."""
    split: Split = "validation"
    """Split that the tasks come from. Keep the test tasks for the end."""
    seed: int = 0
    """Seed of the tasks and of adaptation."""
    stop_at: float | None = None
    """Stop training when this score is reached."""

    def __post_init__(self) -> None:
        _make_plain(self)
        if min(self.every, self.tasks) < 1 or self.steps < 0:
            raise ValueError(f"every={self.every} and tasks={self.tasks} are at least 1, steps={self.steps} at least 0")

    def __call__(self, iteration: Iteration) -> bool:
        """Evaluate if this iteration is due. Return False to stop training."""
        run, progress = iteration.run, iteration.progress
        if progress.iteration % self.every:
            return True
        sizes = self.tasks, self.steps
        result = evaluation.evaluate(
            iteration.learner, progress.params, run.family, *sizes, self.split, self.seed, run.device
        )
        score = training_score({name: values["mean"] for name, values in result.metrics.items()})
        if run.folder is not None:
            _keep(run.folder, progress, result.metrics, score)
        return self.stop_at is None or score < self.stop_at


def _keep(folder: Path, progress: Progress, metrics: Mapping[str, Any], score: float) -> None:
    """Append the scores to the curve, and save the parameters if they are the best so far."""
    path = folder / runs.CURVE
    curve = runs.read_curve(folder)
    # A resumed run repeats the iterations after its last checkpoint: drop their old points.
    curve = [point for point in curve if point["iteration"] < progress.iteration]
    if not math.isnan(score) and not any(point["score"] >= score for point in curve):
        runs.save_checkpoint(folder / runs.BEST_EVALUATION, progress._asdict())
    write_json(path, [*curve, {"iteration": progress.iteration, "score": score, "metrics": metrics}])


@dataclass(frozen=True)
class KeepCheckpoints:
    """Keep a checkpoint at regular intervals, as ``checkpoint-ITERATION.pt`` in the run folder."""

    every: int = 100
    """Iterations between kept checkpoints."""

    def __post_init__(self) -> None:
        _make_plain(self)
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1")

    def __call__(self, iteration: Iteration) -> None:
        """Write a checkpoint if this iteration is due. Raises ValueError without a run folder."""
        folder, progress = iteration.run.folder, iteration.progress
        if folder is None:
            raise ValueError("KeepCheckpoints needs a run folder: train(..., out=...)")
        if progress.iteration % self.every == 0:
            runs.save_checkpoint(folder / runs.KEPT.format(progress.iteration), progress._asdict())


@dataclass(frozen=True)
class StopAtScore:
    """Stop at a training score: the mean return, or minus the loss, after the last adaptation."""

    threshold: float
    """Score at which training stops."""

    def __post_init__(self) -> None:
        _make_plain(self)

    def __call__(self, iteration: Iteration) -> bool:
        """Check the score of logged iterations. Return False to stop training."""
        return iteration.row is None or not training_score(iteration.row) >= self.threshold


def _make_plain(callback: Any) -> None:
    """Replace NumPy's numbers by Python's. Raises ValueError for an option of another type than its hint says."""
    for name, value in plugins.checked_fields(callback).items():
        object.__setattr__(callback, name, value)


def validation(settings: Settings) -> list[Evaluate]:
    """Return the callback that evaluates on validation tasks, or an empty list if the settings have none."""
    if settings.validate_every is None:
        return []
    return [Evaluate(settings.validate_every, settings.validation_tasks, settings.validation_steps)]
