"""Writers of rows for Stable-Baselines3's logger. Only ``logger`` imports this module.

SB3's own CSV writer would truncate the progress.csv of an interrupted run, and its order of columns differs between
processes.
"""

import csv
import secrets
import time
import warnings
from collections.abc import Callable, Mapping
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
from metarl.runs.layout import RunError
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

    After an interruption, some rows are sent again. W&B ignores steps that it has received already. Raises RunError
    where W&B cannot be used.
    """

    def __init__(self, wandb: Any, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        known = folder / files.WANDB
        if not known.exists():
            write_bytes(known, secrets.token_hex(8).encode())
        try:
            self._run = wandb.init(
                project=project,
                name=folder.resolve().name,
                id=known.read_text(encoding="utf-8"),
                resume="allow",
                config=dict(config),
                dir=str(folder),
            )
        except Exception as error:  # not only its own ones
            raise RunError(
                f"wandb={project!r}: Weights & Biases cannot be used: {' '.join(str(error).split())}; with "
                "WANDB_MODE=offline, rows stay in the run folder"
            ) from error

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send one row."""
        self._run.log({str(name): value for name, value in key_values.items()}, step=step)

    def close(self) -> None:
        """Send the remaining rows."""
        self._run.finish()


class MLflow(KVWriter):
    """Sends rows to an experiment of MLflow, as a run whose identifier is stored in the run folder.

    Where they go, MLflow's own settings say, such as MLFLOW_TRACKING_URI. After an interruption, rows that are there
    already are not sent again. Raises RunError where MLflow cannot be used.
    """

    MOST = 100
    """Parameters and metrics that MLflow takes at once."""

    def __init__(self, mlflow: Any, folder: Path, experiment: str, options: Mapping[str, Any]) -> None:
        self._mlflow = mlflow
        try:
            self._client = mlflow.MlflowClient()
            self._id, self._last = self._begun(folder, experiment, options)
        except (mlflow.exceptions.MlflowException, ImportError) as error:
            raise RunError(f"mlflow={experiment!r}: MLflow cannot be used: {' '.join(str(error).split())}") from error
        self._open = True

    def _begun(self, folder: Path, experiment: str, options: Mapping[str, Any]) -> tuple[str, int]:
        """Return the identifier of a new run, or of the one in the folder, and the last row that it has."""
        known = folder / files.MLFLOW
        if known.exists():
            run = known.read_text(encoding="utf-8")
            self._client.update_run(run, status="RUNNING")
            return run, max((value.step for value in self._client.get_metric_history(run, "iteration")), default=0)
        found = self._client.get_experiment_by_name(experiment)
        place = self._client.create_experiment(experiment) if found is None else found.experiment_id
        run = self._client.create_run(place, run_name=folder.resolve().name).info.run_id
        kinds, told = self._mlflow.entities, list(options.items())
        for first in range(0, len(told), self.MOST):
            part = told[first : first + self.MOST]
            self._client.log_batch(run, params=[kinds.Param(name, str(value)) for name, value in part])
        write_bytes(known, run.encode())
        return str(run), 0

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send one row. Where MLflow refuses it, warn, and send no more: progress.csv has them all."""
        if not self._open or step <= self._last:
            return
        now, kind = int(time.time() * 1000), self._mlflow.entities.Metric
        metrics = [kind(str(name), float(value), now, step) for name, value in key_values.items()]
        self._tried(lambda: self._client.log_batch(self._id, metrics=metrics))

    def close(self) -> None:
        """Tell MLflow that the run has ended."""
        if self._open:
            self._tried(lambda: self._client.set_terminated(self._id))

    def _tried(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except self._mlflow.exceptions.MlflowException as error:
            self._open = False
            cause = " ".join(str(error).split())
            warnings.warn(
                f"MLflow takes no more rows ({cause}): training goes on, and progress.csv has them all", stacklevel=2
            )
