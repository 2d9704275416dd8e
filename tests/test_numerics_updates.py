"""Outer updates and what they rest on: float32 on the CPU against float64, and on a GPU against the CPU."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.precision import TOLERANCES, assert_near, cast, data, dtype
from support.synthetic import CONTINUOUS, DISCRETE
from torch import Generator, Tensor

from metarl.advantages import Advantages
from metarl.algorithms.maml import MAML
from metarl.algorithms.rl2 import RL2
from metarl.networks.options import Network
from metarl.numerics import flatten
from metarl.outer import adapted
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.speed.devices import float32
from metarl.types import Learner, Rollout, Spec, each_tensor

DOCS = Path(__file__).parents[1] / "docs"
CHEETAH = Spec((17,), 6, "continuous")
TANH, RELU = Network(hidden=(64, 64), activation="tanh"), Network(hidden=(100, 100))
CASES = [
    (MAML(network=TANH), CONTINUOUS),
    (MAML(network=RELU), CONTINUOUS),
    (MAML(network=TANH), DISCRETE),
    (MAML(network=RELU), CHEETAH),
    (MAML(network=TANH, steps=3), CONTINUOUS),
    (MAML(network=TANH, surrogate="dice"), CONTINUOUS),
    (RL2(hidden=64), CONTINUOUS),
]
IDS = ["tanh", "relu", "discrete", "cheetah", "three steps", "dice", "rl2"]
ON_BOTH = [("cpu", torch.float64), pytest.param("cuda", torch.float32, marks=pytest.mark.gpu)]
"""Float32 on the CPU is compared with float64 there; and on a GPU with float32 on the CPU."""


@cache
def prepared(index: int) -> tuple[Learner, Any, Any]:
    algorithm, spec = CASES[index]
    with dtype(torch.float64):
        learner = algorithm.build(spec)
        return learner, *data(learner, seed=0, tasks=4, episodes=10, horizon=30)


@cache
def update(index: int, chosen: torch.dtype, device: str) -> dict[str, Tensor]:
    """A whole update by TRPO, and its parts."""
    learner, params, experience = prepared(index)
    params, experience = cast(params, experience, chosen, device)
    with dtype(chosen), float32(torch.device(device)):
        lines = [adapted.linearise(learner, params, part) for part in adapted.split(experience, 1)]
        _, gradient, _ = adapted.surrogate_gradient(lines)
        moved = TRPO().update(learner, params, {}, experience)
        return {
            "gradient": gradient,
            "product": adapted.kl_hessian_product(learner, lines, gradient),
            "step": flatten(moved.params.values()) - flatten(params.values()),
            "tries": torch.tensor(moved.metrics["outer/line_search_steps"]),
            "kl": torch.tensor(moved.metrics["outer/kl"]),
        }


def pair(index: int, device: str, reference: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return update(index, torch.float32, device), update(index, reference, "cpu")


@pytest.mark.parametrize(("device", "reference"), ON_BOTH)
@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_trpos_gradient_and_products_are_as_near_as_is_stated(index: int, device: str, reference: torch.dtype) -> None:
    found, expected = pair(index, device, reference)
    assert_near("TRPO: gradient", found["gradient"], expected["gradient"])
    assert_near("TRPO: product with the KL's Hessian", found["product"], expected["product"])


@pytest.mark.parametrize(("device", "reference"), ON_BOTH)
@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_trpos_step_is_as_near_as_is_stated(index: int, device: str, reference: torch.dtype) -> None:
    found, expected = pair(index, device, reference)
    assert found["tries"] == expected["tries"]
    assert_near("TRPO: step", found["step"], expected["step"])
    assert_near("TRPO: KL of the step", found["kl"], expected["kl"])


@pytest.mark.parametrize(("device", "reference"), ON_BOTH)
@pytest.mark.parametrize("index", range(len(CASES) - 1), ids=IDS[:-1])
def test_promps_step_is_as_near_as_is_stated(index: int, device: str, reference: torch.dtype) -> None:
    def step(chosen: torch.dtype, device: str) -> Tensor:
        learner, params, experience = prepared(index)
        params, experience = cast(params, experience, chosen, device)
        with dtype(chosen), float32(torch.device(device)):
            outer = ProMP()
            moved = outer.update(learner, params, outer.init(params), experience)
            return flatten(moved.params.values()) - flatten(params.values())

    assert_near("ProMP: step", step(torch.float32, device), step(reference, "cpu"))


@pytest.mark.parametrize(("device", "reference"), ON_BOTH)
def test_advantages_are_as_near_as_is_stated(device: str, reference: torch.dtype) -> None:
    """The baseline's normal equations are float64 whatever the data are."""
    generator = Generator().manual_seed(0)
    shape = (8, 10, 100)
    observations, rewards = torch.randn(*shape, 17, generator=generator), torch.randn(shape, generator=generator)
    lengths = torch.randint(1, 101, (8, 10, 1), generator=generator)
    mask = (torch.arange(100) < lengths).float()
    ends = torch.arange(1, 101) == lengths
    rollout = Rollout(
        observations=observations,
        last_observations=observations[:, :, -1],
        actions=torch.zeros(shape),
        log_probs=torch.zeros(shape),
        rewards=rewards - 5,
        terminated=torch.zeros_like(ends),
        truncated=ends,
        mask=mask,
    )

    def advantages(chosen: torch.dtype, device: str) -> Tensor:
        moved = each_tensor(lambda values: values.to(device, chosen if values.is_floating_point() else None), rollout)
        (found,) = Advantages(gae_lambda=0.97).of_episodes(None, [moved])
        assert found.advantages is not None
        return found.advantages

    found, expected = advantages(torch.float32, device), advantages(reference, "cpu")
    assert_near("advantages", found, expected)


@pytest.mark.parametrize(("device", "reference"), ON_BOTH)
@pytest.mark.parametrize(
    ("kind", "size", "scales"), [("continuous", 12, (0.018, 0.0018)), ("discrete", 5, (0.16, 0.016))]
)
def test_kls_of_nearly_equal_policies_are_as_near_as_is_stated(
    kind: Any, size: int, scales: tuple[float, float], device: str, reference: torch.dtype
) -> None:
    generator = Generator().manual_seed(0)
    distribution = Spec((1,), 6 if kind == "continuous" else size, kind).distribution
    old, change = (torch.randn(1, 100, 200, size, generator=generator) for _ in range(2))
    for scale, about in zip(scales, (0.01, 1e-4), strict=True):
        new = (old + scale * change).float()

        def mean(chosen: torch.dtype, device: str, new: Tensor = new) -> Tensor:
            return distribution.kl(old.to(device, chosen), new.to(device, chosen)).mean()

        expected = mean(reference, "cpu")
        assert about / 2 < expected < 2 * about
        assert_near(f"mean KL of {about:g}", mean(torch.float32, device), expected)


def test_the_documentation_tells_the_tolerances() -> None:
    rows = re.findall(r"^\| (.+?) \| (\S+) \|$", (DOCS / "gpu.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    told = {name: float(value) for name, value in rows if re.fullmatch(r"\de-\d", value)}
    assert told == TOLERANCES
