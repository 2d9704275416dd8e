"""A device that is not there: everything runs on the CPU, and what a GPU would be waited for is counted.

Tensors say that they live on the device "meta", and hold CPU tensors that all operations are carried out on. So code
takes the way that it takes on a GPU, where numbers read from tensors, shapes that depend on them, and copies from and
to main memory make the processor wait. Operations between tensors here and there are refused, as they would be.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim")
COPIES = ("_to_copy", "copy_")


class Pretended(Tensor):
    """A tensor that says it lives on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)
        made.held = held
        return made

    def tolist(self) -> Any:
        """Copy to main memory, as any other tensor of a device."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of Waits()")


class Generator(torch.Generator):
    """A generator that says so, too."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.pretended = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return self.pretended


class Waits(TorchDispatchMode):
    """Counts what makes the processor wait for the device, by name, and remembers where."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.places: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function.overloadpacket.__name__, dict(kwargs or {})
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        here = any(isinstance(value, Pretended) for value in tensors)
        asked = kwargs.get("device")
        there = here if asked is None else torch.device(asked) == DEVICE
        if here or there:
            self._count(name, tensors, args, kwargs, here, there)
        if asked is not None and there:
            kwargs["device"] = torch.device("cpu")
        held_args, held_kwargs = tree_map_only(Pretended, lambda value: value.held, (args, kwargs))
        outcome = function(*held_args, **held_kwargs)
        if not there:
            return outcome
        return return_and_correct_aliasing(function, args, kwargs, tree_map_only(Tensor, Pretended, outcome))

    def _count(self, name: str, tensors: list[Tensor], args: Any, kwargs: Any, here: bool, there: bool) -> None:
        moves = name in COPIES and len({isinstance(value, Pretended) for value in tensors} | {there}) > 1
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if name in READS or by_mask:
            self._told(name)
        elif moves and not (there and (kwargs.get("non_blocking") or args[2:] == (True,))):
            self._told("to the device" if there else "to the processor")
        elif not moves and here:
            strangers = [value for value in tensors if not isinstance(value, Pretended) and value.ndim]
            assert not strangers, f"{name} between the device and main memory"

    def _told(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/metarl" in frame.filename]
        self.counts[what] += 1
        self.places.append(f"{what}: " + (f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "the test"))


@contextmanager
def generators(*modules: Any) -> Iterator[None]:
    """Let modules make generators that say so."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "Generator", Generator)
        yield
