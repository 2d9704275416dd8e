"""Schedules: their values, their text, and the fields that take them."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from metarl.plugins import Schedule, fitting, linear, parsed, stepwise, with_values


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (linear(5, 40), {0.0: 5, 0.5: 22.5, 1.0: 40}),
        (linear(0.0, 1.0, 0.0), {0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        (linear(3), {0.0: 3, 0.7: 3}),
        (stepwise({0: 4, 0.5: 8}), {0.0: 4, 0.49: 4, 0.5: 8, 1.0: 8}),
        (Schedule(((0.2, 1.0), (0.4, 2.0))), {0.0: 1.0, 0.3: 1.5, 0.4: 2.0, 0.9: 2.0}),
        (linear((0, 1), (2, 5)), {0.0: (0, 1), 0.5: (1, 3)}),
    ],
)
def test_values_lie_on_the_lines_between_points(schedule: Schedule, values: dict[float, Any]) -> None:
    for progress, value in values.items():
        assert schedule.at(progress) == pytest.approx(value)
    assert parsed(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "points", "jumps"),
    [
        ("5..40", ((0.0, 5), (1.0, 40)), False),
        ("0.1..0.5@0.8", ((0.0, 0.1), (0.8, 0.5)), False),
        ("1@0.2..-2e-3@0.4", ((0.2, 1), (0.4, -0.002)), False),
        ("4/8@0.5", ((0.0, 4), (0.5, 8)), True),
        ("1/2/3/4", ((0.0, 1), (0.25, 2), (0.5, 3), (0.75, 4)), True),
        ("0,1..0,3", ((0.0, (0, 1)), (1.0, (0, 3))), False),
        ("7", ((0.0, 7),), False),
    ],
)
def test_text_is_read(text: str, points: Any, jumps: bool) -> None:
    assert parsed(text) == Schedule(points, jumps)


@pytest.mark.parametrize(
    "text", ["", "a..b", "1..2/3", "1@0.5..2@0.5", "1@0.5..2@0.4", "1..2@1.5", "1,2..3", "nan..1", "1..inf"]
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no schedule .*such as 5\.\.40"):
        parsed(text)


@dataclass(frozen=True)
class Inner:
    horizon: int = 10


@dataclass(frozen=True)
class Options:
    rate: float = 1  # an integer by accident: still a float
    count: int | None = 3
    none: int | None = None
    flag: bool = True
    span: tuple[float, float] = (0.0, 2.0)
    name: str = "x"
    inner: Inner = field(default_factory=Inner)


def test_fields_take_their_own_types() -> None:
    assert fitting(Options(), "rate", 2) == 2.0 and type(fitting(Options(), "rate", 2)) is float
    assert [fitting(Options(), "count", value) for value in (2.4, 2.6)] == [2, 3]
    assert fitting(Options(), "inner.horizon", 7.6) == 8
    assert fitting(Options(), "span", (1, 3)) == (1.0, 3.0)
    changed = with_values(Options(), {"inner.horizon": 8, "rate": 0.5})
    assert changed == Options(rate=0.5, inner=Inner(8))
    for name in ("none", "flag", "name", "span", "inner"):
        with pytest.raises(ValueError, match=f"Options.{name} is .*only numbers"):
            fitting(Options(), name, 1)
    with pytest.raises(ValueError, match="Inner has no field 'horizons'"):
        fitting(Options(), "inner.horizons", 1)
