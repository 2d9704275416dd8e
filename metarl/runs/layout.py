"""Names of the files in a run folder, and the exception for folders that cannot be used."""

import re
from pathlib import Path

from metarl import plugins


class RunError(ValueError):
    """A run folder that cannot be used as asked; says what is wrong with it and what to do."""

    is_told = True
    """Commands print the message, and no traceback."""


class FinishedError(RunError):
    """A run that has reached its last iteration: nothing is left to do."""


FORMAT = 5
"""Of config.json; ``migration`` reads earlier ones."""
CHECKPOINT_FORMAT = 2
"""Of checkpoints; ``migration`` reads earlier ones, too."""
CHECKPOINT, BEST, CONFIG, PROGRESS, EVALUATION = (
    "checkpoint.pt", "best.pt", "config.json", "progress.csv", "evaluation.json"
)  # fmt: skip
PAST = "evaluation-{}.json"
"""Evaluations before the last one, by number."""
PREVIOUS = "previous.pt"
"""The checkpoint before the last one."""
CURVE, BEST_EVALUATION, KEPT, MODEL = "evaluations.json", "best_evaluation.pt", "checkpoint-{}.pt", "model.zip"
"""Files of evaluations during training, of callbacks, and of baselines."""
PICTURES = ("learning.png", "adaptation.png", "tasks.png", "predictions.png", "render.gif")
WANDB, MLFLOW = "wandb-id.txt", "mlflow-id.txt"
"""Files with the run's identifier on Weights & Biases, and in MLflow."""
ADAPTATION_EVENTS = "adaptation/events.out.tfevents.*"
GROUPS: dict[str, plugins.Group] = {"algorithm": "algorithms", "tasks": "tasks", "outer": "outers"}
"""Plugins that a configuration records, and the group of each in the registry."""
RECORDED_PACKAGES = ("torch", "gymnasium", "mujoco", "mujoco-warp", "numpy", "stable-baselines3")
"""Packages whose versions are recorded besides metarl's. That one is recorded under the name metarl, whatever its
distribution is called, so that records stay comparable."""

_NAMES = (CHECKPOINT, PREVIOUS, BEST, PROGRESS, EVALUATION, CURVE, BEST_EVALUATION, *PICTURES, WANDB, MLFLOW)
_NUMBERED = re.compile(r"checkpoint-\d+\.pt|evaluation-\d+\.json")


def written(folder: Path, baseline: bool) -> list[Path]:
    """Return the paths of the files that metarl wrote into a run folder, relative to it, the configuration last.

    Only a baseline writes a model. In other folders, ``model.zip`` is a user's export and is not included.
    """
    names = [*_NAMES, *([MODEL] if baseline else [])]
    found = [path for path in folder.glob("*") if path.name in names or _NUMBERED.fullmatch(path.name)]
    found += [*folder.glob("events.out.tfevents.*"), *folder.glob(ADAPTATION_EVENTS), folder / CONFIG]
    return [path.relative_to(folder) for path in found if path.is_symlink() or path.is_file()]
