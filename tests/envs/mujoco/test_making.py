"""Who owns a robot's lanes: those of MuJoCo Warp are kept for the next draw, and lent to one at a time."""

import pytest
import torch
from gymnasium.vector import VectorEnv

from metarl.control import Sampling
from metarl_envs.mujoco import Simulation, making
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity

CPU = torch.device("cpu")


def family(horizon: int = 5) -> HalfCheetahVelocity:
    return HalfCheetahVelocity(simulation=Simulation(backend="warp"), sampling=Sampling(2, horizon))


def test_lanes_of_warp_are_lent_to_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_on_warp", lambda backend, device: backend == "warp")
    monkeypatch.setattr(making, "make_lanes", lambda *options: VectorEnv())
    making._kept.cache_clear()
    assert family().environment(2, CPU) is not family().environment(2, CPU)
    lends = making.SamplingLanes(family())
    with lends.lent(2, CPU) as one, making.SamplingLanes(family()).lent(2, CPU) as other:
        assert one is not other
    with making.SamplingLanes(family()).lent(2, CPU) as again, making.SamplingLanes(family(6)).lent(2, CPU) as longer:
        assert again is one and longer not in (one, other)
    making._kept.cache_clear()
