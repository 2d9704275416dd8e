"""What only a GPU can show: everything runs there, and gives what the CPU gives. Kernels: envs/mujoco/test_warp.py."""

import math
from dataclasses import replace

import pytest
import torch
from support.synthetic import classes

from metarl.advantages import fit_baseline
from metarl.algorithms.maml import MAML
from metarl.control import Sampling
from metarl.evaluation import evaluate
from metarl.networks import Network
from metarl.outer import TRPO
from metarl.training import train
from metarl.training.loop import Run
from metarl.training.settings import Settings
from metarl_envs.navigation import PointNavigation
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity
from metarl_plugins.sinusoid import Sinusoid

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SAMPLING = Sampling(episodes=4, horizon=10)
NAVIGATION, HALF_CHEETAH = PointNavigation(sampling=SAMPLING), HalfCheetahVelocity(sampling=SAMPLING)
PAIRS = [
    (NAVIGATION, "trpo"),
    (NAVIGATION, "promp"),
    (NAVIGATION, "adam"),
    (HALF_CHEETAH, "trpo"),
    (Sinusoid(), "adam"),
]


@pytest.mark.parametrize(("family", "outer"), PAIRS)
def test_training_and_evaluation_run_on_a_gpu(family, outer, tmp_path):
    algorithm = MAML(network=Network(hidden=(16,)))
    settings = Settings(iterations=2, meta_batch_size=3, device=DEVICE)
    result = train(algorithm, family, outer, settings, tmp_path / "run")
    assert {value.device.type for value in result.params.values()} == {DEVICE}
    assert all(math.isfinite(value) for row in result.rows for value in row.values())
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", map_location="cpu", weights_only=True)["params"]
    assert all(torch.equal(saved[name], value.cpu()) for name, value in result.params.items())
    found = evaluate(result.learner, result.params, family, tasks=2, steps=1, device=torch.device(DEVICE))
    assert all(math.isfinite(metric["mean"]) for metric in found.metrics.values())


def test_baselines_are_the_cpus_even_where_the_ridge_must_rise():
    generator = torch.Generator().manual_seed(0)
    features, returns = torch.rand(3, 4, 5, 6, generator=generator), torch.rand(3, 4, 5, generator=generator)
    features[1] = 1e6 * features[1, :1, :1]  # one and the same observation
    mask = torch.ones(3, 4, 5)
    mask[2, :, 1:] = 0
    weights = fit_baseline(features.double(), returns, mask)
    found = fit_baseline(features.double().to(DEVICE), returns.to(DEVICE), mask.to(DEVICE)).cpu()
    predicted, expected = (torch.einsum("teif,tf->tei", features.double(), each) for each in (found, weights))
    assert torch.allclose(predicted, expected, atol=1e-4)


# A warning that an iteration is not compiled is an error here; those of torch's own compiler are not.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", [Sinusoid(), classes(8)], ids=["sinusoid", "images"])
def test_compiled_iterations_are_the_plain_ones_on_a_gpu(family):
    algorithm, settings = MAML(network=Network(hidden=(16,))), Settings(iterations=5, meta_batch_size=3, device=DEVICE)
    plain, compiled = (
        train(algorithm, family, settings=replace(settings, compile=compile)).params for compile in (False, True)
    )
    assert all(torch.allclose(compiled[name], value, atol=1e-4) for name, value in plain.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("chunks", [None, 2])
@pytest.mark.parametrize("family", [NAVIGATION, HALF_CHEETAH], ids=["navigation", "half-cheetah"])
def test_compiled_parts_are_the_plain_ones_on_a_gpu(family, chunks):
    """Steps as kernels, TRPO's products and steps as captured graphs: checked in two iterations, trusted in two."""
    algorithm, ends = MAML(network=Network(hidden=(16,))), []
    for compiled in (False, True):
        settings = Settings(4, 3, device=DEVICE, compile=compiled)
        run = Run(algorithm, family, TRPO(cg_iterations=3, chunks=chunks), settings)
        progress = run.first()
        for _ in range(4):
            progress, row = run.iterate(progress)
        ends.append((progress.params, row))
    steps = "the environment's steps" if family is NAVIGATION else "the policies"
    assert {key[0] for key in run.graphs.parts} == {"TRPO's products", "TRPO's steps", steps}
    (plain, row), (found, found_row) = ends
    assert float(found_row["return/step_1"]) == pytest.approx(float(row["return/step_1"]), rel=0.05)
    assert all(torch.allclose(found[name], value, atol=1e-2) for name, value in plain.items())
