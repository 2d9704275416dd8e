"""Where a model comes from: a card beside its file, for people (Markdown) and for programs (JSON)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metarl import runs
from metarl.files import write_bytes, write_json


@dataclass(frozen=True)
class Card:
    """What a model is, and where it comes from: plain data."""

    algorithm: str
    family: str
    iteration: int
    """Meta-iterations that it was trained for."""
    run: str = ""
    """The run folder that it was adapted from; empty where there was none."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scores by name, such as returns before and after."""
    versions: Mapping[str, str] = field(default_factory=runs.versions)
    """Versions of the packages that made it."""

    def record(self) -> dict[str, Any]:
        """Return the card as plain data."""
        return {**vars(self), "scores": dict(self.scores), "versions": dict(self.versions)}


def write(card: Card, path: Path, details: Mapping[str, Any]) -> None:
    """Write ``PATH.card.json`` and ``PATH.card.md`` beside a file."""
    record = {"file": path.name, **card.record(), **details}
    write_json(path.with_name(f"{path.name}.card.json"), record)
    write_bytes(path.with_name(f"{path.name}.card.md"), _markdown(record).encode())


def _markdown(record: Mapping[str, Any]) -> str:
    rows = []
    for name, value in record.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [f"| {' '.join([name, *([part] if part else [])])} | {_cell(one)} |" for part, one in inner]
    return "\n".join([f"# {record['file']}", "", "| what | value |", "| --- | --- |", *rows, ""])


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
