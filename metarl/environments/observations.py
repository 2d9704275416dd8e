"""How a policy sees an environment's observations: numbers of one shape, in the policy's dtype.

Nothing here imports torch, to keep worker processes small.
"""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from metarl.environments.parts import (
    PIXEL,
    as_dtype,
    channels_of,
    check_pixels,
    flat,
    has_channels_last,
    is_image,
    parts_of,
)
from metarl.spec import Part

Array = np.ndarray[Any, Any]


class Layout(NamedTuple):
    """How observations of a space are laid out for a policy."""

    space: spaces.Space[Any]
    given: tuple[int, ...]
    """The shape of the environment's observations."""
    shape: tuple[int, ...]
    """The shape that the policy sees."""
    image: bool = False
    """Whether these are pixels of 0 to 255, which are divided by 255."""
    axes: tuple[int, ...] | None = None
    """The order of the axes, channels first; None: as they are."""
    parts: tuple[Part, ...] = ()
    """Of a Dict, a Tuple, MultiDiscrete or MultiBinary: what the policy's vector is made of."""
    most: float | None = None
    """Of a picture: the largest value that its space has, 255 or 1."""

    @property
    def recorded(self) -> tuple[Part, ...]:
        """The parts of a Dict or a Tuple, which a Spec records; empty for all others."""
        return self.parts if isinstance(self.space, spaces.Dict | spaces.Tuple) else ()

    @property
    def whole(self) -> bool:
        """Whether the space holds whole numbers."""
        return np.dtype(self.space.dtype).kind in "bui"

    def pixels(self, images: Any) -> Any:
        """Return images ``[..., *given]``, arrays or tensors, as the policy sees them: ``[..., *shape]`` in [0, 1]."""
        lead = images.shape[: images.ndim - len(self.given)]
        ordered = images if self.axes is None else images.swapaxes(-1, -2).swapaxes(-2, -3)
        return ordered.reshape(*lead, *self.shape) / PIXEL

    def unread(self, rows: Array) -> Array:
        """Return what a policy has seen of a Box or of Discrete, ``[..., *shape]``, as observations ``[..., *given]``.

        It is exact for choices and whole pixels; other numbers come back as the policy's dtype holds them.
        """
        lead = rows.shape[: rows.ndim - len(self.shape)]
        if isinstance(self.space, spaces.Discrete):
            return np.asarray(rows.argmax(-1) + self.space.start)
        kept = rows * PIXEL if self.image else rows
        if self.axes is not None:
            kept = kept.reshape((*lead, *(self.given[axis] for axis in self.axes)))
            kept = kept.transpose(*range(len(lead)), *(len(lead) + int(axis) for axis in np.argsort(self.axes)))
        return as_dtype(kept.reshape((*lead, *self.given)), self.space.dtype)


def pixels_of(lane: spaces.Space[Any]) -> Layout | None:
    """Return how a policy sees the images of lanes that have such a space each; None for lanes of other observations.

    Lanes of a ``GymnasiumFamily`` have read their images already, and have other spaces.
    """
    return layout(lane) if is_image(lane) else None


def layout(space: spaces.Space[Any]) -> Layout:
    """Return how a policy sees a space.

    Discrete observations are one-hot. Pictures, whose values are bounded by 0 and 255, or floats by 0 and 1, become
    ``[channel, height, width]`` in [0, 1]; those of several frames have the frames' channels one after another. Boxes
    of three axes whose last one is the shortest are laid out as pictures too. All other Boxes stay as they are. Dicts
    and Tuples become one vector, part after part: choices one-hot, pixels divided by 255, all flattened.

    Raises:
        ValueError: spaces, or parts of them, that cannot be read.
    """
    if isinstance(space, spaces.Discrete):
        return Layout(space, (), (int(space.n),))
    if not isinstance(space, spaces.Box):
        parts = parts_of(space)
        return Layout(space, space.shape or (), (sum(part.size for part in parts),), parts=parts)
    shape = space.shape
    image, picture = is_image(space), channels_of(space) != ""
    most = (float(PIXEL) if image else 1.0) if picture else None
    last = has_channels_last(shape)
    axes = (*range(len(shape) - 3), len(shape) - 1, len(shape) - 3, len(shape) - 2) if last else None
    ordered = shape if axes is None else tuple(shape[axis] for axis in axes)
    if len(shape) == 3:
        return Layout(space, shape, ordered, image, axes, most=most)
    if picture:  # grey, or several frames
        return Layout(space, shape, (math.prod(ordered[:-2]), *ordered[-2:]), image, axes, most=most)
    return Layout(space, shape, shape)


