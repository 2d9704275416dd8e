"""Dict and Tuple observations as one vector: which numbers of it are which part.

Nothing here imports torch, to keep worker processes small.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from metarl.spec import Part

Array = np.ndarray[Any, Any]
PIXEL = 255
"""The largest value of a pixel."""
ROUNDING = 1e-5
"""How far floats may leave a picture's range, as a share of it: filters that resize pictures do so."""
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
        dtype, size = np.dtype(space.dtype).name, math.prod(shape)
        return Part(path, shape, dtype, offset, size, scale=scale, channels=channels_of(space))
    part = f"the part {told(path)} of the observations, {space}," if path else f"observations of {space}"
    raise ValueError(f"{part} cannot be read: expected {KNOWN}; wrap the environment")


def is_image(space: spaces.Space[Any]) -> bool:
    """Return whether a space holds pixels of 0 to 255."""
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3, 4):
        return False
    return bool((space.low == 0).all() and (space.high == PIXEL).all())


def channels_of(space: spaces.Space[Any]) -> Literal["", "first", "last"]:
    """Return where a picture has its channels; empty for what is no picture.

    Pictures are Boxes of pixels (``is_image``), and Boxes of floats from 0 to 1 with three axes, or four if they are
    several frames. Channels are last where that axis is shorter than both before it.
    """
    if not isinstance(space, spaces.Box):
        return ""
    if not is_image(space):
        floats = np.issubdtype(space.dtype, np.floating) and len(space.shape) in (3, 4)
        if not floats or (space.low != 0).any() or (space.high != 1).any():
            return ""
    return "last" if has_channels_last(space.shape) else "first"


def has_channels_last(shape: tuple[int, ...]) -> bool:
    """Return whether the last of three axes, or of four with frames first, is the shortest of a frame's."""
    return len(shape) in (3, 4) and shape[-1] < min(shape[-3:-1])


def check_pixels(what: str, array: Array, dtype: Any, most: float) -> None:
    """Raise ValueError for a picture that is not as its space says: fractions, or numbers beyond 0 to ``most``.

    It would be a dark or a glaring picture, and nobody would see it.
    """
    if array.dtype == np.uint8 and most == PIXEL:
        return
    if array.dtype.kind == "f" and np.dtype(dtype).kind != "f" and (fractions := array != np.rint(array)).any():
        one = array[fractions].flat[0]
        raise ValueError(
            f"{what} holds {one:g} where its space has {np.dtype(dtype)}: return whole numbers up to {most:g}"
        )
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if low < -ROUNDING * most or high > (1 + ROUNDING) * most:  # not of nan, which others tell
        raise ValueError(f"{what} is a picture of {low:g} to {high:g} where its space has 0 to {most:g}")


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
            if part.channels:
                check_pixels(_called(part), array, part.dtype, part.scale)
            columns.append(array.reshape(*lead, -1) / part.scale)
    return np.concatenate(columns, axis=-1, dtype=np.float64)


def parted(space: spaces.Space[Any], vectors: Array) -> Any:
    """Return vectors ``[..., sum of sizes]`` as observations of a space, parts ``[..., *shape]``: the inverse of flat.

    It is exact for choices and whole numbers that the vectors' dtype holds.
    """
    return _nested(space, (), {part.path: _taken_out(part, vectors) for part in parts_of(space)})


def _nested(space: spaces.Space[Any], path: tuple[str | int, ...], arrays: Mapping[Any, Array]) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _nested(one, (*path, name), arrays) for name, one in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(one, (*path, number), arrays) for number, one in enumerate(space.spaces))
    return arrays[path]


def _taken_out(part: Part, vectors: Array) -> Array:
    lead, values = vectors.shape[:-1], vectors[..., part.offset : part.offset + part.size]
    if part.choices:
        hot = np.split(values, np.cumsum(part.choices)[:-1], axis=-1)
        chosen = [one.argmax(-1) + first for one, first in zip(hot, part.first, strict=True)]
        values = np.stack(chosen, axis=-1)
    elif part.scale != 1:
        values = values * part.scale
    return as_dtype(values.reshape((*lead, *part.shape)), part.dtype)


def as_dtype(values: Array, dtype: Any) -> Array:
    """Return numbers in a dtype, rounded where it holds whole numbers."""
    whole = np.dtype(dtype).kind in "biu" and values.dtype.kind == "f"
    return np.asarray((np.rint(values) if whole else values).astype(dtype))


def _one_hot(part: Part, array: Array) -> Iterator[Array]:
    for values, number, first in zip(np.moveaxis(array, -1, 0), part.choices, part.first, strict=True):
        hot = values[..., None] == np.arange(first, first + number)
        if not hot.any(-1).all():
            wrong = values[~hot.any(-1)].flat[0].item()
            raise ValueError(f"{_called(part)} is {wrong}: expected {first} to {first + number - 1}")
        yield hot


def _called(part: Part) -> str:
    return f"the observation's part {told(part.path)}" if part.path else "an observation"
