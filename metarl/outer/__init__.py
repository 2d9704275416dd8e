"""Outer updates: how the meta-parameters change in each iteration. One file each, for any learner.

Objective and optimiser are two things. For first-order updates, the objective is the meta-loss (``meta_gradient``), and
a ``chain`` of parts (``transforms``) makes a step of its gradient; Adam and SGD are ready-made, in ``gradient``. TRPO
and ProMP have objectives of their own on the adapted policies (``adapted``): a trust region and a clipped surrogate.
Each update processes the tasks in groups (``chunks``), one after another, and sums over the groups.
"""

from metarl.outer.chain import Chain, chain
from metarl.outer.choice import default_outer
from metarl.outer.gradient import SGD, Adam
from metarl.outer.meta_loss import meta_gradient
from metarl.outer.promp import ProMP
from metarl.outer.transforms import AdamW, At, Clip, Cosine, Descent, Linear, Torch, Transform, WarmUp
from metarl.outer.trpo import TRPO

__all__ = [
    "SGD",
    "TRPO",
    "Adam",
    "AdamW",
    "At",
    "Chain",
    "Clip",
    "Cosine",
    "Descent",
    "Linear",
    "ProMP",
    "Torch",
    "Transform",
    "WarmUp",
    "chain",
    "default_outer",
    "meta_gradient",
]
