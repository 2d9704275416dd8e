"""Memory-augmented neural networks (Santoro et al., 2016, arXiv 1605.06065): an LSTM that writes and reads a memory."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl.algorithms.shared import recurrent
from metarl.algorithms.shared.recurrent import LossOn, glorot
from metarl.types import Learner, Params, Spec


class Memory(NamedTuple):
    """A matrix of slots for each row, and how they were used."""

    contents: Tensor  # [row, slot, width]
    usage: Tensor  # [row, slot] decaying sum of what was read and written
    weights: Tensor  # [row, head, slot] of the last read


class Hidden(NamedTuple):
    """The state of the controller and of its memory."""

    output: Tensor  # [row, controller]
    cell: Tensor  # [row, controller]
    read: Tensor  # [row, head * width] what the last read returned
    contents: Tensor
    usage: Tensor
    weights: Tensor


@dataclass(frozen=True)
class MANN:
    """Memory-augmented networks: an LSTM controller with a memory whose least recently used slots are overwritten.

    It reports ``accuracy/instance_k`` besides: how often the k-th item of a class is told before its label is shown,
    with the support items in random order. That is the paper's measure, for 5 classes of 10 items each: ``--tasks.shots
    10 --tasks.queries 1``, where further queries would be asked about after all 50.
    """

    slots: int = 128
    """Slots of the memory."""
    width: int = 40
    """Numbers in a slot."""
    controller: int = 200
    """Units of the LSTM."""
    heads: int = 4
    """Slots that are written, and read vectors, at each step."""
    decay: float = 0.95
    """Factor by which past usage counts less at each step."""
    loss_on: LossOn = "sequence"
    """What is trained: every item, as it is shown, and the queries (sequence: the paper's); or the queries only."""

    def __post_init__(self) -> None:
        for name in ("slots", "width", "controller", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.heads > self.slots:
            raise ValueError(f"heads={self.heads}: each writes a slot of its own, and there are {self.slots}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay}: expected a number in [0, 1]")
        recurrent.check_loss_on(self.loss_on)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec. Raises ValueError for control."""
        if spec.control:
            raise ValueError("MANN learns from labelled examples; among learners with memory, rl2 acts")
        network = _Network(self, spec)
        return recurrent.few_shot(spec, recurrent.Core(network.init, network.start, network.run), self.loss_on)


@dataclass(frozen=True)
class _Network:
    """MANN's options with what it is about: the functions of its Core."""

    options: MANN
    spec: Spec

    def init(self, generator: Generator) -> Params:
        units, heads, width = self.options.controller, self.options.heads, self.options.width
        forget = torch.zeros(4, units)
        forget[1] = 1.0  # keep the cell, to begin with
        return {
            "controller.input": glorot(generator, 4 * units, recurrent.input_size(self.spec)),
            "controller.recurrent": glorot(generator, 4 * units, units + heads * width),
            "controller.bias": forget.flatten(),
            "heads.weight": glorot(generator, heads * (width + 1), units),
            "heads.bias": torch.zeros(heads * (width + 1)),
            "output.weight": glorot(generator, self.spec.output_size, units + heads * width),
            "output.bias": torch.zeros(self.spec.output_size),
        }

    def start(self, params: Params, rows: int) -> Hidden:
        options, some = self.options, params["output.bias"]
        empty = some.new_zeros(rows, options.controller)
        contents = some.new_zeros(rows, options.slots, options.width)
        weights = some.new_zeros(rows, options.heads, options.slots)
        read = some.new_zeros(rows, options.heads * options.width)
        return Hidden(empty, empty, read, contents, some.new_zeros(rows, options.slots), weights)

    def run(self, params: Params, hidden: Hidden, inputs: Tensor) -> tuple[Tensor, Hidden]:
        """Let the controller go through inputs ``[row, time, input_size]``."""
        said = []
        # The inputs' part of the gates needs no loop over time.
        for projected in functional.linear(inputs, params["controller.input"], params["controller.bias"]).unbind(1):
            hidden = self._step(params, hidden, projected)
            said.append(torch.cat([hidden.output, hidden.read], dim=-1))
        return functional.linear(torch.stack(said, dim=1), params["output.weight"], params["output.bias"]), hidden

    def _step(self, params: Params, hidden: Hidden, projected: Tensor) -> Hidden:
        heads, width = self.options.heads, self.options.width
        before = torch.cat([hidden.output, hidden.read], dim=-1)
        gates = projected + functional.linear(before, params["controller.recurrent"])
        output, cell = recurrent.lstm(gates, hidden.cell)
        asked = functional.linear(output, params["heads.weight"], params["heads.bias"])
        keys, reuse = asked[:, : heads * width].tanh(), asked[:, heads * width :].sigmoid()
        memory = Memory(hidden.contents, hidden.usage, hidden.weights)
        memory = access(memory, keys.reshape(-1, heads, width), reuse, self.options.decay)
        return Hidden(output, cell, (memory.weights @ memory.contents).flatten(1), *memory)


def access(memory: Memory, keys: Tensor, reuse: Tensor, decay: float) -> Memory:
    """Write keys into a memory, then read it: least recently used access (sec. 3, eqs. 2 to 8).

    Every head adds its key to the slots that it read last, by its share ``reuse``, and to an emptied slot of its own,
    by the rest: the head's turn among the least used ones. Then it reads the slots that resemble its key.

    Args:
        memory: What was written so far.
        keys: ``[row, head, width]``.
        reuse: ``[row, head]`` in (0, 1).
        decay: Factor of past usage.
    """
    slots = memory.usage.shape[-1]
    # Sorted stably: equal usage must not be ordered differently from one batch to the next.
    least_used = memory.usage.detach().argsort(dim=-1, stable=True)[:, : keys.shape[1]]
    own = (least_used.unsqueeze(-1) == torch.arange(slots, device=keys.device)).to(keys.dtype)
    writing = reuse.unsqueeze(-1) * memory.weights + (1 - reuse).unsqueeze(-1) * own
    contents = torch.baddbmm(memory.contents * (1 - own.sum(1)).unsqueeze(-1), writing.mT, keys)
    weights = functional.softmax(cosines(keys, contents), dim=-1)
    return Memory(contents, decay * memory.usage + weights.sum(1) + writing.sum(1), weights)


def cosines(keys: Tensor, contents: Tensor) -> Tensor:
    """Cosine of every key with every slot, ``[row, head, slot]``; 0 for an empty slot."""
    # Lengths apart: a normalised copy of the contents would cost more than all the rest.
    lengths = keys.norm(dim=-1).unsqueeze(2) * contents.norm(dim=-1).unsqueeze(1)
    similarity: Tensor = keys @ contents.mT / (lengths + 1e-8)
    return similarity
