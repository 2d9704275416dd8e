"""Optional abilities of control families and their lanes.

A family or a vector environment has an ability if it has the members of its protocol. Callers check with
``isinstance``; nothing is registered.
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
from metarl.seeding import Places
from metarl.types import Family


@runtime_checkable
class ControlFamily(Family, Protocol):
    """A family whose tasks are environments: Stable-Baselines3's algorithms can train on it."""

    def environment(self, num_envs: int, device: torch.device) -> VectorEnv[Any, Any, Any]:
        """Return the lanes that episodes are sampled from."""


@runtime_checkable
class Parametrised(Protocol):
    """A family whose tasks can be chosen by their parameters, as in ``run.task(velocity=1.3)``."""

    @property
    def parameter_space(self) -> spaces.Dict:
        """The parameters of a task, and the range of each."""


@runtime_checkable
class Noted(Protocol):
    """A family that has looked at whether its tasks' parameters take effect."""

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each parameter that does not, or not as a whole."""


@runtime_checkable
class Sampled(Protocol):
    """A family, a frozen dataclass, with a field ``sampling``: its options for sampling episodes."""

    @property
    def sampling(self) -> Sampling:
        """How many episodes to sample, and how long they are."""


@runtime_checkable
class TellsNumbers(Protocol):
    """Lanes that add up the numbers in their environments' infos. Of other lanes, arrays in infos are added up."""

    def info_numbers(self) -> Mapping[str, tuple[Any, Any]]:
        """Return sums and counts, arrays ``[lane]``, of each number since the last reset of each lane, by name."""


@runtime_checkable
class Single(Protocol):
    """A family that can make one Gymnasium environment of one task, which ``metarl render`` films."""

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """Return an environment with the dynamics, observations and actions of the lanes.

        ``parameters`` are the task's parameters by name, as arrays.
        """


@runtime_checkable
class OwnSpaces(Parametrised, Protocol):
    """A family whose policies read and act in other spaces than its environments, such as actions in [-1, 1]."""

    def own(self, parameters: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
        """Return the environment of a task with its own observations and actions."""


@runtime_checkable
class TorchLanes(Protocol):
    """Lanes whose arrays are torch tensors instead of NumPy arrays."""

    @property
    def device(self) -> torch.device | None:
        """The device of all tensors, actions included; None if the arrays are NumPy's after all."""


@runtime_checkable
class Snapshots(Protocol):
    """Lanes whose whole state is tensors, so that their steps can be compiled together with the policy.

    A step works out of place, draws from ``generator`` only, and has no control flow that depends on tensor values.
    """

    @property
    def generator(self) -> Generator:
        """The random generator of the steps."""

    def snapshot(self) -> tuple[Any, ...] | None:
        """Return all state that a step reads and changes, apart from actions; None if it is not known."""

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Continue from a snapshot."""


@runtime_checkable
class Placed(Protocol):
    """Lanes that can be some lanes of a larger batch: resets then draw what those lanes would draw in that batch.

    ``places`` belongs to the class whose ``reset`` heeds it: lanes of a subclass with a ``reset`` of its own have this
    ability only if they declare ``places`` again.
    """

    places: Places | None
    """Which lanes of the larger batch these are; None: all lanes of their own batch."""


def can_be_placed(env: VectorEnv[Any, Any, Any]) -> bool:
    """Return whether lanes are ``Placed``. A wrapper, which may draw by itself, must be so in its own right."""
    owners = (next((kind for kind in type(env).__mro__ if name in vars(kind)), object) for name in ("places", "reset"))
    declares, resets = owners
    return issubclass(declares, resets)


@runtime_checkable
class SelfChecking(Protocol):
    """Lanes that mark failures with non-finite numbers, so that no step waits for the device to check for them."""

    def check(self) -> None:
        """Raise LaneError if any lanes failed, naming them and the reason."""


def resampled(family: Any, **options: Any) -> Any:
    """Return the family with other options of ``sampling``, such as ``horizon=10``.

    Raises:
        ValueError: the family has no field ``sampling``.
    """
    if not (isinstance(family, Sampled) and dataclasses.is_dataclass(family)):
        raise ValueError(f"{type(family).__name__} has no field sampling, so its episodes cannot be sampled otherwise")
    sampling = dataclasses.replace(family.sampling, **options)
    untyped: Any = family
    return dataclasses.replace(untyped, sampling=sampling)
