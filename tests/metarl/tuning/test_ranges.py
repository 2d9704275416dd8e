"""What an option of a search space may be, and how it is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from metarl.tuning.ranges import Choices, Lists, Numbers, corners, drawn, parsed, without


class Given:
    """Draws what is given by name; remembers what it was asked."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.asked = values, dict[str, Any]()

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.asked[name] = low, high, log
        return int(self.values.get(name, high))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked[name] = low, high, log
        return float(self.values.get(name, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked[name] = tuple(choices)
        return self.values.get(name, choices[-1])


CONTENTS = {
    "step_size": {"low": 0.01, "high": 1.0, "log": True},
    "steps": {"low": 1, "high": 5},
    "first_order": True,
    "network": {
        "hidden": {"each": {"choices": [8, 16]}, "length": {"low": 1, "high": 3, "grows": True}},
        "kernels": {"each": {"low": 1, "high": 5}, "length": "hidden"},
        "activation": {"choices": ["relu", "tanh"]},
        "widths": {"choices": [[40, 40], [64]]},
    },
}


def test_tables_are_read() -> None:
    assert parsed(CONTENTS, "algorithm") == {
        "step_size": Numbers(0.01, 1.0, True),
        "steps": Numbers(1, 5),
        "first_order": Choices((True,)),
        "network": {
            "hidden": Lists(Choices((8, 16)), Numbers(1, 3, grows=True)),
            "kernels": Lists(Numbers(1, 5), "hidden"),
            "activation": Choices(("relu", "tanh")),
            "widths": Choices(([40, 40], [64])),
        },
    }


def test_options_are_drawn_by_their_dotted_names() -> None:
    given = Given({"algorithm.network.hidden.length": 2, "algorithm.network.hidden.0": 8})
    values = drawn(parsed(CONTENTS, ""), given, "algorithm")
    assert values == {
        "step_size": 1.0, "steps": 5, "first_order": True,
        "network": {"hidden": [8, 16], "kernels": [5, 5], "activation": "tanh", "widths": [64]},
    }  # fmt: skip
    assert given.asked["algorithm.step_size"] == (0.01, 1.0, True)
    assert given.asked["algorithm.network.widths"] == ("[40, 40]", "[64]"), "what Optuna can keep"
    assert "algorithm.first_order" not in given.asked, "it is fixed"


@pytest.mark.parametrize(("share", "most"), [(0.0, 1), (0.32, 1), (0.34, 2), (0.66, 2), (0.67, 3), (0.99, 3), (1.0, 3)])
def test_lengths_that_grow_reach_the_longest_in_equal_parts_of_the_search(share: float, most: int) -> None:
    given = Given({})
    drawn(parsed(CONTENTS, ""), given, "algorithm", share)
    assert given.asked["algorithm.network.hidden.length"] == (1, most, False)


def test_corners_have_each_end_once() -> None:
    table = parsed({"a": {"low": 0.0, "high": 1.0}, "b": {"choices": [1, 2, 3]}, "c": 7}, "")
    assert corners(table) == [
        {"a": 0.0, "b": 1, "c": 7}, {"a": 1.0, "b": 1, "c": 7}, {"a": 0.0, "b": 2, "c": 7}, {"a": 0.0, "b": 3, "c": 7},
    ]  # fmt: skip


def test_options_are_left_out_and_lists_that_follow_them() -> None:
    table = parsed(CONTENTS, "")
    assert list(without(table, ["steps", "network.hidden"])["network"]) == ["activation", "widths"]
    assert without(parsed({"network": {"activation": "relu"}}, ""), ["network.activation"]) == {}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"low": 1.0, "high": 0.5}, "low=1.0 is above high=0.5: the range is empty"),
        ({"low": 0.0, "high": 0.5, "log": True}, "low=0.0 with log=true: expected a number above 0"),
        ({"low": 1.0}, "high=None: expected a finite number"),
        ({"low": "a", "high": 1}, "low='a': expected a finite number"),
        ({"low": True, "high": 1}, "low=True: expected a finite number"),
        ({"low": 0, "high": float("inf")}, "high=inf: expected a finite number"),
        ({"low": 0, "high": 1, "log": 1}, "log=1: expected true or false"),
        ({"low": 0, "high": 1, "step": 1}, "has 'step': expected high, log, low"),
        ({"low": 1, "high": 2, "grows": True}, "has 'grows': expected high, log, low"),
        ({"choices": []}, r"choices=\[\]: expected a list of at least one value"),
        ({"choices": [1, True]}, r"1 and True are equal"),
        ({"choices": "abc"}, "choices='abc': expected a list"),
        ({"choices": [1], "low": 1}, "has 'low': expected choices"),
        ({"each": {"choices": [1]}}, "length=None: expected low and high, or the name"),
        ({"each": {"choices": [1]}, "length": "x"}, "length='x': expected a list of this table that stands before it"),
        ({"each": {"choices": [1]}, "length": {"low": 0.5, "high": 2}}, "expected whole numbers from 0"),
        ({"each": {"choices": [1]}, "length": {"low": -1, "high": 2}}, "expected whole numbers from 0"),
        ({"each": {"each": {"choices": [1]}, "length": {"low": 1, "high": 2}}, "length": "x"}, "not lists"),
    ],
)
def test_what_is_no_range_is_told(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"^FILE: algorithm\.width.*{told}"):
        parsed({"width": value}, "FILE: algorithm")
