"""What an option of a search space may be: numbers in a range, choices, or lists of them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

KEYS = {"low", "high", "log", "choices", "each", "length"}


class Draws(Protocol):
    """What draws the values of a trial: a ``Trial`` of Optuna, say."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return a whole number from ``low`` to ``high``."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number from ``low`` to ``high``."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of several."""


class Numbers(NamedTuple):
    """Numbers from ``low`` to ``high``, both included; whole ones if both are."""

    low: float
    high: float
    log: bool = False
    """Whether each factor is equally likely, rather than each difference."""
    grows: bool = False
    """For lengths: whether the longest allowed grows from ``low`` to ``high`` in the course of the search."""

    def draw(self, draws: Draws, name: str, share: float = 1.0) -> float:
        """Draw a number. ``share`` is how much of the search is done, 0 to 1."""
        if not isinstance(self.low, int) or not isinstance(self.high, int):
            return draws.suggest_float(name, self.low, self.high, log=self.log)
        most = min(self.high, self.low + int(share * (self.high - self.low + 1))) if self.grows else self.high
        return draws.suggest_int(name, self.low, most, log=self.log)


class Choices(NamedTuple):
    """One of several values; a single one is fixed."""

    values: tuple[Any, ...]

    def draw(self, draws: Draws, name: str) -> Any:
        """Draw a value."""
        if len(self.values) == 1:
            return self.values[0]
        labels = {_label(value): value for value in self.values}
        return labels[draws.suggest_categorical(name, list(labels))]


class Lists(NamedTuple):
    """Lists whose elements are drawn one by one."""

    each: Numbers | Choices
    length: Numbers | str
    """How long they are, or the option before it in the same table whose length they have."""


Range = Numbers | Choices | Lists
Table = Mapping[str, Any]
"""Options by name: a ``Range``, or a table of nested options."""


def parsed(contents: Mapping[str, Any], where: str) -> Table:
    """Return the ranges of a table from TOML. Raises ValueError, which begins with ``where``."""
    table: dict[str, Any] = {}
    for name, value in contents.items():
        inside = f"{where}.{name}"
        nested = isinstance(value, Mapping) and not KEYS & set(value)
        table[name] = parsed(value, inside) if nested else _range(value, inside)
        told = table[name].length if isinstance(table[name], Lists) else None
        if isinstance(told, str) and not isinstance(table.get(told), Lists):
            raise ValueError(f"{inside}: length={told!r}: expected a list of this table that stands before it")
    return table


def drawn(table: Table, draws: Draws, prefix: str, share: float = 1.0) -> dict[str, Any]:
    """Draw all options of a table, as nested dictionaries. ``share`` is how much of the search is done."""
    values: dict[str, Any] = {}
    for name, item in table.items():
        full = f"{prefix}.{name}"
        if isinstance(item, Lists):
            length = (
                len(values[item.length])
                if isinstance(item.length, str)
                else int(item.length.draw(draws, f"{full}.length", share))
            )
            values[name] = [item.each.draw(draws, f"{full}.{index}") for index in range(length)]
        elif isinstance(item, Numbers | Choices):
            values[name] = item.draw(draws, full)
        else:
            values[name] = drawn(item, draws, full, share)
    return values


def without(table: Table, dotted: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Return a table without the options of these dotted names. A table that becomes empty is left out."""
    kept: dict[str, Any] = {}
    for name, item in table.items():
        full = f"{prefix}{name}"
        if full in dotted:
            continue
        inner = without(item, dotted, f"{full}.") if isinstance(item, Mapping) else item
        if inner != {}:
            kept[name] = inner
    return kept


class _Ends:
    """Draws the lower end of each range, and other values where they are given; remembers all ends by name."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given, self.ends = given, dict[str, Sequence[Any]]()

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self._picked(name, (low, high)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self._picked(name, (low, high)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._picked(name, choices)

    def _picked(self, name: str, ends: Sequence[Any]) -> Any:
        self.ends[name] = ends
        return self.given.get(name, ends[0])


def corners(table: Table) -> list[dict[str, Any]]:
    """Return the options at the lower ends of all ranges, and with each other end and choice, one at a time."""
    lowest = _Ends({})
    found = [drawn(table, lowest, "")]
    for name, ends in lowest.ends.items():
        found += [drawn(table, _Ends({name: end}), "") for end in ends[1:]]
    return found


def _range(value: Any, where: str) -> Range:
    if not isinstance(value, Mapping):
        return Choices((_plain(value),))
    if "each" in value:
        return _lists(value, where)
    if "choices" in value:
        _only(value, {"choices"}, where)
        choices = value["choices"]
        if not isinstance(choices, list | tuple) or not choices:
            raise ValueError(f"{where}: choices={choices!r}: expected a list of at least one value")
        return Choices(tuple(map(_plain, choices)))
    return _numbers(value, where)


def _lists(value: Mapping[str, Any], where: str) -> Lists:
    _only(value, {"each", "length"}, where)
    each, length = _range(value["each"], f"{where}.each"), value.get("length")
    if isinstance(each, Lists):
        raise ValueError(f"{where}.each: expected numbers or choices, not lists")
    if isinstance(length, str):
        return Lists(each, length)
    if not isinstance(length, Mapping):
        raise ValueError(f"{where}: length={length!r}: expected low and high, or the name of another list")
    told = _numbers(length, f"{where}.length", {"grows"})
    if not isinstance(told.low, int) or not isinstance(told.high, int) or told.low < 0:
        raise ValueError(f"{where}.length: low={told.low!r} and high={told.high!r}: expected whole numbers from 0")
    return Lists(each, told)


def _numbers(value: Mapping[str, Any], where: str, more: set[str] = frozenset()) -> Numbers:  # type: ignore[assignment]
    _only(value, {"low", "high", "log", *more}, where)
    for name in ("low", "high"):
        number = value.get(name)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"{where}: {name}={number!r}: expected a finite number")
    for name in {"log", *more} & set(value):
        if not isinstance(value[name], bool):
            raise ValueError(f"{where}: {name}={value[name]!r}: expected true or false")
    told = Numbers(**value)
    if not told.low <= told.high:
        raise ValueError(f"{where}: low={told.low!r} is above high={told.high!r}: the range is empty")
    if told.log and told.low <= 0:
        raise ValueError(f"{where}: low={told.low!r} with log=true: expected a number above 0")
    return told


def _only(value: Mapping[str, Any], known: set[str], where: str) -> None:
    if strange := sorted(set(value) - known):
        raise ValueError(f"{where} has {strange[0]!r}: expected {', '.join(sorted(known))}")


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _label(value: Any) -> Any:
    """Return what Optuna can keep of a choice: numbers and text as they are, lists as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
