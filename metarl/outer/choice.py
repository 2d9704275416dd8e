"""The default outer update of an algorithm."""

from metarl.outer.gradient import Adam
from metarl.outer.trpo import TRPO
from metarl.types import Algorithm, Outer, PrefersOuter, Spec


def default_outer(algorithm: Algorithm, spec: Spec) -> Outer:
    """Return the algorithm's own default outer update (``PrefersOuter``); otherwise TRPO, or Adam for examples.

    Raises ValueError if the algorithm's default is not an outer update.
    """
    outer = algorithm.default_outer() if isinstance(algorithm, PrefersOuter) else None
    if outer is None:
        return TRPO() if spec.control else Adam()
    if isinstance(outer, type) or not isinstance(outer, Outer):
        raise ValueError(
            f"{type(algorithm).__name__}.default_outer() returned {outer!r}: expected an outer update, such as Adam()"
        )
    return outer
