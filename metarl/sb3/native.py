"""Between the spaces that a policy of a family acts in and those of the environment itself."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor

from metarl.control import ControlFamily, OwnSpaces
from metarl.environments import Eye, close_environment, composite, layout
from metarl.environments import middle as middle_of
from metarl.types import Tasks

Array = np.ndarray[Any, Any]


class Native(NamedTuple):
    """The spaces of an environment, where a family's policies have others."""

    observations: Any
    actions: Any
    scale: float = 1.0
    """The policy's action that reaches the upper bounds of a Box of actions."""

    def seen(self, observation: Any) -> Array:
        """Return an observation as the policy reads it. Raises ValueError for one outside its space."""
        dtype = torch.empty(0).numpy().dtype
        return Eye(dtype, "the environment").read(layout(self.observations), observation).astype(dtype)

    def acted(self, actions: Tensor) -> Tensor:
        """Return the environment's actions ``[item, ...]`` for a policy's ``[item(, output_size)]``."""
        if isinstance(self.actions, spaces.Discrete):
            return actions + int(self.actions.start)
        if isinstance(self.actions, spaces.MultiDiscrete | spaces.MultiBinary):
            first = torch.as_tensor(getattr(self.actions, "start", 0), device=actions.device)
            return actions.reshape(-1, *self.actions.shape) + first
        middle, half = (end.to(actions) for end in self.ends)
        return (middle + half * actions).reshape(-1, *self.actions.shape)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The environment's action for the policy's 0, and how much more it is for 1, for each dimension."""
        low, high = (torch.from_numpy(end.astype(float)).flatten() for end in (self.actions.low, self.actions.high))
        return (low + high) / 2, (high - low) / (2 * self.scale)

    @property
    def inputs(self) -> tuple[Tensor, Tensor | float] | None:
        """Which numbers of an observation the policy's inputs are, and by what they are divided.

        None where Stable-Baselines3 prepares observations as metarl does.
        """
        if isinstance(self.observations, spaces.Discrete) or is_image_space(self.observations):
            return None
        seen = layout(self.observations)
        if seen.parts:
            scales = [torch.full((part.size,), part.scale) for part in seen.parts]
            return torch.arange(*seen.shape), torch.cat(scales)
        places = np.arange(math.prod(self.observations.shape)).reshape(self.observations.shape)
        order = places if seen.axes is None else places.transpose(seen.axes)
        return torch.from_numpy(order.reshape(-1).copy()), 255.0 if seen.image else 1.0

    @property
    def shifted(self) -> bool:
        """Whether a space counts from another number than 0, which Stable-Baselines3 does not."""
        return any(isinstance(one, spaces.Discrete) and one.start != 0 for one in self[:2])

    @property
    def refusal(self) -> str | None:
        """Why Stable-Baselines3 has no policy for these spaces; None where it has one."""
        for acted in (self.observations, self.actions):
            if isinstance(acted, spaces.MultiDiscrete) and acted.start.any():
                return f"{_line(acted)}, which does not count from 0"
        if isinstance(self.actions, spaces.MultiDiscrete | spaces.MultiBinary) and len(self.actions.shape) != 1:
            return f"actions of {_line(self.actions)}, which have more than one axis"
        if isinstance(self.observations, spaces.Tuple):
            return f"observations of {self.observations}"
        for name, one in self.observations.spaces.items() if isinstance(self.observations, spaces.Dict) else ():
            if composite(one) or is_image_space(one) or getattr(one, "start", np.zeros(1)).any():
                return f"the part {name!r} of the observations, {one}: a nested one, an image, or not from 0"
        return None


def _line(space: Any) -> str:
    return " ".join(str(space).split())


def native(family: ControlFamily, task: Tasks | None) -> Native | None:
    """Return the spaces of the environment of a task; None where a policy's spaces are the environment's.

    Without a task, they are those of all tasks. Raises ValueError where they depend on the task.
    """
    if not isinstance(family, OwnSpaces):
        return None
    if task is not None:
        return _of(family, {name: rows[0].numpy(force=True) for name, rows in task.parameters.items()})
    space = family.parameter_space
    some = [{name: _end(one, end) for name, one in space.spaces.items()} for end in (0, 1, 2)]
    found = [_of(family, parameters) for parameters in some]
    if other := next((one for one in found if one != found[0]), None):
        raise ValueError(
            f"the environment's spaces depend on the task, such as {found[0].actions} and {other.actions} of its "
            "actions: give the task that the policy is for"
        )
    return found[0]


def _of(family: OwnSpaces, parameters: Mapping[str, Any]) -> Native:
    env = family.own(parameters)
    try:
        env.reset(seed=0)
        return Native(env.observation_space, env.action_space, getattr(family, "action_scale", 1.0))
    finally:
        close_environment(env, "the environment")


def _end(space: Any, end: int) -> Any:
    """Return the lowest, the highest or the middle element of a space."""
    if isinstance(space, spaces.Discrete):
        return space.start + (0, space.n - 1, space.n // 2)[end]
    return (space.low, space.high, middle_of(space))[end]


def to_native(layers: list[Tensor], log_std: Tensor | None, own: Native) -> tuple[list[Tensor], Tensor | None]:
    """Return an actor, layers of weights and biases, that reads and acts in the environment's own spaces.

    Raises ValueError for a dimension of the actions that has no range.
    """
    layers = list(layers)
    if own.inputs is not None:
        places, scale = own.inputs
        layers[0] = torch.zeros_like(layers[0]).index_copy(1, places, layers[0] / scale)
    if isinstance(own.actions, spaces.MultiBinary):  # one logit for yes, in the place of two for no and yes
        layers[-2:] = (values[1::2] - values[::2] for values in layers[-2:])
    if log_std is None:
        return layers, None
    middle, half = (end.to(layers[0].dtype) for end in own.ends)
    if not (half > 0).all():
        raise ValueError(f"actions of {own.actions} have a dimension without range, which no Gaussian has")
    layers[-2:] = layers[-2] * half.unsqueeze(1), layers[-1] * half + middle
    return layers, log_std + half.log()


def reading_native(layers: list[Tensor], own: Native) -> list[Tensor]:
    """Return an actor that reads the environment's own observations as one that reads the policy's."""
    if own.inputs is None:
        return layers
    places, scale = own.inputs
    return [layers[0][:, places] * scale, *layers[1:]]


def choosing_natively(layers: list[Tensor], own: Native) -> list[Tensor]:
    """Return an actor of the environment's own choices as one of the policy's."""
    if not isinstance(own.actions, spaces.MultiBinary):
        return layers
    head = [torch.stack([torch.zeros_like(values), values], dim=1).flatten(0, 1) for values in layers[-2:]]
    return [*layers[:-2], *head]


def acting_natively(layers: list[Tensor], log_std: Tensor, own: Native) -> tuple[list[Tensor], Tensor]:
    """Return an actor that acts as the environment's own actions are as one of the policy's, in [-1, 1]."""
    middle, half = (end.to(layers[0].dtype) for end in own.ends)
    head = [layers[-2] / half.unsqueeze(1), (layers[-1] - middle) / half]
    return [*layers[:-2], *head], log_std - half.log()
