"""Evaluating on other tasks than those of training: which they are, and in what they differ."""

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any, get_type_hints

from metarl import plugins, training
from metarl.commands.parsing import made_with
from metarl.files import expanded
from metarl.types import Family


def name_and_place(reference: str) -> tuple[str, Path | None]:
    """Return the name of a family, and the folder or file that stands behind it, as in ``images:/data/birds``.

    ``module:attribute`` is a name. A module that is called as an installed family has attributes, no files.
    """
    name, colon, place = reference.partition(":")
    if not colon or not any(name == plugin.name for plugin in plugins.installed("tasks")):
        return reference, None
    is_place = os.sep in place or Path(place).exists() or importlib.util.find_spec(name) is None
    return (name, expanded(place).absolute()) if is_place else (reference, None)


def _reading(name: str, place: Path, trained_on: Family) -> Family:
    """Return an installed family that reads a folder or a file, with the options of training if it is the same.

    Raises ValueError for one that reads none, and whatever the family raises for what it finds there.
    """
    kind = plugins.load("tasks", name)
    hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    fields = [field for field, hint in hints.items() if hint in (Path, Path | None)]
    if len(fields) != 1:
        raise ValueError(
            f"--on {name}:{place}: {name} reads no folder and no file; expected a name, or module:attribute"
        )
    options: dict[str, Any] = {fields[0]: place}
    family: Any = trained_on
    made: Family = dataclasses.replace(family, **options) if type(family) is kind else kind(**options)
    return made


def other_family(reference: str, trained_on: Family, words: list[str]) -> Family:
    """Return the family of --on. Raises ValueError unless its tasks are of the form that the run was trained for."""
    name, place = name_and_place(reference)
    if place is None:
        family: Family = training.source("tasks", name, made_with("tasks", words, "evaluate")).target
    else:
        family = _reading(name, place, trained_on)
    ours, theirs = (dataclasses.asdict(one.spec) | {"policy": None, "ragged": None} for one in (trained_on, family))
    wrong = [f"{name} {theirs[name]}, not {ours[name]}" for name in ours if ours[name] != theirs[name]]
    if wrong:
        raise ValueError(f"--on {reference}: its tasks are of another form than those of training: {'; '.join(wrong)}")
    return family


def differing(family: Family, trained_on: Family, references: tuple[str, str]) -> str | None:
    """Tell in what the evaluated family differs from that of training; None if in nothing."""
    options, before = _options("", family), _options("", trained_on)
    names = [name for name in options if name in before and _other(options[name], before[name])]
    told = [f"{name} is {_shown(options[name])}, and was {_shown(before[name])}" for name in names]
    if type(family) is not type(trained_on) or (references[0] != references[1] and not told):
        told.insert(0, f"{references[0]} instead of {references[1]}")
    return "; ".join(told) or None


def _shown(value: Any) -> str:
    """Return a value in few letters; a path whole, as its end tells most."""
    return str(value) if isinstance(value, Path) else plugins.shortened(value)


def _options(prefix: str, target: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in dataclasses.fields(target) if dataclasses.is_dataclass(target) else ():
        value = getattr(target, item.name)
        name = f"{prefix}{item.name}"
        found |= _options(f"{name}.", value) if dataclasses.is_dataclass(value) else {name: value}
    return found


def _other(one: Any, other: Any) -> bool:
    try:
        return bool(one != other)
    except (RuntimeError, ValueError):  # arrays and tensors
        return one is not other


def has_other_folder(family: Any, trained_on: Any) -> bool:
    """Return whether the user has named a folder of other data."""
    fields = [field.name for field in dataclasses.fields(family)] if dataclasses.is_dataclass(family) else []
    pairs = [(getattr(family, name), getattr(trained_on, name)) for name in fields]
    return any(one != other for one, other in pairs if isinstance(one, Path))
