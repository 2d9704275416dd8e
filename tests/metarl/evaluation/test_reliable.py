"""Measures of few runs, against obvious versions in numpy and scipy, and known cases."""

import numpy as np
import pytest
from scipy import stats

from metarl.evaluation import over_seeds, reliable

NOISE = np.random.default_rng(0)
ONE, OTHER = NOISE.normal(size=(3, 10)), NOISE.normal(0.4, 1, size=(4, 10))


def test_the_interquartile_mean_is_the_trimmed_mean_of_all_scores() -> None:
    for scores in (ONE, OTHER, ONE[:, :1], ONE[:1, :7]):
        expected = stats.trim_mean(scores, proportiontocut=0.25, axis=None)
        assert reliable.interquartile_mean(scores).value == pytest.approx(expected)


def test_differences_are_those_of_means_over_seeds_on_the_same_tasks() -> None:
    found = reliable.paired_difference(ONE, OTHER)
    assert found.value == pytest.approx((OTHER.mean(0) - ONE.mean(0)).mean())
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    swapped = reliable.paired_difference(OTHER, ONE)
    assert swapped.value == pytest.approx(-found.value)


def test_pairing_takes_out_what_tasks_differ_by() -> None:
    tasks = 100 * np.arange(10.0)
    apart = reliable.paired_difference(tasks + ONE[:1], tasks + ONE[:1] + 1)
    assert apart == pytest.approx((1, 1, 1)), "a constant difference on every task has no uncertainty"
    noisy = reliable.paired_difference(ONE[:1], OTHER[:1])
    shifted = reliable.paired_difference(tasks + ONE[:1], tasks + OTHER[:1])
    assert shifted == pytest.approx(noisy), "the tasks' own levels do not matter"


def test_improvement_is_mann_and_whitneys_u_for_every_task() -> None:
    u = [stats.mannwhitneyu(OTHER[:, task], ONE[:, task]).statistic / (3 * 4) for task in range(10)]
    found = reliable.probability_of_improvement(ONE, OTHER)
    assert found.value == pytest.approx(np.mean(u))
    assert reliable.probability_of_improvement(ONE, OTHER, falls=True).value == pytest.approx(1 - np.mean(u))
    assert reliable.probability_of_improvement(ONE, ONE[:1] * 0 + ONE[:1]).value == pytest.approx(
        np.mean([np.mean((ONE[:1] > ONE) + 0.5 * (ONE[:1] == ONE), axis=0)])
    )


def test_a_run_that_always_wins_improves_surely() -> None:
    assert reliable.probability_of_improvement(ONE, ONE + 100) == (1, 1, 1)
    assert reliable.probability_of_improvement(ONE, ONE + 100, falls=True) == (0, 0, 0)
    assert reliable.probability_of_improvement(ONE[:1], ONE[:1]).value == 0.5


def test_intervals_are_those_of_the_nested_bootstrap() -> None:
    metrics = [{"return/step_0": {"per_task": row.tolist()}} for row in ONE]
    joined = over_seeds(metrics)["return/step_0"]
    against_nothing = reliable.paired_difference(ONE * 0, ONE)
    width = joined["high"] - joined["low"]
    assert against_nothing.low == pytest.approx(joined["low"], abs=0.1 * width)
    assert against_nothing.high == pytest.approx(joined["high"], abs=0.1 * width)


def test_intervals_hold_what_they_say() -> None:
    """Of 200 experiments with a true difference of 0.5, about 95 % of the intervals contain it."""
    noise, held = np.random.default_rng(1), 0
    for _ in range(200):
        ours, theirs = noise.normal(size=(1, 40)), noise.normal(0.5, 1, size=(1, 40))
        found = reliable.paired_difference(ours, theirs)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.5 <= found.high
    assert 178 <= held <= 199


def test_strata_keep_the_mixture_of_tasks() -> None:
    scores, labels = np.array([[0.0, 0, 10, 10]]), [0, 0, 1, 1]
    assert reliable.paired_difference(scores * 0, scores, labels) == (5, 5, 5)
    loose = reliable.paired_difference(scores * 0, scores)
    assert loose.low is not None and loose.low < 5


def test_profiles_count_scores_beyond_each_threshold() -> None:
    scores = np.array([[1.0, 2], [3, 4]])
    assert reliable.performance_profile(scores, np.array([0, 1, 2.5, 4])).tolist() == [1, 0.75, 0.5, 0]
    assert reliable.performance_profile(scores, np.array([0, 1, 2.5, 5]), falls=True).tolist() == [0, 0, 0.5, 1]


def test_there_is_no_interval_without_scores_to_draw_from() -> None:
    assert reliable.paired_difference(ONE[:1, :1], OTHER[:1, :1])[1:] == (None, None)
    broken = ONE.copy()
    broken[0, 0] = np.nan
    for found in (reliable.interquartile_mean(broken), reliable.probability_of_improvement(broken, OTHER)):
        assert np.isnan(found.value) and found[1:] == (None, None)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same tasks, not shapes \(3, 10\) and \(4, 9\)"):
        reliable.paired_difference(ONE, OTHER[:, :9])


def test_seeds_that_diverged_are_joined_without_a_warning() -> None:
    metrics = [{"loss/step_1": {"per_task": [1.0, np.inf, 2.0]}}, {"loss/step_1": {"per_task": [1.0, np.nan, 2.0]}}]
    assert np.isnan(over_seeds(metrics)["loss/step_1"]["mean"])
