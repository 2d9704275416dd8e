"""Frozen dataclasses of options as JSON, and back: config.json's records of algorithms, families and outer updates."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from metarl import plugins
from metarl.runs.errors import RunError


def describe(target: Any, reference: str | None = None) -> dict[str, Any]:
    """Return a JSON record of a frozen dataclass, such as an algorithm or a family: its origin and its options.

    ``reference`` is the name or ``module:attribute`` that the user gave. By default, it is that of the class: its
    installed name if it has one.

    Raises:
        ValueError: it could not be rebuilt from this record.
    """
    group, kind = plugins.group_of(target), type(target).__qualname__
    reference = reference or plugins.name_of(group, type(target))
    try:
        options = _changed(target, _base(reference, group))
        record = {"reference": reference, "options": json.loads(json.dumps(options, default=_plain))}
        rebuilt = _options(rebuild(record, group))
    except (TypeError, ValueError, plugins.PluginError) as error:
        raise ValueError(
            f"{kind} cannot be recorded in a run folder ({error}); assign it to a name in an importable module, and "
            "pass 'module:name'"
        ) from error
    lost = [name for name, value in _options(target).items() if not _same(value, rebuilt[name])]
    if lost:
        raise ValueError(
            f"{kind} cannot be recorded in a run folder: {lost[0]} would be read back as {rebuilt[lost[0]]!r}; "
            "use numbers, strings, tuples and frozen dataclasses of them"
        )
    return record


def _changed(target: Any, base: Any) -> dict[str, Any]:
    """Return the options of target that differ from its base: a class, or the instance that its name refers to."""
    if target is base:
        return {}
    if not dataclasses.is_dataclass(target):
        raise TypeError(f"{type(target).__name__} is not a dataclass, so its options cannot be read")
    if type(target) is not (base if isinstance(base, type) else type(base)):
        raise TypeError(f"{target!r} is not of the class of {base!r}")
    if isinstance(base, type):
        return _options(target)
    return {name: value for name, value in _options(target).items() if not _same(value, getattr(base, name))}


def _options(target: Any) -> dict[str, Any]:
    fields = dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()
    return {item.name: getattr(target, item.name) for item in fields if item.init}


def _same(one: Any, other: Any) -> bool:
    # Identity first: the comparison of arrays and tensors with more than one element is no single bool.
    return one is other or bool(one == other)


def _base(reference: str, group: plugins.Group) -> Any:
    if ":" in reference:
        return plugins.find_again(group, reference)
    return plugins.load(group, reference)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    raise TypeError(f"{value!r} is not plain data")


def rebuild(record: Mapping[str, Any], group: plugins.Group) -> Any:
    """Rebuild a dataclass from a record of ``describe``. Raises PluginError or RunError if that is impossible."""
    try:
        reference, recorded = record["reference"], record["options"]
        base = _base(reference, group)
        if not isinstance(base, type) and not recorded:
            return base
        hints = get_type_hints(base if isinstance(base, type) else type(base))
        options = {name: _restored(hints[name], value) for name, value in recorded.items()}
        return base(**options) if isinstance(base, type) else dataclasses.replace(base, **options)
    except (KeyError, TypeError, NameError, AttributeError) as error:
        raise RunError(
            f"{record.get('reference')} cannot be built with the options that this run recorded: "
            f"{type(error).__name__}: {error}"
        ) from error


def _restored(hint: Any, value: Any) -> Any:
    for kind in (hint, *get_args(hint)):  # a dataclass may be part of a union, such as Sampling | None
        if isinstance(value, dict) and dataclasses.is_dataclass(kind) and isinstance(kind, type):
            hints = get_type_hints(kind)
            return kind(**{name: _restored(hints[name], part) for name, part in value.items()})
        if isinstance(value, list) and list in (kind, get_origin(kind)):
            return value
    return _tuples(value)


def _tuples(value: Any) -> Any:
    # JSON has only lists; fields of frozen dataclasses are tuples unless their type hints say list.
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
