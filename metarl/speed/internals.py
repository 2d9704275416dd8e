"""The only uses of torch's private API, which a new version of torch may change.

``tests/metarl/speed/test_internals.py`` states the assumptions, and fails when they no longer hold.
"""

from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx as make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

from metarl.types import Examples, Experience, Rollout, Shared

Form = pytree.TreeSpec
"""The structure of nested tuples, lists and dicts, without the leaves."""
leaves_of = pytree.tree_leaves
"""``values -> [leaf]``"""
take_apart = pytree.tree_flatten
"""``values -> ([leaf], form)``"""
put_together = pytree.tree_unflatten
"""``([leaf], form) -> values``"""
on_leaves = pytree.tree_map
"""``(function, values) -> values``, each leaf replaced by what the function returns."""


def is_random(operation: Any) -> bool:
    """Return whether an operation, as seen by a dispatch mode, draws random numbers."""
    return torch.Tag.nondeterministic_seeded in operation.tags


def is_question(operation: Any, arguments: Any) -> bool:
    """Return whether an operation reads a bool or an integer from a tensor, as ``bool(tensor)`` does."""
    return operation is torch.ops.aten._local_scalar_dense.default and not arguments[0].is_floating_point()


def _register(kind: type[Any]) -> None:
    """Make a dataclass of the vocabulary a pytree, whose leaves are its fields that are not None."""

    def flatten(batch: Any) -> tuple[list[Any], tuple[str, ...]]:
        present = {name: value for name, value in vars(batch).items() if value is not None}
        return list(present.values()), tuple(present)

    def unflatten(values: Any, names: Any) -> Any:
        return kind(**dict(zip(names, values, strict=True)))

    pytree.register_pytree_node(kind, flatten, unflatten)


for kind in (Examples, Rollout, Experience):
    _register(kind)

pytree.register_pytree_node(
    Shared,
    lambda shared: (list(shared.values()), tuple(shared)),
    lambda values, names: Shared(dict(zip(names, values, strict=True))),
)
