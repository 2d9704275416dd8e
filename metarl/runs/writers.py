"""Where rows of a training run are written to, for Stable-Baselines3's logger; only ``logger`` imports this module.

SB3's own writer of progress.csv truncates the file of an interrupted run and orders columns differently in every
process.
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

from metarl.files import write_bytes
from metarl.runs import layout as files
from metarl.runs.rows import read_progress, write_rows


class ProgressCSV(KVWriter):
    """Appends rows to a CSV file, whose columns stay in the order in which they first appeared."""

    def __init__(self, path: Path, rows: list[dict[str, str]]) -> None:
        self.path = path
        self.columns = list(rows[0]) if rows else []
        write_rows(path, self.columns, rows)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one row; the file is rewritten where it brings new columns."""
        new = [key for key in key_values if key not in self.columns]
        if new:
            rows = read_progress(self.path)
            self.columns += new
            write_rows(self.path, self.columns, rows)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(key_values)
        except OSError as error:
            raise OSError(error.errno, f"could not write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Nothing is held open between rows."""


class ContinuedTensorBoard(TensorBoardOutputFormat):
    """Hides the events of steps from ``purge_step`` on that an interrupted run left behind.

    The first row that has scores says which are the metrics of these hyper-parameters.
    """

    def __init__(self, folder: Path, purge_step: int | None, hyperparameters: Mapping[str, Any]) -> None:
        self.writer = SummaryWriter(log_dir=str(folder), purge_step=purge_step)
        self._is_closed = False
        self._hyperparameters = dict(hyperparameters)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write the scalars of one row."""
        metrics: dict[str, float] = {name: 0.0 for name in key_values if "/step_" in name}  # read from the scalars
        if self._hyperparameters and metrics:  # a baseline has no score before its first episode ends
            super().write({"hparams": HParam(self._hyperparameters, metrics)}, {"hparams": ()}, step)
            self._hyperparameters = {}
        super().write(key_values, key_excluded, step)


class WeightsAndBiases(KVWriter):
    """Sends rows to a project on Weights & Biases, under an identity that the run folder keeps.

    Rows that an interrupted run has sent already are not taken twice: W&B drops steps that it has.
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
        """Send what is left."""
        self._run.finish()
