"""A run folder: the files of a run, and how they are written and read.

This package stores plain data, tensors and frozen dataclasses, and does not know how they are made. Start reading in
``folder``. ``layout`` names the files, ``checkpoints`` and ``records`` write and read them, ``lock`` prevents a second
writer, ``replacing`` sets aside a run that is being replaced, ``options`` converts frozen dataclasses to JSON and back
and compares them, and ``logger`` writes the logs of training.
"""

from metarl.runs.checkpoints import (
    Checkpoint,
    check_architecture,
    check_state,
    checkpoint,
    digests,
    load_checkpoint,
    load_progress,
    save_checkpoint,
)
from metarl.runs.folder import (
    check_name,
    create,
    read_config,
    read_curve,
    read_evaluation,
    read_evaluation_file,
    rewrite_config,
    trusted_config,
    versions,
    write_evaluation,
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
    PREVIOUS,
    PROGRESS,
    FinishedError,
    RunError,
)
from metarl.runs.lock import EVALUATION_LOCK, Claim, claim, holder
from metarl.runs.options import apart, describe, difference, rebuild
from metarl.runs.records import read_record, write_record
from metarl.runs.replacing import aside_note, put_back, settle, unfinished

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
    "FinishedError",
    "RunError",
    "apart",
    "aside_note",
    "check_architecture",
    "check_name",
    "check_state",
    "checkpoint",
    "claim",
    "create",
    "describe",
    "difference",
    "digests",
    "holder",
    "load_checkpoint",
    "load_progress",
    "logger",
    "put_back",
    "read_config",
    "read_curve",
    "read_evaluation",
    "read_evaluation_file",
    "read_record",
    "rebuild",
    "rewrite_config",
    "save_checkpoint",
    "settle",
    "trusted_config",
    "unfinished",
    "versions",
    "write_evaluation",
    "write_record",
]
