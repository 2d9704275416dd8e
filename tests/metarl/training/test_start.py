"""Training is the same whatever is set around it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.algorithms import MAML
from metarl.evaluation import evaluate
from metarl.networks import Network
from metarl.training import open_run
from metarl.training.settings import Settings
from metarl.training.start import train


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_set_around_training_changes_nothing(mode: Any, tmp_path: Path) -> None:
    settings, algorithm = Settings(iterations=2, meta_batch_size=2, device="cpu"), MAML(network=Network(hidden=(4,)))
    expected = train(algorithm, "sinusoid", settings=settings).params
    with mode():
        found = train(algorithm, "sinusoid", settings=settings, out=tmp_path / "run").params
        opened = open_run(tmp_path / "run", device="cpu")
        scores = evaluate(opened.learner, opened.params, opened.family, 2, 1).scores["loss"]
    assert all(torch.equal(found[name], value) and not value.is_inference() for name, value in expected.items())
    assert torch.equal(scores, evaluate(opened.learner, opened.params, opened.family, 2, 1).scores["loss"])


def test_another_default_device_changes_nothing() -> None:
    settings, algorithm = Settings(iterations=1, meta_batch_size=2, device="cpu"), MAML(network=Network(hidden=(4,)))
    expected = train(algorithm, "sinusoid", settings=settings).params
    torch.set_default_device("meta")  # stands for cuda
    try:
        found = train(algorithm, "sinusoid", settings=settings).params
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
