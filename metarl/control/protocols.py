"""What a control family and its lanes may offer beyond what is asked of each.

A family or a vector environment offers something by having the members that a protocol names, and ``isinstance`` is how
everybody asks for it; nothing is registered.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Generator

from metarl.control.sampling import Sampling
from metarl.types import Family


@runtime_checkable
class ControlFamily(Family, Protocol):
    """A family whose tasks are environments: Stable-Baselines3's algorithms can train on it."""

    def environment(self, num_envs: int, device: torch.device) -> VectorEnv[Any, Any, Any]:
        """Return the lanes that episodes are sampled from."""


@runtime_checkable
class Parametrised(Protocol):
    """A family whose tasks can be given by their parameters, as in ``run.task(velocity=1.3)``."""

    @property
    def parameter_space(self) -> spaces.Dict:
        """Which parameters a task has, and the range of each."""


@runtime_checkable
class Sampled(Protocol):
    """A family, a frozen dataclass, whose episodes are sampled as its field ``sampling`` says."""

    @property
    def sampling(self) -> Sampling:
        """How many episodes a draw has, and how long they are."""


@runtime_checkable
class Single(Protocol):
    """A family that makes one Gymnasium environment of one task: ``metarl render`` films it."""

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """Return an environment with the dynamics, observations and actions of the lanes.

        ``parameters`` are the task's own by name, as arrays.
        """


@runtime_checkable
class TorchLanes(Protocol):
    """Lanes whose arrays are torch tensors, not NumPy's."""

    @property
    def device(self) -> torch.device | None:
        """Where the tensors live, and where ``step`` takes actions; None for NumPy's arrays after all."""


@runtime_checkable
class Snapshots(Protocol):
    """Lanes whose whole state is tensors, so that their steps can be compiled along with the policies'.

    Steps are out of place, draw from ``generator`` alone, and ask their numbers nothing.
    """

    @property
    def generator(self) -> Generator:
        """What steps draw from."""

    def snapshot(self) -> tuple[Any, ...] | None:
        """Return all that steps read and change beside actions; None where that cannot be told."""

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go on from a snapshot."""


@runtime_checkable
class SelfChecking(Protocol):
    """Lanes that tell of what broke by numbers that are not finite, so that nothing waits for them while they step."""

    def check(self) -> None:
        """Raise LaneError, which says which lanes broke and why, if any did."""


def resampled(family: Any, **options: Any) -> Any:
    """Return a family whose episodes are sampled with other options, such as ``horizon=10``.

    Raises:
        ValueError: its episodes are not sampled as a field ``sampling`` says.
    """
    if not (isinstance(family, Sampled) and dataclasses.is_dataclass(family)):
        raise ValueError(f"{type(family).__name__} has no field sampling, so its episodes cannot be sampled otherwise")
    whole: Any = family
    return dataclasses.replace(whole, sampling=dataclasses.replace(family.sampling, **options))
