"""Writers of rows for Stable-Baselines3's logger. Only ``logger`` imports this module.

SB3's own CSV writer would truncate the progress.csv of an interrupted run, and its order of columns differs between
processes.
"""

import csv
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    HParam,
    KVWriter,
    TensorBoardOutputFormat,
)
from stable_baselines3.common.logger import HumanOutputFormat as HumanOutputFormat
from stable_baselines3.common.logger import Logger as Logger
from torch.utils.tensorboard import SummaryWriter

from metarl.files import WriteError, write_bytes
from metarl.runs import layout as files
from metarl.runs.rows import read_progress, write_rows


class ProgressCSV(KVWriter):
    """Appends rows to a CSV file. Columns stay in the order in which they first appeared."""

    def __init__(self, path: Path, rows: list[dict[str, str]]) -> None:
        self.path = path
        self.columns = list(rows[0]) if rows else []
        write_rows(path, self.columns, rows)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one row. The file is rewritten if the row has new columns."""
        new = [key for key in key_values if key not in self.columns]
        if new:
            rows = read_progress(self.path)
            self.columns += new
            write_rows(self.path, self.columns, rows)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(key_values)
        except OSError as error:
            raise WriteError(error.errno, f"could not write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Do nothing: the file is not kept open between rows."""


class ContinuedTensorBoard(TensorBoardOutputFormat):
    """Writes TensorBoard events, and hides those of an interrupted run from ``purge_step`` on.

    The first row with scores also registers the hyper-parameters and these scores (TensorBoard's HParams).
    """

    def __init__(self, folder: Path, purge_step: int | None, hyperparameters: Mapping[str, Any]) -> None:
        self.writer = SummaryWriter(log_dir=str(folder), purge_step=purge_step)
        self._is_closed = False
        self._hyperparameters = dict(hyperparameters)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write the scalars of one row."""
        metrics: dict[str, float] = {name: 0.0 for name in key_values if "/step_" in name}  # HParams reads the scalars
        if self._hyperparameters and metrics:  # a baseline has no score before its first episode ends
            super().write({"hparams": HParam(self._hyperparameters, metrics)}, {"hparams": ()}, step)
            self._hyperparameters = {}
        super().write(key_values, key_excluded, step)


class WeightsAndBiases(KVWriter):
    """Sends rows to a project on Weights & Biases, with an identifier that is stored in the run folder.

    After an interruption, some rows are sent again. W&B ignores steps that it has received already.
    """

    def __init__(self, wandb: Any, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        known = folder / files.WANDB
        if not known.exists():
            write_bytes(known, secrets.token_hex(8).encode())
        self._run = wandb.init(
            project=project,
            name=folder.resolve().name,
            id=known.read_text(encoding="utf-8"),
            resume="allow",
            config=dict(config),
            dir=str(folder),
        )

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send one row."""
        self._run.log({str(name): value for name, value in key_values.items()}, step=step)

    def close(self) -> None:
        """Send the remaining rows."""
        self._run.finish()
