"""The logs of training: a table, progress.csv, TensorBoard events and, optionally, Weights & Biases.

Stable-Baselines3's logger writes all but progress.csv. Its CSV writer would truncate the file of an interrupted run,
and its order of columns differs between processes.
"""

import csv
import io
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stable_baselines3.common.logger import HParam, HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from metarl.files import write_bytes
from metarl.runs import layout as files
from metarl.runs.folder import read_config

TABLE_EVERY = 10
"""Iterations between tables on standard output."""


class ProgressCSV(KVWriter):
    """Appends rows to a CSV file. Columns stay in the order in which they first appeared."""

    def __init__(self, path: Path, rows: list[dict[str, str]]) -> None:
        self.path = path
        self.columns = list(rows[0]) if rows else []
        _write(path, self.columns, rows)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one row. The file is rewritten if the row has new columns."""
        new = [key for key in key_values if key not in self.columns]
        if new:
            rows = read_progress(self.path)
            self.columns += new
            _write(self.path, self.columns, rows)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(key_values)
        except OSError as error:
            raise OSError(error.errno, f"could not write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Do nothing: the file is not kept open between rows."""


class ContinuedTensorBoard(TensorBoardOutputFormat):
    """Writes TensorBoard events, and hides those of an interrupted run from ``purge_step`` on.

    The first row also registers the hyper-parameters and the scores that belong to them (TensorBoard's HParams).
    """

    def __init__(self, folder: Path, purge_step: int | None, hyperparameters: Mapping[str, Any]) -> None:
        self.writer = SummaryWriter(log_dir=str(folder), purge_step=purge_step)
        self._is_closed = False
        self._hyperparameters = dict(hyperparameters)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write the scalars of one row."""
        if self._hyperparameters:
            metrics: dict[str, float] = {
                name: 0.0 for name in key_values if "/step_" in name
            }  # HParams reads the values from the scalars
            super().write({"hparams": HParam(self._hyperparameters, metrics)}, {"hparams": ()}, step)
            self._hyperparameters = {}
        super().write(key_values, key_excluded, step)


class WeightsAndBiases(KVWriter):
    """Sends rows to a project on Weights & Biases, with an identifier that is stored in the run folder.

    After an interruption, some rows are sent again. W&B ignores steps that it has received already.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        known = folder / files.WANDB
        if not known.exists():
            write_bytes(known, secrets.token_hex(8).encode())
        self._run = import_wandb().init(
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


def import_wandb() -> Any:
    """Return the package wandb. Raises ValueError if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise ValueError('--wandb needs Weights & Biases: pip install "metarl-toolkit[wandb]"') from error
    return wandb


@contextmanager
def open_all(
    folder: Path | None, start: int, last: int, quiet: bool
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Open the files, the table and the progress bar; yield a function that writes a row to all of them."""
    files = open_files(folder, start) if folder else None
    table = None if quiet else open_table()
    bar = tqdm(total=last, initial=start, disable=quiet or not sys.stderr.isatty(), unit="it", dynamic_ncols=True)

    def log(row: Mapping[str, float]) -> None:
        iteration = int(row["iteration"])
        if files:
            dump(files, row, iteration)
        if table and (iteration % TABLE_EVERY == 0 or iteration == last):
            dump(table, row, iteration)
        scores = {name: f"{value:.4g}" for name, value in row.items() if "/step_" in name}
        bar.set_postfix(scores, refresh=False)
        bar.update(iteration - bar.n)

    try:
        yield log
    finally:
        bar.close()
        if files:
            files.close()


def open_files(folder: Path, iteration: int) -> Logger:
    """Return the logger of a run folder's files, and remove rows after ``iteration`` from progress.csv."""
    began_before = any(folder.glob("events.out.tfevents.*"))
    config = read_config(folder) if (folder / files.CONFIG).exists() else {}
    tensorboard = ContinuedTensorBoard(folder, iteration + 1 if began_before else None, hyperparameters(config))
    path = folder / "progress.csv"
    rows = [row for row in read_progress(path) if int(row["iteration"]) <= iteration]
    formats: list[KVWriter] = [ProgressCSV(path, rows), tensorboard]
    project = config.get("settings", {}).get("wandb")
    if project is not None:
        formats.append(WeightsAndBiases(folder, project, config))
    return Logger(str(folder), formats)


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's options by dotted names, such as ``algorithm.step_size``, for TensorBoard."""
    parts = {name: config[name] for name in files.GROUPS if config.get(name)}  # baselines have no outer update
    named = {name: part["reference"] for name, part in parts.items()}
    for name, part in parts.items():
        named |= _flat(name, part["options"])
    return named | _flat("settings", config.get("settings", {}))


def _flat(prefix: str, options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix}.{name}", value)
        else:
            found[f"{prefix}.{name}"] = value if isinstance(value, int | float | str) else str(value)
    return found


def write_adaptation(folder: Path, metrics: Mapping[str, Mapping[str, Any]], picture: Path) -> None:
    """Write the adaptation curve of an evaluation as TensorBoard events, in place of older ones.

    It is a separate TensorBoard run, in a subfolder, because its steps are adaptation steps and not iterations.
    """
    for old in folder.glob(files.ADAPTATION_EVENTS):
        old.unlink()
    with SummaryWriter(log_dir=str(folder / "adaptation")) as writer:
        for name, values in metrics.items():
            found = re.fullmatch(r"(\w+)/step_(\d+)", name)
            for end in ("mean", "low", "high") if found else ():
                assert found is not None
                tag = f"adaptation/{found[1]}" + ("" if end == "mean" else f"_{end}")
                writer.add_scalar(tag, values[end], int(found[2]))
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        writer.add_image("adaptation/curve", pixels, dataformats="HWC")


def open_table() -> Logger:
    """Return the logger that prints the table on standard output."""
    formats: list[KVWriter] = [HumanOutputFormat(sys.stdout)]
    return Logger(None, formats)


def dump(logger: Logger, values: Mapping[str, Any], iteration: int) -> None:
    """Write one row."""
    for name, value in values.items():
        logger.record(_Name(name), value)
    logger.dump(step=iteration)


class _Name(str):
    """A metric's name that sorts by the number at its end: step_2 before step_10. SB3 sorts its table by name."""

    def __lt__(self, other: str) -> bool:
        return _order(str(self)) < _order(str(other))


def _order(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdigit() else (name, -1)


def read_progress(path: Path) -> list[dict[str, str]]:
    """Return the rows of a progress.csv, without an incomplete last line."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if columns:
        writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
