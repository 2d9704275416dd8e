"""All that metarl uses of torch which torch does not call public, in one place: a new version may change it.

``tests/metarl/speed/test_internals.py`` says what is relied on, and fails when it is so no more.
"""

from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx as make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

Form = pytree.TreeSpec
"""The structure of tuples, lists and dicts, without what it holds."""
leaves_of = pytree.tree_leaves
"""``values -> [leaf]``"""
take_apart = pytree.tree_flatten
"""``values -> ([leaf], form)``"""
put_together = pytree.tree_unflatten
"""``([leaf], form) -> values``"""
on_leaves = pytree.tree_map
"""``(function, values) -> values``, each leaf replaced by what the function returns."""


def is_random(operation: Any) -> bool:
    """Return whether an operation, as a dispatch mode meets it, draws random numbers."""
    return torch.Tag.nondeterministic_seeded in operation.tags


def is_question(operation: Any, arguments: Any) -> bool:
    """Return whether an operation asks a tensor for yes or no, or for a whole number."""
    return operation is torch.ops.aten._local_scalar_dense.default and not arguments[0].is_floating_point()
