"""The logs of training: a table, progress.csv, TensorBoard events and, optionally, Weights & Biases and MLflow.

Stable-Baselines3's logger writes them (see ``writers``). It is imported only when something is written.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from metarl.runs import layout as files
from metarl.runs.folder import read_config
from metarl.runs.rows import read_progress as read_progress
from metarl.runs.rows import read_rows as read_rows
from metarl.safety import optional, without_working_folder

TABLE_EVERY = 10
"""Iterations between tables on standard output."""


def import_wandb() -> Any:
    """Return the package wandb. Raises ValueError if it is not installed."""
    return optional("wandb", "--wandb needs Weights & Biases", "wandb")


def import_mlflow() -> Any:
    """Return the package mlflow. Raises ValueError if it is not installed."""
    return optional("mlflow", "--mlflow needs MLflow", "mlflow")


def import_writers() -> Any:
    """Return the module ``writers``. Raises ValueError where Stable-Baselines3 is missing."""
    try:
        with without_working_folder():
            from metarl.runs import writers
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "stable_baselines3":
            raise
        raise ValueError(
            "logs are written by Stable-Baselines3, which cannot be imported: pip install stable-baselines3; or train "
            "without a run folder, quietly"
        ) from error
    return writers


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


@contextmanager
def open_bar(title: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar with the time left, for work that takes over two seconds; yield what takes the share done.

    It is shown only where standard error is a terminal.
    """
    form = "{l_bar}{bar}| {elapsed}<{remaining}"
    bar = tqdm(total=100, desc=title, delay=2, disable=not sys.stderr.isatty(), bar_format=form, leave=False)
    try:
        yield lambda share: bar.update(100 * share - bar.n) and None
    finally:
        bar.close()


def open_files(folder: Path, iteration: int) -> Any:
    """Return the logger of a run folder's files, and remove rows after ``iteration`` from progress.csv.

    It is one of Stable-Baselines3's. Raises ValueError if that is not installed.
    """
    writers = import_writers()
    began_before = any(folder.glob("events.out.tfevents.*"))
    config = read_config(folder) if (folder / files.CONFIG).exists() else {}
    tensorboard = writers.ContinuedTensorBoard(folder, iteration + 1 if began_before else None, hyperparameters(config))
    path = folder / "progress.csv"
    rows = [row for row in read_progress(path) if int(row["iteration"]) <= iteration]
    formats = [writers.ProgressCSV(path, rows), tensorboard]
    settings = config.get("settings", {})
    if (project := settings.get("wandb")) is not None:
        formats.append(writers.WeightsAndBiases(import_wandb(), folder, project, config))
    if (experiment := settings.get("mlflow")) is not None:
        formats.append(writers.MLflow(import_mlflow(), folder, experiment, hyperparameters(config)))
    return writers.Logger(str(folder), formats)


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


def open_table() -> Any:
    """Return the logger that prints the table on standard output.

    Raises ValueError if Stable-Baselines3 is not installed.
    """
    writers = import_writers()
    return writers.Logger(None, [writers.HumanOutputFormat(sys.stdout)])


def dump(logger: Any, values: Mapping[str, Any], iteration: int) -> None:
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
