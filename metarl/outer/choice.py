"""Which outer update moves the meta-parameters where none is chosen."""

from metarl.outer.gradient import Adam
from metarl.outer.trpo import TRPO
from metarl.types import Algorithm, Outer, PrefersOuter, Spec


def default_outer(algorithm: Algorithm, spec: Spec) -> Outer:
    """Return the outer update that an algorithm states (``PrefersOuter``); else TRPO, or Adam for examples.

    Raises ValueError where it states something else.
    """
    if not isinstance(algorithm, PrefersOuter):
        return TRPO() if spec.control else Adam()
    outer = algorithm.default_outer()
    if isinstance(outer, type) or not isinstance(outer, Outer):
        raise ValueError(
            f"{type(algorithm).__name__}.default_outer() gave {outer!r}: expected an outer update, such as Adam()"
        )
    return outer
