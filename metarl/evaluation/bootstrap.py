"""Percentile bootstraps: intervals over tasks, and over training seeds and tasks.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metarl.types import Tasks

RESAMPLES = 1000
Metrics = Mapping[str, Mapping[str, Any]]


def strata(tasks: Tasks) -> list[int] | None:
    """Return for each sampled task which of the family's distinct tasks it is; None where tasks hardly repeat.

    A family of two directions has two distinct tasks, however many are sampled. Tasks count as repeating if each
    distinct one was sampled at least twice.
    """
    rows = np.asarray(tasks.descriptors.cpu(), float).reshape(len(tasks.descriptors), -1)
    _, labels, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return labels.reshape(-1).tolist() if counts.min() >= 2 else None


def resampled(tasks: int, among: Sequence[int] | None = None, resamples: int = RESAMPLES) -> np.ndarray:
    """Draw tasks with replacement: their indices ``[resample, task]``, the same ones in every call.

    With strata (``among``), each draw has as many tasks of every stratum as there are, so that the mixture of tasks is
    no part of the uncertainty.

    Raises ValueError if there are not as many labels as tasks.
    """
    labels = np.zeros(tasks, int) if among is None else np.asarray(among)
    if labels.shape != (tasks,):
        raise ValueError(f"strata of shape {labels.shape} for {tasks} tasks: expected one label for each task")
    generator = np.random.default_rng(0)
    parts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [part[generator.integers(len(part), size=(resamples, len(part)))] for part in parts]
    return np.concatenate(drawn, axis=1)


def over_seeds(metrics: Sequence[Metrics], among: Sequence[int] | None = None) -> dict[str, dict[str, Any]]:
    """Join evaluations of several training seeds on the same tasks: mean, and 95 % interval over seeds and tasks.

    The interval is a nested percentile bootstrap: each resample draws seeds with replacement, then tasks. All seeds
    drawn share the tasks drawn, because they were evaluated on the same ones. Intervals of two or three seeds are
    rough, and rather too narrow. A single seed keeps its interval over tasks. ``among``: see ``strata``. Scores that
    not all seeds have are left out. ``per_task`` is each task's mean over seeds; ``seeds`` is their number.

    Raises:
        ValueError: there are no evaluations, or they have different numbers of tasks.
    """
    if not metrics:
        raise ValueError("no evaluations to join: expected one for each seed")
    if len(metrics) == 1:
        return {name: {**values, "seeds": 1} for name, values in metrics[0].items()}
    names = [name for name in metrics[0] if all(name in one for one in metrics)]
    return {name: _nested([one[name]["per_task"] for one in metrics], among, name) for name in names}


def _nested(per_task: Sequence[Sequence[float]], among: Sequence[int] | None, name: str) -> dict[str, Any]:
    if len(sizes := {len(one) for one in per_task}) > 1:
        raise ValueError(
            f"{name} was measured on {' and '.join(map(str, sorted(sizes)))} tasks: expected the same ones"
        )
    scores = np.asarray(per_task, float)  # [seed, task]
    tasks = resampled(scores.shape[1], among)
    with np.errstate(invalid="ignore", over="ignore"):  # after diverged adaptation, scores are nan or infinite
        means = np.fromiter(_means(scores, tasks), float, len(tasks))
        low, high = np.percentile(means, [2.5, 97.5]).tolist()
    return {
        "mean": float(scores.mean()),
        "low": low,
        "high": high,
        "per_task": scores.mean(0).tolist(),
        "seeds": len(scores),
    }


def _means(scores: np.ndarray, tasks: np.ndarray) -> Iterator[float]:
    seeds = np.random.default_rng(1).integers(len(scores), size=(len(tasks), len(scores)))
    for chosen, columns in zip(seeds, tasks, strict=True):
        yield float(scores[np.ix_(chosen, columns)].mean())
