"""Between the spaces that policies see and act in and those of an environment: data, and functions of tensors."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metarl.control import ControlFamily, OwnSpaces, Parametrised
from metarl.environments import acted_in, close_environment, composite, flat, is_bounded_box, layout, middle
from metarl.types import Spec


class Native(NamedTuple):
    """An environment's own spaces, as plain data, and how a policy's are laid over them."""

    observed: str
    """``box``, ``discrete``, or ``flat``: one vector of the parts of a Dict or a Tuple."""
    given: tuple[int, ...]
    """Shape of an observation; of ``discrete`` ones empty, of ``flat`` ones the vector's."""
    shape: tuple[int, ...]
    """Shape that the policy reads."""
    divisor: float = 1.0
    """255 for images."""
    axes: tuple[int, ...] | None = None
    """Their order, channels first; None: as they are."""
    first: int = 0
    """The first of ``discrete`` observations."""
    low: tuple[float, ...] = ()
    """Bounds of actions; of choices, the first of each."""
    high: tuple[float, ...] = ()
    """Empty for choices."""
    acted: tuple[int, ...] = ()
    """Shape of an action."""
    scale: float | None = 1.0
    """The policy's action that reaches the upper bounds; None: the policy acts in the environment's own units."""

    def seen(self, observations: Tensor) -> Tensor:
        """Return what the policy reads, ``[..., *shape]``, of observations ``[..., *given]``."""
        if self.observed == "discrete":
            numbers = torch.arange(self.first, self.first + self.shape[0], device=observations.device)
            return (observations.unsqueeze(-1) == numbers).to(torch.get_default_dtype())
        seen = observations.to(torch.get_default_dtype())
        lead = seen.ndim - len(self.given)
        if self.axes is not None:
            seen = seen.permute(*range(lead), *(lead + axis for axis in self.axes))
        if self.divisor != 1:
            seen = seen / self.divisor
        return seen.reshape((*seen.shape[:lead], *self.shape))

    def act(self, actions: Tensor) -> Tensor:
        """Return the environment's actions ``[..., *acted]`` for a policy's, within their bounds."""
        low = torch.tensor(self.low, device=actions.device)
        if not self.high:
            lead = actions.shape[:-1] if self.acted else actions.shape
            return (actions + (low if self.acted else low[0]).long()).reshape((*lead, *self.acted))
        low, high = low.to(actions.dtype), torch.tensor(self.high, device=actions.device).to(actions.dtype)
        if self.scale is not None:
            actions = low + (high - low) * ((actions / self.scale).clamp(-1, 1) + 1) / 2
        return torch.minimum(torch.maximum(actions, low), high).reshape((*actions.shape[:-1], *self.acted))

    def chosen(self, actions: Tensor) -> Tensor:
        """Return the policy's actions for the environment's own ``[..., *acted]``: the other way round."""
        lead = actions.shape[: actions.ndim - len(self.acted)]
        low = torch.tensor(self.low, device=actions.device)
        if not self.high:
            if not self.acted:
                return actions.long() - low[0].long()
            return actions.reshape(*lead, math.prod(self.acted)).long() - low.long()
        rows = actions.to(torch.get_default_dtype()).reshape(*lead, math.prod(self.acted))
        if self.scale is None:
            return rows
        half = self.half.to(rows)
        return (rows - low.to(rows) - half * self.scale) / half

    @property
    def half(self) -> Tensor:
        """How much more an action is for each unit of the policy's, by dimension."""
        if self.scale is None:
            return torch.ones(len(self.low))
        return (torch.tensor(self.high) - torch.tensor(self.low)) / (2 * self.scale)

    def policy_actions(self, spec: Spec) -> spaces.Space[Any]:
        """Return the space that a policy of a spec acts in."""
        if spec.choices:
            return spaces.MultiDiscrete([*spec.choices])
        if spec.kind == "discrete":
            return spaces.Discrete(spec.output_size)
        if self.scale is None:
            return spaces.Box(np.array(self.low, np.float32), np.array(self.high, np.float32))
        return spaces.Box(-self.scale, self.scale, (spec.output_size,))


