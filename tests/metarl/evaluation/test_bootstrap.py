"""Intervals over seeds and tasks, against closed forms and by how often they hold the truth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metarl import evaluation
from metarl.evaluation.bootstrap import over_seeds, resampled


def scored(values):
    return {"return/step_0": {"mean": float(np.mean(values)), "low": 0.0, "high": 9.0, "per_task": list(values)}}


def test_one_seed_keeps_its_interval_over_tasks():
    found = over_seeds([scored([1.0, 3.0])])
    assert found == {"return/step_0": {"mean": 2.0, "low": 0.0, "high": 9.0, "per_task": [1.0, 3.0], "seeds": 1}}


def test_seeds_that_differ_and_tasks_that_do_not():
    """Two seeds, 0 and 1, on equal tasks: a resample's mean is 0, 1/2 or 1, each end in a quarter of them."""
    found = over_seeds([scored([0.0] * 5), scored([1.0] * 5)])["return/step_0"]
    assert (found["mean"], found["low"], found["high"], found["seeds"]) == (0.5, 0.0, 1.0, 2)
    assert found["per_task"] == [0.5] * 5


def test_the_interval_has_the_width_of_theory():
    """Scores are seed + task + noise: the variance of the mean is the sum of each part's, over its own number."""
    rng = np.random.default_rng(0)
    seeds, tasks = rng.normal(size=(30, 1)), 2 * rng.normal(size=(1, 80))
    table = seeds + tasks + rng.normal(size=(30, 80))
    found = over_seeds([scored(row) for row in table])["return/step_0"]
    variance = table.mean(1).var() / 30 + table.mean(0).var() / 80
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * variance**0.5, rel=0.1)
    assert found["mean"] == pytest.approx(table.mean())


def test_it_holds_the_truth_19_times_in_20():
    rng, held = np.random.default_rng(1), 0
    for _ in range(60):
        table = rng.normal(size=(10, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(10, 40))
        found = over_seeds([scored(row) for row in table])["return/step_0"]
        held += found["low"] <= 0 <= found["high"]
    assert held >= 49


def test_what_cannot_be_joined():
    with pytest.raises(ValueError, match="no evaluations to join"):
        over_seeds([])
    with pytest.raises(ValueError, match="return/step_0 was measured on 2 and 3 tasks"):
        over_seeds([scored([1.0, 2.0]), scored([1.0, 2.0, 3.0])])
    assert over_seeds([scored([1.0]), {}]) == {}


def test_strata_are_the_distinct_tasks():
    two = SimpleNamespace(descriptors=torch.tensor([[1.0], [-1.0], [1.0], [1.0], [-1.0]]))
    assert evaluation.strata(two) == [1, 0, 1, 1, 0]
    assert evaluation.strata(SimpleNamespace(descriptors=torch.tensor([[1.0], [2.0], [1.0]]))) is None
    drawn = resampled(5, [1, 0, 1, 1, 0])
    assert drawn.shape == (1000, 5)
    assert (np.isin(drawn, [1, 4]).sum(1) == 2).all()
    assert len(np.unique(np.sort(drawn, 1), axis=0)) == 3 * 10
