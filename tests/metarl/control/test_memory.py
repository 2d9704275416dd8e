"""Rollouts that do not fit into memory are refused, and images have a baseline that does."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import metarl
from metarl.control import memory
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.types import Spec

IMAGES = Spec((3, 96, 96), 1, "continuous")


class Camera(gymnasium.Env[Any, Any]):
    """Sees a picture of its brightness."""

    observation_space, action_space = spaces.Box(0, 255, (32, 32, 3), np.uint8), spaces.Discrete(2)

    def __init__(self, g: float) -> None:
        self.g = g

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.full((32, 32, 3), int(255 * self.g), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.full((32, 32, 3), int(255 * self.g), np.uint8), float(action), False, False, {}


def test_large_rollouts_are_refused_before_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2**30)
    told = r"800 episodes of 200 steps with observations of shape \(3, 96, 96\) need 33.1 GiB, and 1.0 GiB of memory"
    with pytest.raises(ValueError, match=told):
        memory.check_memory(IMAGES, 800, 200)
    memory.check_memory(IMAGES, 10, 20)
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.check_memory(IMAGES, 800, 200)


def test_the_memory_of_this_machine_is_known() -> None:
    found = memory.available()
    assert found is None or found > 2**20


@pytest.mark.parametrize("architecture", ["mlp", "conv4"])
def test_pictures_train_by_default(architecture: str) -> None:
    family = GymnasiumFamily(Camera, spaces.Dict(g=spaces.Box(0.0, 1.0)), sampling=Sampling(2, 4))
    assert family.spec.input_shape == (3, 32, 32)
    network = metarl.Network("conv4", filters=4) if architecture == "conv4" else metarl.Network(hidden=(4,))
    settings = metarl.Settings(iterations=1, meta_batch_size=2)
    row = metarl.train(metarl.MAML(network=network), family, settings=settings).rows[0]
    assert np.isfinite(row["return/step_1"])
