"""A run folder: what is kept on disk, and only that.

Plain data, tensors and frozen dataclasses come in; how they were made is not known here. Start reading in ``folder``;
``layout`` names its files, ``lock`` keeps a second writer out, ``replacing`` sets aside a run that another one
replaces, ``options`` turns frozen dataclasses into JSON and back, ``logger`` writes rows while training.
"""

from metarl.runs.errors import RunError
from metarl.runs.folder import (
    Checkpoint,
    check_architecture,
    checkpoint,
    create,
    load_checkpoint,
    read_config,
    read_evaluation,
    save_checkpoint,
    versions,
)
from metarl.runs.layout import (
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
)
from metarl.runs.lock import EVALUATION_LOCK, Claim, claim
from metarl.runs.options import describe, rebuild
from metarl.runs.replacing import put_back, settle, told, unfinished

__all__ = [
    "BEST",
    "BEST_EVALUATION",
    "CHECKPOINT",
    "CONFIG",
    "CURVE",
    "EVALUATION",
    "EVALUATION_LOCK",
    "GROUPS",
    "KEPT",
    "MODEL",
    "PROGRESS",
    "Checkpoint",
    "Claim",
    "RunError",
    "check_architecture",
    "checkpoint",
    "claim",
    "create",
    "describe",
    "load_checkpoint",
    "logger",
    "put_back",
    "read_config",
    "read_evaluation",
    "rebuild",
    "save_checkpoint",
    "settle",
    "told",
    "unfinished",
    "versions",
]
