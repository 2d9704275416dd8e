"""Whether two runs differ in more than their seed and length, and how far a run is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metarl import runs

OWN = ("seed", "iterations", "device")
"""Settings that runs of a group may differ in: how far they are, and where they are trained."""


class Difference(NamedTuple):
    """An option in which two configurations differ, and its values."""

    name: str
    one: Any
    other: Any


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> Difference | None:
    """Return the first option in which two configurations differ, besides ``OWN``; None if there is none.

    They are as in config.json. Nothing that they name is imported.
    """
    ours, theirs = (_flat(config) for config in (one, other))
    for name in (*ours, *theirs):
        if name not in OWN and ours.get(name) != theirs.get(name):
            return Difference(name, ours.get(name), theirs.get(name))
    return None


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options by the names of the command line."""
    found: dict[str, Any] = {}
    for part in runs.GROUPS:
        if record := config.get(part):
            found |= {part: record["reference"], **_dotted(part, record["options"])}
    return found | dict(config["settings"])


def _dotted(prefix: str, options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        dotted = f"{prefix}.{name}"
        found |= _dotted(dotted, value) if isinstance(value, Mapping) else {dotted: value}
    return found


def difference(begun: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """Tell what a run was begun with, and what is asked now; None if it can go on.

    Both are configurations. The seed counts here; the number of iterations and the device may change.
    """
    found = apart(begun, asked)
    seeds = begun["settings"].get("seed"), asked["settings"]["seed"]
    if found is None and seeds[0] != seeds[1]:
        found = Difference("seed", *seeds)
    return None if found is None else f"{found.name}={found.one}, and {found.other}"


def standing(folder: Path) -> int:
    """Return the number of iterations in a run's checkpoint; 0 without one. Raises RunError for a damaged one."""
    path = folder / runs.CHECKPOINT
    return int(runs.load_progress(path)["iteration"]) if path.exists() else 0
