"""A policy's view of any Gymnasium environment: observations, actions and task parameters as arrays.

Nothing here imports torch, to keep worker processes small.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import DTypeLike

from metarl.environments.observations import layout
from metarl.environments.parts import as_array as as_array
from metarl.spec import Kind, Spec

Env = gymnasium.Env[Any, Any]
Array = np.ndarray[Any, Any]


def spec_of(env: Env, parameters: spaces.Dict) -> Spec:
    """Return the Spec of a policy for an environment's spaces. Raises ValueError for unsupported spaces."""
    descriptor_size = sum(math.prod(space.shape or ()) for space in parameters.spaces.values())
    seen, actions = layout(env.observation_space), env.action_space
    if isinstance(actions, spaces.Box) and not is_bounded_box(actions):
        raise ValueError(f"actions of {actions} cannot be chosen: expected {KNOWN}")
    kind, size, choices = acted_in(actions)
    return Spec(seen.shape, size, kind, descriptor_size, choices, observations=seen.recorded)


KNOWN = "Discrete, MultiDiscrete, MultiBinary or a bounded Box of floats"


def acted_in(actions: spaces.Space[Any]) -> tuple[Kind, int, tuple[int, ...]]:
    """Return the kind of actions, their ``output_size`` and their ``choices``, as of ``Spec``.

    Raises ValueError for a space that no policy acts in.
    """
    if isinstance(actions, spaces.Discrete):
        return "discrete", int(actions.n), ()
    if isinstance(actions, spaces.MultiDiscrete):
        choices = tuple(actions.nvec.ravel().tolist())
        return "discrete", sum(choices), choices
    if isinstance(actions, spaces.MultiBinary):
        number = math.prod(actions.shape)
        return "discrete", 2 * number, (2,) * number
    if isinstance(actions, spaces.Box):
        return "continuous", math.prod(actions.shape), ()
    raise ValueError(f"actions of {actions} cannot be chosen: expected {KNOWN}")


def is_bounded_box(space: spaces.Space[Any]) -> TypeGuard["spaces.Box[Any]"]:
    """Return whether a space is a Box of floating-point numbers with finite ends."""
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.is_bounded()


def middle(space: spaces.Space[Any]) -> Array:
    """Return the middle of a bounded Box, or the first element of a Discrete space, as an array."""
    if isinstance(space, spaces.Box):
        return np.asarray((space.low.astype(float) + space.high) / 2)
    assert isinstance(space, spaces.Discrete)
    return np.asarray(space.start)


def plain(space: spaces.Space[Any], row: Array) -> Any:
    """Return a task parameter in the environment's type: an int (Discrete), a float (one number), or an array."""
    if isinstance(space, spaces.Discrete):
        return int(row)
    return float(row.item()) if row.size == 1 else row.astype(space.dtype)


def policy_spaces(
    spec: Spec, dtype: DTypeLike, action_scale: float = 1.0
) -> tuple[spaces.Box, spaces.Box | spaces.Discrete | spaces.MultiDiscrete]:
    """Return a policy's observation space and action space. Box actions are in [-action_scale, action_scale]."""
    kind = np.dtype(dtype).type
    observations = spaces.Box(-np.inf, np.inf, spec.input_shape, dtype=kind)
    if spec.choices:
        return observations, spaces.MultiDiscrete([*spec.choices])
    if spec.kind == "discrete":
        return observations, spaces.Discrete(spec.output_size)
    return observations, spaces.Box(-action_scale, action_scale, (spec.output_size,), dtype=kind)


def checked_options(
    options: Mapping[str, Any], parameters: spaces.Dict, num_envs: int
) -> tuple[dict[str, Array], Array]:
    """Return task parameters, one row per lane, and the mask of lanes to reset. Raises ValueError for wrong options."""
    given = dict(options)
    restarted = as_array(given.pop("reset_mask", np.ones(num_envs, dtype=bool)))
    if restarted.shape != (num_envs,) or restarted.dtype != bool:
        raise ValueError(f"reset_mask is {restarted.dtype} {restarted.shape} where bool {(num_envs,)} was expected")
    if unknown := sorted(set(given) - set(parameters.spaces)):
        raise ValueError(f"unknown options {unknown}: expected some of {[*parameters.spaces, 'reset_mask']}")
    return {name: elements(name, rows, parameters[name], num_envs) for name, rows in given.items()}, restarted


def elements(name: str, given: Any, space: spaces.Space[Any], number: int | None = None) -> Array:
    """Return rows of a task parameter, ``[row, *space.shape]``: ``number`` of them, or as many as there are.

    A parameter of one number may also be given without its axes, ``[row]``.

    Raises:
        ValueError: another number of rows, another shape, or an element that the space does not hold, such as 4.9 or 9
            for ``Discrete(5)``. The ends of a Box may be passed by the rounding of float32.
    """
    shape, dtype = space.shape or (), np.dtype(np.int64 if isinstance(space, spaces.Discrete) else np.float64)
    try:
        array = as_array(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the task parameter {name} is no array of numbers: {error}") from error
    lead = (number,) if number is not None else array.shape[:1]
    if math.prod(shape) == 1 and array.shape in (lead, (*lead, 1)):
        array = array.reshape(*lead, *shape)
    if array.dtype.kind not in "biuf" or not lead or array.shape != (*lead, *shape):
        expected = f"{dtype} {(number, *shape)}" if number is not None else f"for each task, an element of {space}"
        raise ValueError(f"the task parameter {name} is {array.dtype} {array.shape} where {expected} was expected")
    inside = _inside(array, space).reshape(len(array), -1).all(1)
    if not inside.all():
        wrong = array[np.flatnonzero(~inside)[0]].tolist()
        raise ValueError(f"the task parameter {name} is {wrong}: expected an element of {space}")
    return array.astype(dtype)


def _inside(array: Array, space: spaces.Space[Any]) -> Array:
    if isinstance(space, spaces.Discrete):
        return np.asarray((array >= space.start) & (array < space.start + space.n) & (array == np.floor(array)))
    assert isinstance(space, spaces.Box)
    low, high = space.low.astype(float), space.high.astype(float)
    rounding = float(np.finfo(np.float32).eps)
    return np.asarray((array >= low - rounding * np.abs(low)) & (array <= high + rounding * np.abs(high)))


def checked_actions(actions: Any, space: spaces.Space[Any]) -> Array:
    """Return actions, one row per lane, in the dtype of their space. Raises ValueError for wrong shapes or values."""
    given = as_array(actions)
    if given.shape != space.shape or not np.isfinite(given).all():
        raise ValueError(f"actions of shape {given.shape}: expected finite numbers of {space.shape}")
    return given.astype(space.dtype, copy=False)


def bounds(space: spaces.Space[Any]) -> tuple[Any, Any]:
    """Return the bounds of an action space, one number per dimension; for choices, the first of each twice."""
    if isinstance(space, spaces.Box):
        return space.low.ravel(), space.high.ravel()
    first = space.start.ravel() if isinstance(space, spaces.MultiDiscrete) else getattr(space, "start", 0)
    return first, first
