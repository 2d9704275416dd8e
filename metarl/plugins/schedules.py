"""Numbers that change with the progress of training: schedules of options, as text and by the names of fields."""

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Union, get_args, get_origin, get_type_hints

Value = float | tuple[float, ...]
"""A number, or a tuple of numbers, such as the ends of a range."""

_EXPECTED = (
    "expected values with '..' between them for a straight line, or '/' for jumps, such as 5..40, 0.1..0.5@0.8 or "
    "4/8@0.5; @ is a share of the training, from 0 to 1"
)


MISPLACED = (
    "a schedule stands in place of a number: give the number that counts at test here, and the schedule by name, as in "
    "Settings(schedules={'tasks.FIELD': ...})"
)


@dataclass(frozen=True)
class Schedule:
    """A number, or a tuple of numbers, that changes with the progress of training, from 0 to 1.

    ``linear`` and ``stepwise`` make one. As text, on the command line and in ``config.json``, it is ``5..40`` (a
    straight line from 5 to 40), ``5..40@0.5`` (until half of the training, then 40), or ``4/8@0.5`` (4, and 8 from half
    of the training on). Before the first point, its value counts; after the last one, that of the last.

    Raises:
        ValueError: there are no points, their progress does not rise from 0 or more to 1 or less, or their values are
            not finite numbers, one each or equally many.
    """

    points: tuple[tuple[float, Value], ...]
    """Pairs of progress and value."""
    jumps: bool = False
    """Whether a value holds until the next point. Otherwise, values between two points lie on the line between them."""

    def __post_init__(self) -> None:
        places = [place for place, _ in self.points]
        sizes = {len(value) if isinstance(value, tuple) else None for _, value in self.points}
        numbers = [*places, *(number for _, value in self.points for number in _numbers(value))]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"the schedule {self.points} holds something else than finite numbers")
        if len(sizes) != 1:
            raise ValueError(f"the schedule {self.points} needs values of one size, one at least")
        if not (all(one < other for one, other in pairwise(places)) and places[0] >= 0 and places[-1] <= 1):
            raise ValueError(f"the schedule {self} names progress {places}: expected rising numbers from 0 to 1")

    def at(self, progress: float) -> Value:
        """Return the value at a share of the training, from 0 to 1."""
        before = [point for point in self.points if point[0] <= progress]
        after = [point for point in self.points if point[0] > progress]
        if not before or not after or self.jumps:
            return (before[-1] if before else after[0])[1]
        (place, value), (next_place, next_value) = before[-1], after[0]
        share = (progress - place) / (next_place - place)
        between = [a + (b - a) * share for a, b in zip(_numbers(value), _numbers(next_value), strict=True)]
        return tuple(between) if isinstance(value, tuple) else between[0]

    def __lt__(self, other: object) -> bool:
        """Raise ValueError: options compare the numbers that they hold, and tell where a schedule belongs instead."""
        raise ValueError(MISPLACED)

    __le__ = __gt__ = __ge__ = __lt__

    def __str__(self) -> str:
        """Return the schedule as text, from which ``parsed`` makes it again."""
        return ("/" if self.jumps else "..").join(
            f"{','.join(map(repr, _numbers(value)))}@{place!r}" for place, value in self.points
        )


def linear(*values: Value) -> Schedule:
    """Return a schedule through values at equal distances, the first when training begins and the last at its end."""
    return Schedule(tuple((index / max(len(values) - 1, 1), value) for index, value in enumerate(values)))


def stepwise(values: Mapping[float, Value]) -> Schedule:
    """Return a schedule that jumps: ``stepwise({0: 4, 0.5: 8})`` is 4, and 8 from half of the training on."""
    return Schedule(tuple(sorted(values.items())), jumps=True)


