"""Samples of Gaussian processes, whose kernel differs between tasks."""

from typing import Any

import pytest
import torch
from torch import Generator

from metarl import testing
from metarl.types import Spec
from metarl_plugins.regression.gaussian_process import GaussianProcess


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("options", [{}, {"kernel": "matern", "shots": (3, 9)}, {"kernel": "periodic"}])
def test_the_family_holds_the_contract(options: dict[str, Any]) -> None:
    testing.check_family(GaussianProcess(**options))


def test_what_it_asks_of_a_model() -> None:
    assert GaussianProcess().spec == Spec((1,), 1, "regression", 2)
    assert GaussianProcess(shots=(3, 9)).spec.ragged
    tasks = GaussianProcess(shots=(3, 9)).sample(200, "train", generator())
    counts = tasks.draw("support", generator()).counts
    assert counts.tolist() == tasks.parameters["shots"].tolist()
    assert counts.unique().tolist() == list(range(3, 10))
    assert tasks.descriptors.shape == (200, 2)
    length = tasks.parameters["length"]
    assert 0.1 <= length.min() < 0.15
    assert 0.55 < length.max() <= 0.6


def test_kernels_are_those_of_their_formulas() -> None:
    points = torch.tensor([[0.0, 0.3]], dtype=torch.float64)
    length, amplitude = torch.tensor([0.5]).double(), torch.tensor([2.0]).double()
    expected = {"rbf": 0.8352702114, "matern": 0.7689931, "periodic": 0.0053211}
    for kernel, value in expected.items():
        family = GaussianProcess(kernel=kernel)  # type: ignore[arg-type]
        found = family.covariance(points, length, amplitude)[0]
        assert found[0, 0].item() == pytest.approx(4, rel=1e-6)
        assert found[0, 1].item() == pytest.approx(4 * value, rel=1e-4)


def test_values_have_the_variance_of_the_kernel_and_the_noise() -> None:
    family = GaussianProcess(amplitude=(1.0, 1.0), length=(0.5, 0.5), noise=0.5, inputs=(0.0, 0.4), shots=2, queries=1)
    drawn = family.sample(20000, "train", generator()).draw("support", generator())
    values, points = drawn.targets[..., 0], drawn.inputs[..., 0]
    assert values.var() == pytest.approx(1.25, abs=0.05)
    kernel = (-((points[:, 0] - points[:, 1]) / 0.5).square() / 2).exp()
    assert (values[:, 0] * values[:, 1] - kernel).mean().abs() < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "linear"}, "kernel='linear': expected one of rbf, matern, periodic"),
        ({"length": (0.0, 1.0)}, "length=.*: expected positive numbers"),
        ({"amplitude": (2.0, 1.0)}, "the lower end first"),
        ({"inputs": (1.0, 1.0)}, "expected finite numbers, the lower end first"),
        ({"noise": -1.0}, "noise=-1.0: expected at least 0"),
        ({"period": 0.0}, "period=0.0: expected a positive number"),
        ({"shots": 0}, "shots=0: expected at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianProcess(**options)
