"""Memory-augmented neural networks (Santoro et al., 2016, arXiv 1605.06065): an LSTM with an external memory."""

from dataclasses import dataclass
from math import inf, log
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl.algorithms.shared import memory, recurrent
from metarl.algorithms.shared.memory import Form, Hidden, Weights
from metarl.algorithms.shared.recurrent import LossOn, glorot
from metarl.types import Learner, Params, Spec

Write = Literal["vector", "key"]
LOG_STRENGTH = "heads.log_strength"
"""Name of the parameter whose exponentials are the learned strengths of the keys, which so stay positive."""


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
    write: Write = "vector"
    """What a head writes: a vector of its own, or the key that it reads with (key, as in the paper)."""
    key_strength: float = 10.0
    """What a head's cosines are multiplied by before the softmax, at the start. 1 is the paper's form: over 128 slots,
    a softmax of cosines alone gives one of them hardly more than e / (e + 127), or 2 %."""
    learn_key_strength: bool = True
    """Meta-learn a strength for each head. The paper's form is --algorithm.write key --algorithm.key-strength 1
    --algorithm.no-learn-key-strength."""
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
        if self.write not in get_args(Write):
            raise ValueError(f"write={self.write!r}: expected one of {', '.join(get_args(Write))}")
        if not 0 < self.key_strength < inf:
            raise ValueError(f"key_strength={self.key_strength}: expected a positive number (1: cosines alone)")
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
        told = heads * (width * (2 if self.options.write == "vector" else 1) + 1)
        forget = torch.zeros(4, units)
        forget[1] = 1.0  # a positive forget-gate bias: the LSTM keeps its cell at the start of training
        params = {
            "controller.input": glorot(generator, 4 * units, recurrent.input_size(self.spec)),
            "controller.recurrent": glorot(generator, 4 * units, units + heads * width),
            "controller.bias": forget.flatten(),
            "heads.weight": glorot(generator, told, units),
            "heads.bias": torch.zeros(told),
            "output.weight": glorot(generator, self.spec.output_size, units + heads * width),
            "output.bias": torch.zeros(self.spec.output_size),
        }
        if self.options.learn_key_strength:
            params[LOG_STRENGTH] = torch.full((heads,), log(self.options.key_strength))
        return params

    def start(self, params: Params, rows: int) -> Hidden:
        options, some = self.options, params["output.bias"]
        empty = some.new_zeros(rows, options.controller)
        contents = some.new_zeros(rows, options.slots, options.width)
        weights = some.new_zeros(rows, options.heads, options.slots)
        read = some.new_zeros(rows, options.heads * options.width)
        return Hidden(empty, empty, read, contents, some.new_zeros(rows, options.slots), weights)

    def run(self, params: Params, hidden: Hidden, inputs: Tensor) -> tuple[Tensor, Hidden]:
        """Run the controller over inputs ``[row, time, input_size]``."""
        options = self.options
        # The input part of the gates does not depend on the state: compute it for all times in one product.
        projected = functional.linear(inputs, params["controller.input"], params["controller.bias"])
        form = Form(options.heads, options.width, options.decay, options.write == "vector")
        features, hidden = memory.run(form, self.weights(params), hidden, projected)
        return functional.linear(features, params["output.weight"], params["output.bias"]), hidden

    def weights(self, params: Params) -> Weights:
        """Return the weights of the controller and of its heads."""
        options, bias = self.options, params["heads.bias"]
        fixed = bias.new_full((options.heads,), options.key_strength)
        strength = params[LOG_STRENGTH].exp() if options.learn_key_strength else fixed
        return Weights(params["controller.recurrent"], params["heads.weight"], bias, strength)