def parsed(text: str) -> Schedule:
    """Return the schedule of a text, see ``Schedule``. Raises ValueError for a text that is none.

    Where a point names no place, places are those of equal distances.
    """
    jumps = "/" in text
    words = text.split("/" if jumps else "..")
    try:
        if jumps and ".." in text:
            raise ValueError("it has lines and jumps")
        points = [word.partition("@") for word in words]
        last = len(words) if jumps else max(len(words) - 1, 1)
        places = [float(place) if mark else index / last for index, (_, mark, place) in enumerate(points)]
        return Schedule(tuple(zip(places, [_value(value) for value, _, _ in points], strict=True)), jumps)
    except ValueError as error:
        raise ValueError(f"{text!r} is no schedule ({error}): {_EXPECTED}") from None


def checked_schedules(given: Any, parts: Sequence[str], numbers: Sequence[str]) -> dict[str, Schedule]:
    """Return schedules by the names of fields, made of schedules or texts.

    ``parts`` are the objects whose fields may be named, after a dot, and ``numbers`` other names.

    Raises:
        ValueError: it is no dictionary, or a name or a text is wrong.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"schedules={given!r}: expected a dictionary from names, such as tasks.FIELD, to schedules")
    found = {}
    for name, schedule in given.items():
        plain = str(name).replace("-", "_")
        part, dot, field = plain.partition(".")
        if plain not in numbers and not (part in parts and dot and field):
            named = ", ".join([*numbers, *(f"{part}.FIELD" for part in parts)])
            raise ValueError(f"schedules names {name!r}: expected some of {named}")
        if not isinstance(schedule, Schedule | str):
            raise ValueError(f"schedules[{name!r}] is {schedule!r}: expected a Schedule, or a text such as '5..40'")
        found[plain] = parsed(schedule) if isinstance(schedule, str) else schedule
    return found


def fitting(target: Any, name: str, value: Value) -> Value:
    """Return a value as a field, named with dots, takes it: rounded where the field holds an integer.

    Raises:
        ValueError: there is no such field, or it holds no number.
    """
    holder, *rest = name.split(".", 1)
    if not dataclasses.is_dataclass(target) or holder not in {item.name for item in dataclasses.fields(target)}:
        raise ValueError(f"{type(target).__name__} has no field {holder!r} to be scheduled")
    if rest:
        return fitting(getattr(target, holder), rest[0], value)
    found = _as(get_type_hints(type(target))[holder], getattr(target, holder), value)
    if found is None:
        raise ValueError(
            f"{type(target).__name__}.{holder} is {getattr(target, holder)!r}: only numbers, and tuples of as many "
            "numbers as the schedule has, can be scheduled"
        )
    return found


def with_values(target: Any, values: Mapping[str, Value]) -> Any:
    """Return a frozen dataclass with other values of some fields, named with dots, such as ``sampling.horizon``."""
    for name, value in values.items():
        holder, *rest = name.split(".", 1)
        inner = with_values(getattr(target, holder), {rest[0]: value}) if rest else value
        target = dataclasses.replace(target, **{holder: inner})
    return target


def _numbers(value: Value) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _value(word: str) -> Value:
    numbers = tuple(int(part) if part.strip().lstrip("+-").isdecimal() else float(part) for part in word.split(","))
    return numbers if len(numbers) > 1 else numbers[0]


def _as(hint: Any, current: Any, value: Value) -> Value | None:
    """Return a value with the type of a field; None where the field holds no such number."""
    if isinstance(current, tuple) and isinstance(value, tuple) and len(current) == len(value):
        hints = [part for part in _kinds(hint) if get_origin(part) is tuple]
        inner = get_args(hints[0]) if hints else ()
        each = inner if len(inner) == len(value) and Ellipsis not in inner else (inner[:1] or (Any,)) * len(value)
        parts = [_as(one, *pair) for one, *pair in zip(each, current, value, strict=True)]
        return None if None in parts else tuple(parts)  # type: ignore[arg-type]
    if isinstance(value, tuple) or isinstance(current, bool) or not isinstance(current, int | float):
        return None
    if float in _kinds(hint) or isinstance(current, float):
        return float(value)
    return round(value)


def _kinds(hint: Any) -> Iterator[Any]:
    yield from (get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))
