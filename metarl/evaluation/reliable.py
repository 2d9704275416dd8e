"""Comparing evaluations of a few seeds: interquartile means, paired differences, probability of improvement, profiles.

The measures are those of Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, 2021,
arXiv:2108.13264, whose package is rliable. Scores are ``[seed, task]``. All intervals are 95 % percentile bootstraps in
which each resample draws seeds with replacement, then tasks, as in ``over_seeds``. Two runs that are compared were
evaluated on the same tasks, so a resample draws the same tasks for both, and each run's seeds by themselves.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from metarl.evaluation.bootstrap import RESAMPLES, resampled

Strata = Sequence[int] | None


class Estimate(NamedTuple):
    """A number with its 95 % interval, which a single score has not, and numbers that are not finite have not."""

    value: float
    low: float | None
    high: float | None


def interquartile_mean(scores: np.ndarray, among: Strata = None) -> Estimate:
    """Return the mean of the middle half of all scores, over seeds and tasks (arXiv:2108.13264, section 4.3).

    A quarter of the scores, rounded down, is left out at each end. It is less sensitive to a task that stands out than
    the mean, and uses more of the scores than the median.
    """
    return _estimate(lambda one, _: _middle(one), scores, scores, among)


def _middle(scores: np.ndarray) -> float:
    ordered = np.sort(scores, axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def paired_difference(one: np.ndarray, other: np.ndarray, among: Strata = None) -> Estimate:
    """Return by how much the mean score of ``other`` is above that of ``one`` on the same tasks."""
    return _estimate(lambda first, second: float(second.mean() - first.mean()), one, other, among)


def probability_of_improvement(
    one: np.ndarray, other: np.ndarray, falls: bool = False, among: Strata = None
) -> Estimate:
    """Return the probability that ``other`` is better than ``one`` on a task that is drawn at random.

    It is the mean over tasks of Mann and Whitney's U of the two runs' seeds, divided by the number of pairs; equal
    scores count half (arXiv:2108.13264, section 4.3). ``falls``: lower scores are better.
    """
    sign = -1 if falls else 1
    return _estimate(lambda first, second: _wins(sign * first, sign * second), one, other, among)


def _wins(one: np.ndarray, other: np.ndarray) -> float:
    pairs = other[:, None] - one[None]  # [seed of other, seed of one, task]
    return float((np.sign(pairs) / 2 + 0.5).mean())


def performance_profile(scores: np.ndarray, thresholds: np.ndarray, falls: bool = False) -> np.ndarray:
    """Return the share of all scores, over seeds and tasks, that are better than each threshold ``[threshold]``.

    This is the run-score distribution of arXiv:2108.13264, section 4.2. A curve that is above another everywhere
    belongs to a run that is stochastically better. ``falls``: lower scores are better.
    """
    flat = scores.reshape(1, -1)
    better = flat < thresholds[:, None] if falls else flat > thresholds[:, None]
    return np.asarray(better.mean(1))


def _estimate(
    measure: Callable[[np.ndarray, np.ndarray], float], one: np.ndarray, other: np.ndarray, among: Strata
) -> Estimate:
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ValueError(f"expected scores [seed, task] on the same tasks, not shapes {one.shape} and {other.shape}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return Estimate(float("nan"), None, None)
    value = measure(one, other)
    if one.shape == other.shape == (1, 1):
        return Estimate(value, None, None)
    tasks = resampled(one.shape[1], among)
    first, second = (_seeds(len(scores), number) for number, scores in enumerate((one, other), start=1))
    found = [
        measure(one[np.ix_(ours, columns)], other[np.ix_(theirs, columns)])
        for ours, theirs, columns in zip(first, second, tasks, strict=True)
    ]
    low, high = np.percentile(found, [2.5, 97.5]).tolist()
    return Estimate(value, low, high)


def _seeds(count: int, stream: int) -> np.ndarray:
    """Draw seeds with replacement, ``[resample, seed]``; those of the first run are drawn as in ``over_seeds``."""
    return np.random.default_rng(stream).integers(count, size=(RESAMPLES, count))
