"""The rows of a progress.csv."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from metarl.files import check_regular, write_bytes
from metarl.runs.layout import RunError


def read_progress(path: Path) -> list[dict[str, str]]:
    """Return the rows of a progress.csv, without an incomplete last line. Raises RunError for an invalid file."""
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows = list(reader)
        _check_rows(reader.fieldnames or (), rows)
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} cannot be read; it may be damaged: {error}") from error
    return rows


def read_rows(path: Path, iteration: int) -> list[dict[str, float]]:
    """Return the metrics of a progress.csv up to an iteration, without empty cells. Raises RunError."""
    rows = [row for row in read_progress(path) if int(row["iteration"]) <= iteration]
    return [
        {name: float(cell) for name, cell in row.items() if cell} | {"iteration": int(row["iteration"])} for row in rows
    ]


def _check_rows(columns: Sequence[str], rows: list[dict[str, str]]) -> None:
    """Raise ValueError for columns without a name or with the same name, and for cells that are not numbers."""
    if columns and ("" in columns or len(set(columns)) < len(columns) or "iteration" not in columns):
        raise ValueError("its first line does not name the columns, one of them iteration")
    for number, row in enumerate(rows, start=2):
        if None in row or not row["iteration"].isdecimal():
            raise ValueError(f"line {number} is not a row of an iteration")
        for name, cell in row.items():
            if cell and not _is_number(cell):
                raise ValueError(f"{name} in line {number} is {cell[:40]!r}: expected a number")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def write_rows(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    """Write a progress.csv atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if columns:
        writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
