"""``metarl predict MODEL FILE [FILE ...]``: classes or values of images, or of the rows of a table."""

import csv
import dataclasses
import sys
from pathlib import Path

from tyro.conf import Positional

from metarl.cli import DONE, Execute
from metarl.commands.parsing import parse
from metarl.speed import Device
from metarl.trained import FewShotModel, load_model


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Options of ``metarl predict``."""

    model: Positional[Path]
    """Model file, as metarl adapt --data writes it."""
    files: Positional[tuple[Path, ...]]
    """Images, or a table (.csv) of input numbers with a line of names."""
    device: Device = "cpu"
    """Device to predict on."""
    allow_code: bool = False
    """Import code that the model names outside of installed plugins, also if you did not save it here."""


def prepare(arguments: list[str]) -> Execute:
    """``MODEL FILE [FILE ...]``: print the class of each file with its probability, or values, as CSV."""
    told = "Print the class of each image or row with its probability, or its values, as CSV."
    chosen = parse(PredictOptions, arguments, "predict", told)
    if not chosen.files:
        raise ValueError("predict needs at least one file: images, or a table (.csv)")
    model = load_model(chosen.model, chosen.device, chosen.allow_code)
    if not isinstance(model, FewShotModel):
        raise ValueError(f"{chosen.model} is a policy, which acts and predicts nothing: metarl.load_model opens it")
    rows = _rows(model, chosen.files)

    def execute() -> int:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return DONE

    return execute


def _rows(model: FewShotModel, files: tuple[Path, ...]) -> list[list[object]]:
    tables = [path for path in files if path.suffix.lower() == ".csv"]
    if tables and len(tables) < len(files):
        raise ValueError(f"{tables[0]} is a table, and other files are not: give them to two commands")
    if folders := [path for path in files if path.is_dir()]:
        raise ValueError(f"{folders[0]} is a folder: expected the files in it, such as {folders[0]}/*.png")
    if absent := [path for path in files if not path.is_file()]:
        raise ValueError(f"there is no file {absent[0]}")
    names: list[str] = []
    outputs: list[list[object]] = []
    for group in [[table] for table in tables] or [list(files)]:
        found = _predicted(model, group)
        names += [f"{group[0]}:{row}" for row in range(2, 2 + len(found))] if tables else list(map(str, group))
        outputs += found
    head = ["class", "probability"] if model.classifies else [f"value_{column}" for column in range(len(outputs[0]))]
    return [["row" if tables else "file", *head], *([name, *row] for name, row in zip(names, outputs, strict=True))]


def _predicted(model: FewShotModel, files: list[Path]) -> list[list[object]]:
    if not model.classifies:
        values = model.predict(files)
        return [[f"{value:.6g}" for value in row] for row in values.reshape(len(values), -1).tolist()]
    chances = model.predict_proba(files)
    places = chances.argmax(1).tolist()
    return [[model.classes[place], f"{row[place]:.4f}"] for place, row in zip(places, chances.tolist(), strict=True)]
