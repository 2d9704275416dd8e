"""Whether episodes follow from the seed of their reset, looked at before a training starts."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl.control.protocols import SelfChecking
from metarl.control.rollouts import on_torch
from metarl.environments import as_array, composite, flat, parts_of
from metarl.seeding import global_generators_kept, stream
from metarl.types import Family

STEPS = 10
"""Steps of the episode that is played twice."""


def warn_of_other_generators(lanes: VectorEnv[Any, Any, Any], parameters: Mapping[str, Tensor], family: Family) -> None:
    """Warn where lanes draw from global generators, or where two episodes of one seed and the same actions differ.

    Errors of the environment are left to the episodes of the training, which name the task and the step.
    """
    if isinstance(lanes.unwrapped, SelfChecking):
        return  # lanes of MuJoCo Warp, which take long to start and draw from their own generator
    try:
        with global_generators_kept() as drawn:
            played = [_episode(lanes, parameters) for _ in range(2)]
    except Exception:
        return
    name = type(family).__name__
    if drawn:
        warnings.warn(
            f"the environments of {name} draw from {' and '.join(drawn)}, which the seed does not set: runs of one "
            "seed will differ; draw from what reset(seed=...) seeds, such as self.np_random",
            stacklevel=4,
        )
    elif not all(torch.equal(one, other) for one, other in zip(*played, strict=True)):
        warnings.warn(
            f"two episodes of {name} by one seed and the same actions differ: something in the environment outlives "
            "its reset, or draws random numbers that the seed does not set",
            stacklevel=4,
        )


def _episode(lanes: VectorEnv[Any, Any, Any], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """Return what some random actions lead to after a reset by the seed 0."""
    generator, space = stream(0, "check"), lanes.single_action_space
    sees = lanes.single_observation_space
    parts = parts_of(sees) if composite(sees) else ()
    observation, _ = lanes.reset(seed=0, options=dict(parameters))
    seen = [_copied(flat(parts, observation) if parts else observation)]
    for _ in range(STEPS):
        if isinstance(space, spaces.Discrete):
            action = torch.randint(int(space.n), (1,), generator=generator)
        elif isinstance(space, spaces.MultiDiscrete):
            action = (torch.from_numpy(space.nvec) * torch.rand(1, *space.shape, generator=generator)).long()
        else:
            action = 2 * torch.rand(1, *(space.shape or ()), generator=generator) - 1
        observation, reward, terminated, truncated, _ = lanes.step(action if on_torch(lanes) else action.numpy())
        seen += map(_copied, (flat(parts, observation) if parts else observation, reward))
        if (as_array(terminated) | as_array(truncated)).any():
            break
    return seen


def _copied(values: Any) -> Tensor:
    return torch.from_numpy(as_array(values).copy())