def native(observations: spaces.Space[Any], actions: spaces.Space[Any], spec: Spec, scale: float | None) -> Native:
    """Return how policies of a spec fit an environment's spaces.

    Raises ValueError, with both sides, where they do not.
    """
    seen = layout(observations)
    kind, size, choices = acted_in(actions)
    if isinstance(actions, spaces.Box) and not is_bounded_box(actions):
        raise ValueError(f"actions of {actions} have no finite bounds: no policy of this run acts in them")
    ours = (tuple(spec.input_shape), spec.kind, spec.output_size, tuple(spec.choices), tuple(spec.observations))
    if (seen.shape, kind, size, choices, tuple(seen.recorded)) != ours:
        told = f"{kind} actions of size {size}" + (f" {choices}" if choices else "")
        wanted = f"{spec.kind} actions of size {spec.output_size}" + (f" {spec.choices}" if spec.choices else "")
        raise ValueError(
            f"the environment observes {_line(observations)} and acts in {_line(actions)}, which gives policies "
            f"inputs {seen.shape} and {told}: this run's have inputs {tuple(spec.input_shape)} and {wanted}; "
            "wrap it (gymnasium.wrappers) so that they match, or train on tasks with its spaces"
        )
    if seen.parts:
        observed: dict[str, Any] = {"observed": "flat", "given": seen.shape, "shape": seen.shape}
    elif isinstance(observations, spaces.Discrete):
        observed = {"observed": "discrete", "given": (), "shape": seen.shape, "first": int(observations.start)}
    else:
        divisor = 255.0 if seen.image else 1.0
        observed = {"observed": "box", "given": seen.given, "shape": seen.shape, "divisor": divisor, "axes": seen.axes}
    return Native(**observed, **_acting(actions, scale))


def _acting(actions: Any, scale: float | None) -> dict[str, Any]:
    if isinstance(actions, spaces.Box):
        low, high = (tuple(map(float, end.ravel())) for end in (actions.low, actions.high))
        return {"low": low, "high": high, "acted": tuple(actions.shape), "scale": scale}
    first = getattr(actions, "start", 0)
    if isinstance(actions, spaces.Discrete):
        return {"low": (float(first),), "scale": scale}
    count = math.prod(actions.shape)
    starts = first.ravel().tolist() if hasattr(first, "ravel") else [first] * count
    return {"low": tuple(map(float, starts)), "acted": tuple(actions.shape), "scale": scale}


def scale_of(family: ControlFamily) -> float | None:
    """Return the scale of a family's actions; None where its policies act in the environment's own units."""
    return float(getattr(family, "action_scale", 1.0)) if isinstance(family, OwnSpaces) else None


def of_family(family: ControlFamily, spec: Spec) -> Native:
    """Return the spaces of a family's own environments, in the middle of its tasks."""
    if isinstance(family, OwnSpaces) and isinstance(family, Parametrised):
        env: Any = family.own({name: middle(space) for name, space in family.parameter_space.spaces.items()})
        try:
            return native(env.observation_space, env.action_space, spec, scale_of(family))
        finally:
            close_environment(env, "the environment")
    lanes = family.environment(1, torch.device("cpu"))
    try:
        return native(lanes.single_observation_space, lanes.single_action_space, spec, None)
    finally:
        lanes.close()


def read(own: Native, spec: Spec, observations: Any) -> Tensor:
    """Return an environment's observations ``[..., *given]`` as a policy reads them. Raises ValueError."""
    if spec.observations and composite(observations):
        observations = flat(spec.observations, observations)
    given = observations if isinstance(observations, Tensor) else torch.from_numpy(np.array(observations))
    lead = given.ndim - len(own.given)
    if lead < 0 or tuple(given.shape[lead:]) != own.given:
        wanted = ", ".join(("...", *map(str, own.given)))
        raise ValueError(f"observations have shape {tuple(given.shape)} where ({wanted}) was expected")
    return own.seen(given)


def _line(space: Any) -> str:
    return " ".join(str(space).split())[:200]
