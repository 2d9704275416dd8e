"""A run folder: what is kept on disk, and only that.

Plain data, tensors and frozen dataclasses come in; how they were made is not known here. Start reading in ``folder``;
``options`` turns frozen dataclasses into JSON and back, ``logger`` writes rows while training.
"""

from metarl.runs.folder import (
    BEST,
    BEST_EVALUATION,
    CHECKPOINT,
    CONFIG,
    CURVE,
    EVALUATION,
    GROUPS,
    KEPT,
    MODEL,
    PROGRESS,
    Checkpoint,
    RunError,
    check_architecture,
    checkpoint,
    create,
    load_checkpoint,
    read_config,
    read_evaluation,
    save_checkpoint,
    versions,
)
from metarl.runs.options import describe, rebuild

__all__ = [
    "BEST",
    "BEST_EVALUATION",
    "CHECKPOINT",
    "CONFIG",
    "CURVE",
    "EVALUATION",
    "GROUPS",
    "KEPT",
    "MODEL",
    "PROGRESS",
    "Checkpoint",
    "RunError",
    "check_architecture",
    "checkpoint",
    "create",
    "describe",
    "load_checkpoint",
    "logger",
    "read_config",
    "read_evaluation",
    "rebuild",
    "save_checkpoint",
    "versions",
]
