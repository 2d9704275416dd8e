"""What options may hold: one rule for every dataclass of options, in Python, on the command line and in files.

Integers where integers are due, finite numbers, and paths that mean the same folder later. NumPy's numbers become
Python's, and lists become tuples where the type hint says tuple.
"""

import dataclasses
import math
import os
import types
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from metarl.plugins.schedules import MISPLACED, Schedule

Options = TypeVar("Options")

_EXPECTED = {int: "an integer", float: "a finite number", bool: "True or False", str: "text", type(None): "None"}


class _Misfit(Exception):
    """A value that is not what its type hint says; tells what was expected."""


def checked_options(target: Options) -> Options:
    """Return a frozen dataclass of options, with NumPy's numbers as Python's; other objects as they are.

    A field's default is taken as it is, whatever its type hint says.

    Raises:
        ValueError: an option has the wrong type, or is a number that is not finite.
    """
    changes = checked_fields(target)
    return dataclasses.replace(target, **changes) if changes else target  # type: ignore[type-var]


def checked_fields(target: Any, prefix: str = "") -> dict[str, Any]:
    """Return the fields whose values ``checked_options`` replaces. Raises ValueError as that does."""
    if not dataclasses.is_dataclass(target) or isinstance(target, type):
        return {}
    try:
        hints = get_type_hints(type(target))
    except (NameError, TypeError, AttributeError):  # hints that only type checkers can read
        return {}
    changes = {}
    for field in dataclasses.fields(target):
        value = getattr(target, field.name)
        if not field.init:
            continue
        if isinstance(value, Schedule):
            raise ValueError(f"{type(target).__qualname__}: {prefix}{field.name}: {MISPLACED}")
        try:
            plain = _checked(hints[field.name], value, f"{prefix}{field.name}.", field.default)
        except _Misfit as misfit:
            shown = f"{prefix}{field.name}={shortened(value)}"
            raise ValueError(f"{type(target).__qualname__}: {shown}: expected {misfit}") from None
        if plain is not value:
            changes[field.name] = plain
    return changes


def fitted(hint: Any, value: Any) -> Any:
    """Return a value as its type hint wants it. Raises ValueError, which says what was expected."""
    try:
        return _checked(hint, value, "", dataclasses.MISSING)
    except _Misfit as misfit:
        raise ValueError(f"expected {misfit}") from None


def absolute_paths(target: Options) -> Options:
    """Return options whose relative paths are absolute where something is there: they mean the same data everywhere."""
    if not dataclasses.is_dataclass(target) or isinstance(target, type):
        return target
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(target):
        value = getattr(target, field.name)
        if field.init and isinstance(value, Path) and not value.is_absolute():
            found = Path(os.path.abspath(os.path.expanduser(value)))  # which raises nothing
            changes |= {field.name: found} if found.exists() else {}
        elif field.init and (nested := absolute_paths(value)) is not value:
            changes[field.name] = nested
    return dataclasses.replace(target, **changes) if changes else target


def shortened(value: Any) -> str:
    """Return a value's repr on one line, or its type where that would be long, as with tensors and tables."""
    if isinstance(value, bool | int | float | str | Path | None):
        shown = repr(value)
        return shown if len(shown) <= 80 else f"{shown[:80]}..."
    shown = repr(value) if isinstance(value, tuple | list) and len(value) <= 8 else ""
    return shown if shown and len(shown) <= 80 and "\n" not in shown else f"<{type(value).__name__}>"


def _checked(hint: Any, value: Any, prefix: str, default: Any) -> Any:
    value = _number(value)
    if _is_default(value, default):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = checked_fields(value, prefix)
        return dataclasses.replace(value, **changes) if changes else value
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _checked(parts[0], value, prefix, default)
    if kind in (Union, types.UnionType):
        return _one_of(parts, value, prefix)
    if kind is Literal:
        if not any(type(part) is type(value) and part == value for part in parts):
            raise _Misfit(f"one of {', '.join(map(str, parts))}")
        return value
    if kind is tuple or hint is tuple:
        return _tuple(parts, value, prefix)
    return _simple(hint, value)


def _is_default(value: Any, default: Any) -> bool:
    if type(value) is not type(default) or not isinstance(value, int | float | str):
        return value is default
    return value == default or (value != value and default != default)  # nan is not equal to itself


def _simple(hint: Any, value: Any) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    fits = {
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
        type(None): value is None,
    }
    if isinstance(hint, type) and not fits.get(hint, True):
        raise _Misfit(_EXPECTED[hint])
    if dataclasses.is_dataclass(hint):  # the value is none
        raise _Misfit(f"an object of {hint.__name__}")  # type: ignore[union-attr]
    return value


def _one_of(hints: tuple[Any, ...], value: Any, prefix: str) -> Any:
    """Return a value as the first of several hints that it fits wants it; none may be changed for another's sake."""
    expected, changed = list[str](), list[Any]()
    for hint in hints:
        try:
            plain = _checked(hint, value, prefix, dataclasses.MISSING)
        except _Misfit as misfit:
            expected.append(str(misfit))
            continue
        if plain is value:
            return value
        changed.append(plain)
    if changed:
        return changed[0]
    raise _Misfit(" or ".join(dict.fromkeys(expected)))


def _tuple(parts: tuple[Any, ...], value: Any, prefix: str) -> Any:
    if not isinstance(value, tuple | list):
        raise _Misfit("a tuple")
    endless = len(parts) == 2 and parts[1] is Ellipsis
    hints = parts[:1] * len(value) if endless else parts or (Any,) * len(value)
    if len(hints) != len(value):
        raise _Misfit(f"a tuple of {len(hints)}")
    try:
        plain = tuple(
            _checked(hint, part, prefix, dataclasses.MISSING) for hint, part in zip(hints, value, strict=True)
        )
    except _Misfit as misfit:
        raise _Misfit(f"a tuple, each of it {misfit}") from None
    if isinstance(value, list) or any(one is not other for one, other in zip(plain, value, strict=True)):
        # A NamedTuple stays one.
        return type(value)(*plain) if hasattr(value, "_fields") else plain
    return value


def _number(value: Any) -> Any:
    """Return a scalar of NumPy's as Python's. The package is not imported for it: listing plugins stays fast."""
    is_scalar = type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if is_scalar else value
