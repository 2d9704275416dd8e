"""Which outer update moves the meta-parameters where none is chosen."""

from metarl.outer.gradient import Adam
from metarl.outer.trpo import TRPO
from metarl.types import Algorithm, Outer, Spec


def default_outer(algorithm: Algorithm, spec: Spec) -> Outer:
    """Return the outer update that an algorithm states by ``default_outer()``; else TRPO, or Adam for examples."""
    stated = getattr(algorithm, "default_outer", None)
    if stated is not None:
        outer: Outer = stated()
        return outer
    return TRPO() if spec.control else Adam()
