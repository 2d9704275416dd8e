"""Dict and Tuple observations as one vector: which numbers of it are which part.

Nothing here imports torch, to keep worker processes small.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.spec import Part

Array = np.ndarray[Any, Any]
PIXEL = 255
"""The largest value of a pixel."""
KNOWN = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"


def parts_of(space: spaces.Space[Any]) -> tuple[Part, ...]:
    """Return the parts of a space in the order of ``gymnasium.spaces.utils.flatten``.

    Raises:
        ValueError: it has a part of another space, such as one whose size is not bounded.
    """
    found: list[Part] = []
    offset = 0
    for path, one in _leaves(space, ()):
        part = _part(path, one, offset)
        offset += part.size
        found.append(part)
    if not offset:
        raise ValueError(f"observations of {space} hold no numbers, so there is nothing to read")
    return tuple(found)


def _leaves(space: spaces.Space[Any], path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(space, spaces.Dict):
        for name, one in space.spaces.items():
            yield from _leaves(one, (*path, name))
    elif isinstance(space, spaces.Tuple):
        for number, one in enumerate(space.spaces):
            yield from _leaves(one, (*path, number))
    else:
        yield path, space


def _part(path: tuple[str | int, ...], space: spaces.Space[Any], offset: int) -> Part:
    shape = space.shape or ()
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        number = space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n
        choices, first = (tuple(np.ravel(values).tolist()) for values in (number, space.start))
        return Part(path, shape, np.dtype(space.dtype).name, offset, sum(choices), choices, first)
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        scale = float(PIXEL) if is_image(space) else 1.0
        return Part(path, shape, np.dtype(space.dtype).name, offset, math.prod(shape), scale=scale)
    part = f"the part {told(path)} of the observations, {space}," if path else f"observations of {space}"
    raise ValueError(f"{part} cannot be read: expected {KNOWN}; wrap the environment")


def is_image(space: spaces.Space[Any]) -> bool:
    """Return whether a space holds pixels of 0 to 255."""
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3, 4):
        return False
    return bool((space.low == 0).all() and (space.high == PIXEL).all())


def composite(observation: Any) -> bool:
    """Return whether an observation, or a space, is one of several parts: a Dict or a Tuple."""
    return isinstance(observation, Mapping | tuple | spaces.Dict | spaces.Tuple)


def told(path: tuple[str | int, ...]) -> str:
    """Return what messages call a part, such as ``arm/0``."""
    return repr("/".join(map(str, path)))


def taken(observation: Any, path: tuple[str | int, ...]) -> Any:
    """Return a part of an observation. Raises ValueError where it is not there."""
    found = observation
    for key in path:
        whole = isinstance(found, Mapping) if isinstance(key, str) else isinstance(found, tuple | list)
        if not whole or (key not in found if isinstance(key, str) else key >= len(found)):
            raise ValueError(f"an observation has no part {told(path)}")
        found = found[key]
    return found


def as_array(values: Any) -> Array:
    """Return a tensor, or anything that NumPy accepts, as an array."""
    # A tensor may be on another device, and may require gradients.
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def flat(parts: tuple[Part, ...], observation: Any) -> Array:
    """Return observations, parts ``[..., *shape]``, as vectors ``[..., sum of sizes]`` in float64.

    Raises:
        ValueError: a part is missing, has another shape, or holds a choice that its space does not.
    """
    columns: list[Array] = []
    for part in parts:
        array = as_array(taken(observation, part.path))
        lead = array.shape[: max(array.ndim - len(part.shape), 0)]
        if array.shape != (*lead, *part.shape) or (columns and columns[0].shape[:-1] != lead):
            expected = (*(columns[0].shape[:-1] if columns else ()), *part.shape)
            raise ValueError(f"{_called(part)} has shape {array.shape} where {expected} was expected")
        if part.choices:
            columns += _one_hot(part, array.reshape(*lead, -1))
        else:
            columns.append(array.reshape(*lead, -1) / part.scale)
    return np.concatenate(columns, axis=-1, dtype=np.float64)


def _one_hot(part: Part, array: Array) -> Iterator[Array]:
    for values, number, first in zip(np.moveaxis(array, -1, 0), part.choices, part.first, strict=True):
        hot = values[..., None] == np.arange(first, first + number)
        if not hot.any(-1).all():
            wrong = values[~hot.any(-1)].flat[0].item()
            raise ValueError(f"{_called(part)} is {wrong}: expected {first} to {first + number - 1}")
        yield hot


def _called(part: Part) -> str:
    return f"the observation's part {told(part.path)}" if part.path else "an observation"
