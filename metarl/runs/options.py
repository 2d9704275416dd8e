"""Frozen dataclasses of options as JSON and back: what config.json says of an algorithm, a family, an outer update."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from metarl import plugins
from metarl.runs.errors import RunError


def describe(target: Any, reference: str | None = None) -> dict[str, Any]:
    """Record a frozen dataclass, such as an algorithm or a family, as JSON: where it comes from and its options.

    ``reference`` is the name or ``module:attribute`` that the user gave; by default that of its class, by name where
    it is installed under one.

    Raises:
        ValueError: it could not be rebuilt from such a record.
    """
    group, kind = plugins.group_of(target), type(target).__qualname__
    reference = reference or plugins.name_of(group, type(target))
    try:
        options = _changed(target, _base(reference, group))
        record = {"reference": reference, "options": json.loads(json.dumps(options, default=_plain))}
        rebuilt = _options(rebuild(record, group))
    except (TypeError, ValueError, plugins.PluginError) as error:
        raise ValueError(
            f"{kind} cannot be recorded in a run folder ({error}); bind it to a name in an importable module and "
            "pass 'module:name'"
        ) from error
    lost = [name for name, value in _options(target).items() if not _same(value, rebuilt[name])]
    if lost:
        raise ValueError(
            f"{kind} cannot be recorded in a run folder: {lost[0]} would come back as {rebuilt[lost[0]]!r}; "
            "use numbers, strings, tuples and frozen dataclasses of them"
        )
    return record


def _changed(target: Any, base: Any) -> dict[str, Any]:
    """Return the options that make target from its class, or from the instance that its name stands for."""
    if target is base:
        return {}
    if not dataclasses.is_dataclass(target):
        raise TypeError(f"{type(target).__name__} is not a dataclass, whose options could be read")
    if type(target) is not (base if isinstance(base, type) else type(base)):
        raise TypeError(f"{base!r} did not make {target!r}")
    if isinstance(base, type):
        return _options(target)
    return {name: value for name, value in _options(target).items() if not _same(value, getattr(base, name))}


def _options(target: Any) -> dict[str, Any]:
    fields = dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()
    return {item.name: getattr(target, item.name) for item in fields if item.init}


def _same(one: Any, other: Any) -> bool:
    # Identity first: arrays and tensors refuse to say in one word whether they are equal.
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
    """Rebuild what ``describe`` recorded. Raises PluginError or RunError where that is impossible."""
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
            f"{record.get('reference')} cannot be made with the options that this run recorded: "
            f"{type(error).__name__}: {error}"
        ) from error


def _restored(hint: Any, value: Any) -> Any:
    for kind in (hint, *get_args(hint)):  # a dataclass may be one choice of several: Sampling | None
        if isinstance(value, dict) and dataclasses.is_dataclass(kind) and isinstance(kind, type):
            hints = get_type_hints(kind)
            return kind(**{name: _restored(hints[name], part) for name, part in value.items()})
        if isinstance(value, list) and list in (kind, get_origin(kind)):
            return value
    return _tuples(value)


def _tuples(value: Any) -> Any:
    # JSON has lists only, frozen dataclasses hold tuples unless their hints say otherwise.
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
