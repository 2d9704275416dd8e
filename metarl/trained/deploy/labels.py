"""Classes of any hashable kind: numbered for a learner, and written as plain data."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (str, int, float, bool, type(None))


def as_list(targets: Any) -> list[Any]:
    """Return targets one by one; those of tensors and arrays as Python's numbers and texts.

    Raises ValueError for targets that are no sequence, and for a tensor or an array of more than one axis.
    """
    if isinstance(targets, Tensor | np.ndarray):
        if targets.ndim != 1:
            raise ValueError(f"targets have shape {tuple(targets.shape)}: expected a class for each input, (item,)")
        found: list[Any] = targets.tolist()
        return found
    if isinstance(targets, str) or not isinstance(targets, Iterable):
        raise ValueError(f"targets are {type(targets).__name__}: expected a class for each input")
    return [one.item() if isinstance(one, np.generic) else one for one in targets]


def classes_of(targets: Sequence[Any]) -> tuple[Any, ...]:
    """Return the different classes: sorted where they can be, else in the order in which they come.

    Raises ValueError for fewer than two classes, and for labels that are not hashable or not equal to themselves.
    """
    for one in targets:
        if not isinstance(one, Hashable):
            raise ValueError(f"the class {one!r} is of type {type(one).__name__}, which is not hashable")
        if one != one:
            raise ValueError("a class is nan: expected a name or a number for each input")
    found = list(dict.fromkeys(targets))
    if len(found) < 2:
        told = f"only the class {found[0]!r}" if found else "none"
        raise ValueError(f"the examples are of {told}: expected at least 2 classes to tell apart")
    try:
        return tuple(sorted(found))
    except TypeError:
        return tuple(found)


def numbered(targets: Sequence[Any], classes: Sequence[Any]) -> Tensor:
    """Return the number of each target's class, ``[item]``."""
    places = {one: place for place, one in enumerate(classes)}
    return torch.tensor([places[one] for one in targets])


def as_array(labels: Sequence[Any]) -> Any:
    """Return labels ``[item]`` as an array: of numbers or texts where all are of one such type, else of objects."""
    kinds = {type(one) for one in labels}
    if len(kinds) == 1 and kinds <= {str, int, float, bool}:
        return np.array(labels)
    array = np.empty(len(labels), dtype=object)
    array[:] = labels
    return array


def written(label: Any) -> Any:
    """Return a class as plain data. Raises ValueError for one of another kind than text, numbers and tuples of them."""
    if type(label) in PLAIN:
        return label
    if type(label) is tuple:
        return [written(part) for part in label]
    raise ValueError(
        f"the class {label!r} is of type {type(label).__name__}, which no file holds without code: fit with text, "
        "numbers, or tuples of them"
    )


def read(label: Any) -> Any:
    """Return a class as it was before ``written``."""
    return tuple(map(read, label)) if isinstance(label, list) else label
