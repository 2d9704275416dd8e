"""Training that is not learning is told; what is not finite is not saved."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl import training
from metarl.algorithms import MAML
from metarl.fewshot import Regression
from metarl.networks import Network
from metarl.training import progress
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Update


def test_targets_far_from_one_are_told_once() -> None:
    family = Regression(lambda inputs, slope: 1e4 * slope * inputs, {"slope": (1.0, 2.0)}, shots=5)
    settings = Settings(iterations=3, meta_batch_size=2, device="cpu", log_every=1)
    with pytest.warns(UserWarning, match="the loss is .* in iteration 1: targets seem to be far from 1; scale") as told:
        train(MAML(step_size=1e-6, network=Network(hidden=(4,))), family, settings=settings)
    assert len([one for one in told if "targets seem" in str(one.message)]) == 1


def test_a_loss_that_diverges_and_steps_that_are_refused_are_told_once() -> None:
    watch = progress.Watch("continuous")
    with pytest.warns(UserWarning, match=r"outer/loss is 2e\+06 in iteration 1: training diverges"):
        watch.see({"iteration": 1, "outer/loss": 2e6})
    with warnings.catch_warnings(action="error"):
        watch.see({"iteration": 2, "outer/loss": 3e6})
        for number in range(3, 22):
            watch.see({"iteration": number, "outer/accepted": 0.0})
    with pytest.warns(UserWarning, match="the line search has refused all of 20 logged steps up to iteration 22"):
        watch.see({"iteration": 22, "outer/accepted": 0.0})


def test_parameters_that_are_not_finite_never_become_a_checkpoint(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Broken:
        def init(self, params: Any) -> dict[str, Any]:
            return {}

        def update(self, learner: Any, params: Any, state: Any, experience: Any) -> Update:
            return Update({name: value + torch.inf for name, value in params.items()}, state, {})

    settings = Settings(iterations=2, meta_batch_size=2, device="cpu", checkpoint_every=1)
    with pytest.raises(training.TrainingError, match=r"hidden_0.* is not finite after iteration 1; the"):
        parts = training.Source(MAML(network=Network(hidden=(4,)))), training.source("tasks", "sinusoid")
        run = training.start(*parts, Broken(), settings)
        run.folder = tmp_path
        run.train(run.first())
    assert not (tmp_path / "checkpoint.pt").exists()


def test_training_that_is_not_learning_stops_where_that_is_asked_for(tmp_path: Path) -> None:
    """Before the next checkpoint: the last one is from before."""
    watch = progress.Watch("continuous", "stop")
    with pytest.raises(training.TrainingError, match=r"outer/loss is inf in iteration 1: training diverges.*intact"):
        watch.see({"iteration": 1, "outer/loss": float("inf")})

    @dataclasses.dataclass(frozen=True)
    class Diverging:
        def init(self, params: Any) -> dict[str, Any]:
            return {}

        def update(self, learner: Any, params: Any, state: Any, experience: Any) -> Update:
            return Update(params, {"number": state.get("number", 0) + 1}, {"outer/loss": 10.0 ** (4 * len(seen))})

    seen: list[int] = []
    settings = Settings(5, 2, device="cpu", checkpoint_every=1, log_every=1, when_diverging="stop")
    parts = training.Source(MAML(network=Network(hidden=(4,)))), training.source("tasks", "sinusoid")
    run = training.start(*parts, Diverging(), settings)
    run.folder = tmp_path
    with pytest.raises(training.TrainingError, match=r"outer/loss is 1e\+08 in iteration 3"):
        run.train(run.first(), callbacks=[lambda iteration: seen.append(1)])
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 2
