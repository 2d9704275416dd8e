"""The rows of a progress.csv."""

import csv
import io
from pathlib import Path

from metarl.files import write_bytes


def read_progress(path: Path) -> list[dict[str, str]]:
    """Rows of a progress.csv; a last line that was cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def write_rows(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    """Write a progress.csv, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if columns:
        writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
