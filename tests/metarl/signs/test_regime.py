"""When a run is called hopeless, and when not."""

import warnings
from typing import Any

import pytest

from metarl.signs import Regime
from metarl.signs.regime import hopeless

HEALTHY = {"signs/clipped_actions": 0.3, "signs/action_std": 1.0, "signs/inner_signal": 0.5, "return/step_1": -10.0}
NOISE = [0.05, -0.04, 0.03, -0.06, 0.02]


def rows(count: int = 20, **changes: Any) -> list[dict[str, float]]:
    """Rows of a run; a change is a number, or what it is in iteration k."""
    return [
        {"iteration": number}
        | HEALTHY
        | {f"{name}".replace("__", "/"): value(number) if callable(value) else value for name, value in changes.items()}
        for number in range(1, count + 1)
    ]


def told(given: list[dict[str, float]]) -> str | None:
    return hopeless(given[0], given)


def test_a_healthy_run_is_not_hopeless() -> None:
    assert told(rows()) is None
    assert told(rows(signs__inner_signal=0.0, return__step_1=lambda number: number)) is None  # returns rise
    assert told(rows(signs__inner_signal=0.3)) is None  # returns do not, yet
    assert told([{"iteration": number, "return/step_0": 0.0} for number in range(1, 21)]) is None  # no signs
    assert told(rows(signs__action_std=2.0)) is None  # wide from the beginning, and no wider
    assert told(rows(signs__action_std=lambda number: 0.05 * number)) is None  # grows, within the ends
    assert told(rows(signs__inner_signal=float("nan"), signs__clipped_actions=float("nan"))) is None


def test_what_was_seen_and_what_to_change_is_one_line() -> None:
    clipped = told(rows(signs__clipped_actions=0.59))
    assert clipped is not None
    assert "\n" not in clipped
    for part in ("iterations 1 to 20", "59 %", "action_scale", "squashed", "it_does_not_learn"):
        assert part in clipped.replace("%", " %")
    wide = told(rows(signs__action_std=lambda number: 1 + 0.085 * (number - 1) if number < 20 else 2.7))
    assert wide is not None
    assert "from 1 to 2.7 times" in wide
    silent = told(rows(signs__inner_signal=lambda number: NOISE[number % 5], return__step_1=lambda number: -number))
    assert silent is not None
    for part in ("cosine of 0.000", "no return rises", "episodes", "gae_lambda", "normalise_observations", "skip"):
        assert part in silent
    assert "clipped:" not in silent


def test_a_baseline_that_misjudges_is_told() -> None:
    line = told(rows(signs__explained_variance=-0.4, return__step_1=lambda number: -number))
    assert line is not None
    for part in ("worse than a constant", "explained variance -0.40", "no return rises", "baseline=time"):
        assert part in line
    assert told(rows(signs__explained_variance=-0.4, return__step_1=lambda number: number)) is None  # it learns
    assert told(rows(signs__explained_variance=-0.05)) is None  # as good as a constant: nothing to predict
    assert told(rows(signs__explained_variance=float("nan"))) is None


def test_little_signal_counts_by_its_error() -> None:
    around = rows(signs__inner_signal=lambda number: 0.05 + 10 * NOISE[number % 5])
    assert told(around) is not None  # 0.05, give or take 0.1
    assert told(rows(signs__inner_signal=lambda number: 0.05 + 0.1 * NOISE[number % 5])) is None


def test_a_run_is_told_once() -> None:
    regime = Regime()
    with pytest.warns(UserWarning, match="59%"):
        for row in rows(20, signs__clipped_actions=0.59):
            regime.see(row)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in rows(200, signs__clipped_actions=0.59):
            regime.see(row)


def test_only_first_iterations_are_judged() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed, late = Regime(begins=False), Regime()
        for row in rows(100, signs__clipped_actions=0.59):
            resumed.see(row)
        for row in rows(100):
            late.see(row)
        for row in rows(100, signs__clipped_actions=0.59):
            late.see(row)
    growing = Regime()
    with pytest.warns(UserWarning, match="iterations 61 to 80"):
        for row in rows(100, signs__clipped_actions=lambda number: 0.3 if number <= 60 else 0.59):
            growing.see(row)
