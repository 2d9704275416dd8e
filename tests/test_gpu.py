"""What only a GPU can show: everything runs there, and gives what the CPU gives. Kernels: envs/mujoco/test_warp.py."""

import math
from dataclasses import replace

import pytest
import torch
from support.precision import ALIKE, assert_alike
from support.synthetic import classes

from metarl.advantages.baseline import fitted_values
from metarl.algorithms.maml import MAML
from metarl.control import Sampling
from metarl.evaluation import evaluate
from metarl.networks import Network
from metarl.outer import TRPO, Adam
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
    features, returns = (torch.rand(3, 4, *shape, generator=generator).double() for shape in ((6, 9), (5,)))
    features[1] = 1e6 * features[1, :1, :1]  # one and the same observation
    mask, cut = torch.ones(3, 4, 5).double(), torch.zeros(3, 4, 5).double()
    mask[2, :, 1:] = 0
    expected = fitted_values(features, returns, mask, cut)
    found = fitted_values(*(values.to(DEVICE) for values in (features, returns, mask, cut))).cpu()
    assert torch.allclose(found, expected, atol=1e-4)


# A warning that an iteration is not compiled is an error here; those of torch's own compiler are not.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", [Sinusoid(), classes(8)], ids=["sinusoid", "images"])
def test_compiled_iterations_are_the_plain_ones_on_a_gpu(family):
    algorithm, settings = MAML(network=Network(hidden=(16,))), Settings(iterations=5, meta_batch_size=3, device=DEVICE)
    plain, compiled = (Run(algorithm, family, Adam(), replace(settings, compile=compile)) for compile in (False, True))
    assert_alike(plain, *iterated(compiled, 5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("chunks", [None, 2])
@pytest.mark.parametrize("family", [NAVIGATION, HALF_CHEETAH], ids=["navigation", "half-cheetah"])
def test_compiled_parts_are_the_plain_ones_on_a_gpu(family, chunks):
    """Steps as kernels, TRPO's products and steps as captured graphs: checked in two iterations, trusted in two."""
    algorithm, outer = MAML(network=Network(hidden=(16,))), TRPO(chunks=chunks)
    plain, run = (
        Run(algorithm, family, outer, Settings(4, 3, device=DEVICE, compile=compile)) for compile in (False, True)
    )
    # Contacts magnify the rounding of actions within ten steps.
    assert_alike(plain, *iterated(run, 4), allowed=ALIKE if family is NAVIGATION else 0.1)
    steps = "the environment's steps" if family is NAVIGATION else "the policies"
    assert {key[0] for key in run.graphs.parts} == {"TRPO's products", "TRPO's steps", steps}


def iterated(run, iterations):
    """Where each iteration starts and ends, and its row."""
    starts, ends, rows = [run.first()], [], []
    for _ in range(iterations):
        end, row = run.iterate(starts[-1])
        ends.append(end)
        rows.append(row)
        starts.append(end)
    return starts[:-1], ends, rows
