"""Memory-augmented neural networks (Santoro et al., 2016, arXiv 1605.06065): an LSTM with an external memory."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl.algorithms.shared import recurrent
from metarl.algorithms.shared.recurrent import LossOn, glorot
from metarl.types import Learner, Params, Spec


class Memory(NamedTuple):
    """The memory of each row: a matrix of slots, and how much each slot was used."""

    contents: Tensor  # [row, slot, width]
    usage: Tensor  # [row, slot] decaying sum of read and write weights
    weights: Tensor  # [row, head, slot] read weights of the last read


class Hidden(NamedTuple):
    """The state of the controller and of its memory."""

    output: Tensor  # [row, controller]
    cell: Tensor  # [row, controller]
    read: Tensor  # [row, head * width] vectors returned by the last read
    contents: Tensor
    usage: Tensor
    weights: Tensor


@dataclass(frozen=True)
class MANN:
    """Memory-augmented networks: an LSTM writes labelled examples to an external memory and reads them for new items.

    It also reports ``accuracy/instance_k``: the accuracy on the k-th item of a class, predicted before its label is
    shown, with the support items in random order. This is the paper's measure, for 5 classes of 10 items each:
    ``--tasks.shots 10 --tasks.queries 1``. Further queries would come only after all 50 items.
    """

    slots: int = 128
    """Number of memory slots."""
    width: int = 40
    """Size of a slot."""
    controller: int = 200
    """Units of the LSTM."""
    heads: int = 4
    """Number of heads. Each writes one slot and reads one vector at every step."""
    decay: float = 0.95
    """Decay of past usage per step."""
    loss_on: LossOn = "sequence"
    """Items that the loss is computed on: all support items as they are shown and the queries (sequence, as in the
    paper), or the queries only (query)."""

    def __post_init__(self) -> None:
        for name in ("slots", "width", "controller", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.heads > self.slots:
            raise ValueError(f"heads={self.heads}: each head writes its own slot, and there are only {self.slots}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay}: expected a number in [0, 1]")
        recurrent.check_loss_on(self.loss_on)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec. Raises ValueError for control."""
        if spec.control:
            raise ValueError("MANN learns from labelled examples; for control, use rl2, which also has a memory")
        network = _Network(self, spec)
        return recurrent.few_shot(spec, recurrent.Core(network.init, network.start, network.run), self.loss_on)


@dataclass(frozen=True)
class _Network:
    """The functions of MANN's Core, with its options and spec."""

    options: MANN
    spec: Spec

    def init(self, generator: Generator) -> Params:
        units, heads, width = self.options.controller, self.options.heads, self.options.width
        forget = torch.zeros(4, units)
        forget[1] = 1.0  # a positive forget-gate bias: the LSTM keeps its cell at the start of training
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
        """Run the controller over inputs ``[row, time, input_size]``."""
        features = []
        # The input part of the gates does not depend on the state: compute it for all times in one product.
        for projected in functional.linear(inputs, params["controller.input"], params["controller.bias"]).unbind(1):
            hidden = self._step(params, hidden, projected)
            features.append(torch.cat([hidden.output, hidden.read], dim=-1))
        return functional.linear(torch.stack(features, dim=1), params["output.weight"], params["output.bias"]), hidden

    def _step(self, params: Params, hidden: Hidden, projected: Tensor) -> Hidden:
        heads, width = self.options.heads, self.options.width
        before = torch.cat([hidden.output, hidden.read], dim=-1)
        gates = projected + functional.linear(before, params["controller.recurrent"])
        output, cell = recurrent.lstm(gates, hidden.cell)
        interface = functional.linear(output, params["heads.weight"], params["heads.bias"])
        keys = interface[:, : heads * width].tanh()
        reuse = interface[:, heads * width :].sigmoid()
        memory = Memory(hidden.contents, hidden.usage, hidden.weights)
        memory = access(memory, keys.reshape(-1, heads, width), reuse, self.options.decay)
        read = (memory.weights @ memory.contents).flatten(1)  # eq. 4
        return Hidden(output, cell, read, *memory)


def access(memory: Memory, keys: Tensor, reuse: Tensor, decay: float) -> Memory:
    """Write keys to the memory, then read it: least recently used access (sec. 3, eqs. 2 to 8).

    Head i takes the i-th least used slot, which is emptied first. It adds its key to the slots that it read last with
    weight ``reuse``, and to its own slot with weight ``1 - reuse``. Then it reads slots by their similarity to its key.

    Args:
        memory: The memory before this step.
        keys: ``[row, head, width]``.
        reuse: ``[row, head]`` in (0, 1).
        decay: Decay of past usage.
    """
    slots = memory.usage.shape[-1]
    # A stable sort, so that ties are broken in the same way in every batch.
    least_used = memory.usage.detach().argsort(dim=-1, stable=True)[:, : keys.shape[1]]
    own = (least_used.unsqueeze(-1) == torch.arange(slots, device=keys.device)).to(keys.dtype)
    writing = reuse.unsqueeze(-1) * memory.weights + (1 - reuse).unsqueeze(-1) * own
    contents = torch.baddbmm(memory.contents * (1 - own.sum(1)).unsqueeze(-1), writing.mT, keys)
    weights = functional.softmax(cosines(keys, contents), dim=-1)
    return Memory(contents, decay * memory.usage + weights.sum(1) + writing.sum(1), weights)


def cosines(keys: Tensor, contents: Tensor) -> Tensor:
    """Return the cosine of every key with every slot, ``[row, head, slot]``; 0 for an empty slot (eq. 2)."""
    # Divide by the lengths afterwards: a normalised copy of the contents would cost more than the rest of the step.
    lengths = keys.norm(dim=-1).unsqueeze(2) * contents.norm(dim=-1).unsqueeze(1)
    similarity: Tensor = keys @ contents.mT / (lengths + 1e-8)
    return similarity
