"""A run folder: what is kept on disk, and only that.

Plain data, tensors and frozen dataclasses come in; how they were made is not known here. Start reading in ``folder``;
``layout`` names its files, ``checkpoints`` and ``records`` write and read them, ``lock`` keeps a second writer out,
``replacing`` sets aside a run that another one replaces, ``options`` turns frozen dataclasses into JSON and back,
``logger`` writes rows while training.
"""

from metarl.runs.checkpoints import (
    Checkpoint,
    check_architecture,
    check_state,
    checkpoint,
    load_checkpoint,
    load_progress,
    save_checkpoint,
)
from metarl.runs.folder import create, read_config, read_curve, read_evaluation, versions, write_evaluation
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
    PREVIOUS,
    PROGRESS,
    RunError,
)
from metarl.runs.lock import EVALUATION_LOCK, Claim, claim
from metarl.runs.options import describe, rebuild
from metarl.runs.records import write_record
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
    "PREVIOUS",
    "PROGRESS",
    "Checkpoint",
    "Claim",
    "RunError",
    "check_architecture",
    "check_state",
    "checkpoint",
    "claim",
    "create",
    "describe",
    "load_checkpoint",
    "load_progress",
    "logger",
    "put_back",
    "read_config",
    "read_curve",
    "read_evaluation",
    "rebuild",
    "save_checkpoint",
    "settle",
    "told",
    "unfinished",
    "versions",
    "write_evaluation",
    "write_record",
]
