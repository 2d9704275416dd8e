"""A graph that stands in for a function: made, compared with the function, and left out with a warning if that fails.

Whole iterations on labelled examples (``metarl.training.compiling``), parts of an iteration (``parts``) and the step of
lanes on a GPU go through here: what may differ between them is how the graph is made, and what it is compared by.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor

from metarl.numerics import near

Made = TypeVar("Made")


class SubstituteError(RuntimeError):
    """A graph cannot be made, or does not do what its function does."""


def made_or_warned(make: Callable[[], Made], refusal: Callable[[str], str], level: int) -> Made | None:
    """Return what ``make`` returns; None, with a warning, if it raises.

    Args:
        make: Makes the graph and compares it with its function, or compares it again.
        refusal: ``cause -> text`` of the warning; the cause is the first line of the error.
        level: Frames above the caller to which the warning points.
    """
    try:
        return make()
    except Exception as error:  # compilers, drivers and other people's code may raise anything
        warnings.warn(refusal(str(error).strip().partition("\n")[0]), stacklevel=level + 2)
        return None


def require_same(found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float, difference: str) -> None:
    """Raise SubstituteError, which says what the ``difference`` is, unless each result is near the function's own."""
    for ours, theirs in zip(found, expected, strict=True):
        if not near(ours, theirs, tolerance):
            raise SubstituteError(difference)


def is_comparison(iteration: int, every: int) -> bool:
    """Return whether graphs are compared in an iteration: in 1, 2, 4, 8, ..., soon after early changes, and then.

    The number alone decides, so that a run that is resumed does what it would have done.
    """
    return iteration & (iteration - 1) == 0 or iteration % every == 0
