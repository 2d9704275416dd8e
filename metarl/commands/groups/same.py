"""Whether a run folder holds what is asked for, and how far it is: what an idempotent command needs to know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarl import runs

OWN = ("seed", "iterations", "device")
"""Settings that runs of a group may differ in: how far they are, and where they are trained."""


def settings_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first option in which two configurations differ, besides ``OWN``, with both values; None if none."""
    for name in runs.GROUPS:
        ours, theirs = (_named(name, config[name]) for config in (one, other))
        for option in (*ours, *theirs):
            if ours.get(option) != theirs.get(option):
                return option, ours.get(option), theirs.get(option)
    ours, theirs = (dict(config["settings"]) for config in (one, other))
    for option in (*ours, *theirs):
        if option not in OWN and ours.get(option) != theirs.get(option):
            return option, ours.get(option), theirs.get(option)
    return None


def _named(part: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a part as plain data by the names of the command line; an older record's, as of today."""
    if not record:
        return {}
    described = runs.describe(runs.rebuild(record, runs.GROUPS[part]), record["reference"])
    return {part: described["reference"], **_flat(part, described["options"])}


def _flat(prefix: str, options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= _flat(f"{prefix}.{name}", value) if isinstance(value, Mapping) else {f"{prefix}.{name}": value}
    return found


def difference(folder: Path, asked: Mapping[str, Any]) -> str | None:
    """Tell what a run was begun with and is now asked otherwise; None if it can go on.

    ``asked`` is a configuration as in config.json. The seed counts here; the number of iterations and the device may
    change.
    """
    begun = runs.read_config(folder)
    apart = settings_apart(begun, asked)
    seeds = begun["settings"].get("seed"), asked["settings"]["seed"]
    if apart is None and seeds[0] != seeds[1]:
        apart = ("seed", *seeds)
    if apart is None:
        return None
    name, one, other = apart
    return f"{folder} was begun with {name}={one}, and {other} is asked for now"


def standing(folder: Path) -> int:
    """Return the number of iterations in a run's checkpoint; 0 without one. Raises RunError for a damaged one."""
    path = folder / runs.CHECKPOINT
    return int(runs.load_progress(path)["iteration"]) if path.exists() else 0