def made_equal(before: Array, now: Array, dtype: Any) -> tuple[Any, Any] | None:
    """Return two numbers, one before and one now, that differ but are the same in a dtype; None without any."""
    if before.shape != now.shape:
        return None
    lost = (now != before) & (now.astype(dtype) == before.astype(dtype))
    return (before[lost].flat[0], now[lost].flat[0]) if lost.any() else None


class Eye:
    """Reads the observations of one lane, in a policy's dtype.

    Args:
        dtype: The policy's dtype.
        where: What a warning calls the environment.
    """

    def __init__(self, dtype: Any, where: str) -> None:
        self._dtype, self._where = np.dtype(dtype), where
        self._exact = 2.0 / float(np.finfo(self._dtype).eps)  # every integer below it is told apart
        self._before: Array | None = None
        self._warned = False

    def read(self, seen: Layout, observation: Any) -> Array:
        """Return an observation as the policy sees it. Raises ValueError for one outside its space.

        Warns once where observations that differ become equal in the policy's dtype.
        """
        space, given, shape, image, axes, parts, most = seen
        if parts:
            return self._read_parts(seen, observation)
        array = np.asarray(observation)
        if array.shape != given:
            raise ValueError(f"an observation has shape {array.shape} where {given} was expected")
        if isinstance(space, spaces.Discrete):
            if observation not in space:
                raise ValueError(f"the observation {observation!r} is not in {space}")
            return np.asarray(np.arange(space.start, space.start + space.n) == array)
        if most is not None:
            check_pixels("an observation", array, space.dtype, most)
        self._check_numbers(array, observation)
        if axes is not None:
            array = array.transpose(axes)
        if image:
            array = array / self._dtype.type(PIXEL)
        return array if array.shape == shape else array.reshape(shape)

    def _check_numbers(self, array: Array, observation: Any) -> None:
        if array.dtype == self._dtype:
            if not np.isfinite(array).all():
                self._check_large(array, observation)
        elif array.dtype.kind == "c":
            raise ValueError(f"an observation holds complex numbers: {observation!r}; expected real ones")
        elif array.size and not np.abs(array).max() < self._exact:  # also where any number is nan
            self._check_large(array, observation)

    def _read_parts(self, seen: Layout, observation: Any) -> Array:
        array = flat(seen.parts, observation)
        if array.shape != seen.shape:
            raise ValueError(f"an observation has axes {array.shape[:-1]} before those of {seen.space}")
        if not np.abs(array).max(initial=0) < self._exact:
            self._check_large(array, observation)
        return array

    def _check_large(self, array: Array, observation: Any) -> None:
        """Raise ValueError for numbers that the dtype does not hold; warn where it does not tell them apart."""
        if not np.isfinite(array).all():
            raise ValueError(f"an observation holds numbers that are not finite: {observation!r}")
        if np.abs(array).max() > np.finfo(self._dtype).max:
            raise ValueError(f"an observation holds numbers that {self._dtype} does not hold: {observation!r}")
        before, self._before = self._before, array.copy()
        if not self._warned and before is not None and (equal := made_equal(before, array, self._dtype)):
            self._warned = True
            one, other = equal
            warnings.warn(
                f"{self._where}: the observations {one} and {other} are the same number in {self._dtype}: subtract a "
                f"constant such as {one} from them, for example in gymnasium.wrappers.TransformObservation",
                stacklevel=2,
            )


def named(env: Any) -> str:
    """Return what messages call an environment, from its id or from what makes it."""
    made = getattr(env, "func", env)
    name = made if isinstance(made, str) else str(getattr(made, "__qualname__", type(made).__qualname__))
    return name.replace(".<locals>", "")
