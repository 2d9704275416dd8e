"""Recurrent cells of any module, with a flat state: what a policy remembers is one vector ``[..., size]``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from metarl import plugins
from metarl.speed import without_cudnn
from metarl.types import Params

Make = Callable[[int, int], nn.Module]
"""``(inputs, hidden) -> module``, as the classes nn.GRU and nn.LSTM are."""
CellChoice = str | Make
"""What a user gives: 'gru', 'module:attribute', a function or a class as above, or a module."""
EXPECTED = "expected 'gru', or a function of (inputs, hidden), or its 'module:attribute', that makes an nn.Module"
PREFIX = "cell."


@dataclass(frozen=True)
class Cell:
    """A recurrent module as pure functions.

    The module is called as torch's recurrent modules are: ``module(inputs, state)`` returns outputs and the state after
    the last step. Inputs are ``[row, time, inputs]`` and outputs ``[row, time, width]``, or time comes first where the
    module has ``batch_first = False``. A state is a tensor ``[layer, row, unit]``, or a tuple of such; in the
    beginning it is zero.
    """

    module: nn.Module
    """The module, in evaluation mode; its own parameters are not used."""
    make: Make | None
    """What draws its initial parameters; None: they are the module's."""
    sizes: tuple[int, int]
    """Inputs and hidden units, of ``make``."""
    shapes: tuple[tuple[int, int], ...]
    """Layers and units of each tensor of the state."""
    is_tuple: bool
    width: int
    """Width of the outputs."""

    @property
    def size(self) -> int:
        """Width of the flat state."""
        return sum(map(prod, self.shapes))

    def init(self, generator: Generator) -> Params:
        """Return initial parameters, named ``cell.`` and as in the module. The global generator stays as it is."""
        seed = int(torch.randint(2**62, (), generator=generator))
        module = self.module if self.make is None else _seeded(self.make, *self.sizes, seed)
        return {PREFIX + name: value.detach().clone() for name, value in module.named_parameters()}

    def run(self, params: Params, state: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Go through inputs ``[row, time, inputs]`` from a state ``[row, size]``: outputs, and the state at the end."""
        own = {name.removeprefix(PREFIX): value for name, value in params.items() if name.startswith(PREFIX)}
        # TRPO differentiates twice, which cuDNN's recurrent layers do not.
        with without_cudnn(inputs.device):
            outputs, after = functional_call(self.module, own, (_turned(self.module, inputs), self._apart(state)))
        return _turned(self.module, outputs), _flat(after)

    def run_to(self, params: Params, state: Tensor, inputs: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same for rows of different lengths: the state is that after step ``last`` ``[row]`` of each."""
        outputs, ends, began = list[Tensor](), torch.zeros_like(state), 0
        for end in sorted({*last.tolist(), inputs.shape[1] - 1}):
            some, state = self.run(params, state, inputs[:, began : end + 1])
            ends = torch.where((last == end).unsqueeze(-1), state, ends)
            outputs.append(some)
            began = end + 1
        return torch.cat(outputs, dim=1), ends

    def _apart(self, state: Tensor) -> Any:
        """Return a flat state as the module takes it."""
        parts = torch.split(state, [prod(shape) for shape in self.shapes], dim=-1)
        tensors = tuple(
            part.reshape(len(part), *shape).transpose(0, 1).contiguous()
            for part, shape in zip(parts, self.shapes, strict=True)
        )
        return tensors if self.is_tuple else tensors[0]


def cell(choice: CellChoice, inputs: int, hidden: int) -> Cell:
    """Return the cell that a user has chosen.

    Raises:
        ValueError: it is no such module, cannot run on so many inputs, looks ahead, has buffers, or its state has
            another form.
    """
    given: Any = plugins.import_attribute(choice) if isinstance(choice, str) else choice
    make = None if isinstance(given, nn.Module) else given
    if make is not None and not callable(make):
        raise ValueError(f"cell={choice!r} is {type(given).__name__}: {EXPECTED}")
    module = given if make is None else _seeded(make, inputs, hidden, 0)
    told = f"cell={choice if isinstance(choice, str) else type(module).__name__!r}"
    if not isinstance(module, nn.Module):
        raise ValueError(f"cell={choice!r} makes {type(module).__name__}: {EXPECTED}")
    if getattr(module, "bidirectional", False):
        raise ValueError(f"{told} is bidirectional: a policy cannot look ahead")
    if any(True for _ in module.buffers()):
        raise ValueError(f"{told} has buffers, which no task owns: leave out batch norm")
    module.eval()  # no dropout: a policy is read again as it acted
    try:
        with torch.no_grad():
            some = next(module.parameters()).new_zeros(1, 1, inputs)
            outputs, after = module(_turned(module, some), None)
    except (RuntimeError, TypeError, ValueError, StopIteration) as error:
        raise ValueError(
            f"{told} cannot run on inputs [row, time, {inputs}] and the state None, as nn.GRU does: {error}"
        ) from error
    state = after if isinstance(after, tuple | list) else (after,)
    if not all(isinstance(part, Tensor) and part.ndim == 3 and part.shape[1] == 1 for part in state):
        shapes = ", ".join(str(list(part.shape)) if isinstance(part, Tensor) else repr(part) for part in state)
        raise ValueError(f"{told} has the state {shapes} after one row: expected tensors [layer, row, unit]")
    forms = tuple((part.shape[0], part.shape[2]) for part in state)
    return Cell(module, make, (inputs, hidden), forms, isinstance(after, tuple | list), outputs.shape[-1])


def _seeded(make: Make, inputs: int, hidden: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(inputs, hidden)


def _turned(module: nn.Module, values: Tensor) -> Tensor:
    """Exchange rows and time where the module has time first."""
    return values if getattr(module, "batch_first", True) else values.transpose(0, 1)


def _flat(state: Any) -> Tensor:
    """Return a module's state as ``[row, size]``."""
    parts: Sequence[Tensor] = state if isinstance(state, tuple | list) else (state,)
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=-1)
