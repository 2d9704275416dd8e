"""Outer updates: how the meta-parameters change in each iteration. One file each, for any learner.

Each update processes the tasks in groups (``chunks``), one after another, and sums over the groups. Start reading in
``trpo``. ``adapted`` holds what updates of policies share, ``gradient`` the meta-gradient, Adam and gradient descent.
"""

from metarl.outer.choice import default_outer
from metarl.outer.gradient import SGD, Adam, meta_gradient
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO

__all__ = [
    "SGD",
    "TRPO",
    "Adam",
    "ProMP",
    "default_outer",
    "meta_gradient",
]
