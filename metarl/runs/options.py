"""Frozen dataclasses of options as JSON, and back: config.json's records, and what two of them differ in."""

import dataclasses
import json
import math
import sys
import types
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from metarl import plugins
from metarl.runs.layout import GROUPS, RunError

_MAIN = "__main__:"
_ALLOWED = "use numbers, text, paths, enums, and tuples and frozen dataclasses of them, with a type hint for each"


def describe(target: Any, reference: str | None = None) -> dict[str, Any]:
    """Return a JSON record of a frozen dataclass, such as an algorithm or a family: its origin and its options.

    ``reference`` is the name or ``module:attribute`` that the user gave. By default, it is that of the class: its
    installed name if it has one.

    Raises:
        ValueError: it could not be rebuilt from this record.
    """
    group, kind = plugins.group_of(target), type(target).__qualname__
    reference = reference or plugins.name_of(group, type(target))
    if reference.startswith(_MAIN):
        raise ValueError(
            f"{kind} is defined in the script or notebook that is running, where no other process finds it: move it "
            "into a module of its own and import it from there, or train without a run folder"
        )
    target = plugins.absolute_paths(plugins.checked_options(target))
    try:
        options = _changed(target, _base(reference, group))
        record = {"reference": reference, "options": _recorded(options)}
        rebuilt = _options(rebuild(record, group))
    except (TypeError, ValueError, plugins.PluginError) as error:
        raise ValueError(f"{kind} cannot be recorded in a run folder: {error}; {_advice(target)}") from None
    for name, value in _options(target).items():
        if not _same(value, rebuilt[name]):
            ours, theirs = (f"{plugins.shortened(one)} ({type(one).__qualname__})" for one in (value, rebuilt[name]))
            raise ValueError(
                f"{kind} cannot be recorded in a run folder: its option {name} is {ours}, and would be read back as "
                f"{theirs}; {_ALLOWED}"
            )
    return record


def _advice(target: Any) -> str:
    """Return how the user can pass an object so that it is found again."""
    for name, module in list(sys.modules.items()):
        for attribute, value in list(vars(module).items()) if isinstance(module, types.ModuleType) else ():
            if value is target and name != "__main__" and not attribute.startswith("_"):
                return f"pass '{name}:{attribute}' instead of the object"
    return "assign it to a name in an importable module, and pass 'module:name' instead of the object"


def _changed(target: Any, base: Any) -> dict[str, Any]:
    """Return the options of target that differ from its base: a class, or the instance that its name refers to."""
    if target is base:
        return {}
    if not dataclasses.is_dataclass(target):
        raise TypeError(f"{type(target).__name__} is not a dataclass, so its options cannot be read")
    if type(target) is not (base if isinstance(base, type) else type(base)):
        raise TypeError(f"that name refers to {plugins.shortened(base)}, which is of another class")
    if isinstance(base, type):
        return _options(target)
    return {name: value for name, value in _options(target).items() if not _same(value, getattr(base, name))}


def _options(target: Any) -> dict[str, Any]:
    fields = dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()
    return {item.name: getattr(target, item.name) for item in fields if item.init}


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and have the same types: 1 is neither True nor a member of an IntEnum."""
    # Identity first: the comparison of arrays and tensors with more than one element is no single bool.
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        return all(_same(value, _options(other)[name]) for name, value in _options(one).items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return False


def _base(reference: str, group: plugins.Group) -> Any:
    if ":" in reference:
        return plugins.find_again(group, reference)
    return plugins.load(group, reference)


def _recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as plain data. Raises TypeError, with the name of the first that is none."""
    recorded = {}
    for name, value in options.items():
        try:
            recorded[name] = json.loads(json.dumps(_plain(value)))
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"its option {name} holds {error}") from None
    return recorded


def _plain(value: Any) -> Any:
    """Return a value as JSON has it. Raises TypeError, which names the type that has no such form."""
    if isinstance(value, Enum):
        return value.name if value.name in type(value).__members__ else _plain(value.value)
    if isinstance(value, str) and value.startswith(_MAIN):
        raise TypeError(f"{value!r}, of the script that is running, which no other process finds")
    if type(value) in (str, int, float, bool, type(None)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(part) for name, part in _options(value).items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(part) for name, part in zip(value._fields, value, strict=True)}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(part) for part in value), key=json.dumps)
    if type(value) is dict:
        return {name: _plain(part) for name, part in value.items()}
    raise TypeError(f"a {type(value).__qualname__}, which is not plain data")


def rebuild(record: Mapping[str, Any], group: plugins.Group) -> Any:
    """Rebuild a dataclass from a record of ``describe``. Raises PluginError or RunError if that is impossible."""
    try:
        reference, recorded = record["reference"], record["options"]
        base = _base(reference, group)
        if not isinstance(base, type) and not recorded:
            return base
        hints = get_type_hints(base if isinstance(base, type) else type(base))
        options = {name: _restored(hints[name], value) for name, value in recorded.items()}
        return plugins.checked_options(
            base(**options) if isinstance(base, type) else dataclasses.replace(base, **options)
        )
    except (RunError, plugins.PluginError):
        raise
    except Exception as error:  # what its constructor makes of options that are wrong
        raise RunError(
            f"{record.get('reference')} cannot be built with the options that this run recorded: "
            f"{type(error).__name__}: {error}"
        ) from error


def _restored(hint: Any, value: Any) -> Any:
    """Return a value read from JSON with the type of its hint. Lists become tuples, unless the hint says list."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return _restored(_choice(parts, value), value)
    if isinstance(kind, type) and issubclass(kind, Enum) and value is not None:
        return kind[value] if value in kind.__members__ else kind(value)
    if isinstance(kind, type) and issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    if isinstance(value, dict):
        if _has_fields(kind):
            hints = get_type_hints(kind)
            return kind(**{name: _restored(hints.get(name, Any), part) for name, part in value.items()})
        each = parts[1] if len(parts) == 2 else Any
        return {name: _restored(each, part) for name, part in value.items()}
    return _collected(kind, parts, value) if isinstance(value, list) else value


def _collected(kind: Any, parts: tuple[Any, ...], values: list[Any]) -> Any:
    if kind is tuple and parts and parts[-1] is not Ellipsis and len(parts) == len(values):
        return tuple(map(_restored, parts, values))
    each = parts[0] if parts else Any
    restored = [_restored(each, value) for value in values]
    if isinstance(kind, type) and hasattr(kind, "_fields"):
        return kind(*restored)  # as earlier versions recorded a NamedTuple
    return kind(restored) if kind in (list, set, frozenset) else tuple(restored)


def _choice(hints: tuple[Any, ...], value: Any) -> Any:
    """Return the one of several type hints that a value read from JSON is of, as far as the value tells."""
    for hint in hints:
        kind = get_origin(hint) or hint
        if isinstance(value, dict):
            fits = _has_fields(kind) and set(value) <= set(get_type_hints(kind))
        elif isinstance(value, list):
            fits = kind in (tuple, list, set, frozenset) or hasattr(kind, "_fields")
        else:
            fits = kind is type(value)
        if fits:
            return hint
    apart = [hint for hint in hints if isinstance(hint, type) and issubclass(hint, Enum | PurePath)]
    return apart[0] if apart and isinstance(value, str | int) and not isinstance(value, bool) else Any


def _has_fields(kind: Any) -> bool:
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"))


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
    for part in GROUPS:
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
