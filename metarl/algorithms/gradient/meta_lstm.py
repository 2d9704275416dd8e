"""The LSTM meta-learner of Ravi and Larochelle (2017, "Optimization as a model for few-shot learning", ICLR).

A step of gradient descent is the update of an LSTM's cell whose forget gate is 1 and whose input gate is the step size.
So the cell state is the learner's parameters, the candidate is minus their gradient, and the gates are learned. They
are shared by all coordinates (single numbers) of the learner's parameters, which differ in what the gates read.
"""

from dataclasses import dataclass
from math import exp, log
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl import objectives
from metarl.algorithms.shared import inner, recurrent
from metarl.algorithms.shared.feeding import fed
from metarl.networks import Model, Network, NetworkOptions, loss_gradient, models, stack
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec

OPTIMISER = "optimiser:"
"""Prefix of the names of the gates' parameters among the meta-parameters; the others are the initial cell state."""
RANGE = 10.0
"""The paper's p: gradients and losses below exp(-p) count as small."""
KEEP = 5.0
"""Initial bias of the forget gate: the paper's, 4 to 6, keeps 98 to 99.8 % of a parameter."""
SPREAD = 0.01
"""Initial weights are uniform in plus and minus this, as in the paper's code."""


class Carried(NamedTuple):
    """What the optimiser remembers of each coordinate of each task's parameters.

    Coordinates come last: there are so many that a unit's values lie side by side, which makes sigmoids and products
    faster than a few units of one coordinate after another.
    """

    units: Tensor  # [task, hidden, coordinate] the first layer's output
    cell: Tensor  # [task, hidden, coordinate] the first layer's cell
    keep: Tensor  # [task, coordinate] the last forget gate
    enter: Tensor  # [task, coordinate] the last input gate


class Optimised(NamedTuple):
    """The state of the LSTM meta-learner: a network for each task, and what the optimiser remembers of it."""

    params: Params  # [task, *shape], the cell state
    optimiser: Params  # [*shape], shared by all tasks
    carried: Carried
    seen: Tensor | None  # [task, item, *input_shape] the latest support items; None before the first


@dataclass(frozen=True)
class MetaLSTM:
    """LSTM meta-learner: an LSTM whose cell state is a network's parameters learns to be the network's optimiser.

    Each adaptation is one update on the whole support set. It is first-order, as in the paper: the meta-gradient passes
    through the gates and the parameters, and takes gradients and losses as given. The paper's network is ``conv4``
    (32 filters, ``pool``) with inductive batch norm: its statistics are those of the episode's support items. A step
    remembers ``units`` numbers for each parameter of each task, so small meta-batches fit best.
    """

    steps: int = 5
    """Updates in meta-training, each on the whole support set (the paper: 5 to 12, on mini-batches)."""
    step_size: float = 0.01
    """The input gate at the start of training: the first step size (the paper: 0.007 to 0.018)."""
    units: int = 20
    """Units of the first layer, which reads the gradient and the loss."""
    second_order: bool = False
    """Let the meta-gradient pass through gradients and losses, too. The paper's code does not."""
    network: NetworkOptions = Network()
    """The network that is optimised. Its initial parameters, the initial cell state, are learned."""

    def __post_init__(self) -> None:
        for name in ("steps", "units"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not 0 < self.step_size < 1:
            raise ValueError(f"step_size={self.step_size}: it is a gate's value, between 0 and 1")

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of labelled examples.

        Raises:
            ValueError: control, where the loss of a batch is a surrogate whose value tells nothing, or a network that
                does not fit spec.
        """
        if spec.control:
            raise ValueError(
                "meta-lstm reads the loss of labelled examples, and the value of a policy-gradient surrogate tells "
                "nothing; for control, use maml with learn_step_sizes, which also learns its inner update"
            )
        loop = _Loop(self, spec, self.network.build(spec))
        functions = loop.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        learner = Learner(spec, self.steps, *functions, batch_norm=loop.model.batch_norm)
        return fed(learner, honours_masks=True)


def preprocessed(values: Tensor) -> Tensor:
    """Return ``[..., 2]``: the scale and the sign of numbers ``[...]`` of any size (the paper's section 3.2).

    ``(log|x| / p, sign(x))`` where ``|x| >= exp(-p)``, and ``(-1, exp(p) x)`` below.
    """
    small = values.abs() < exp(-RANGE)
    # Where a value is small, the logarithm is of 1: the slope of the branch that is not taken must be finite.
    scale = torch.where(small, torch.ones_like(values), values.abs()).log() / RANGE
    return torch.stack([torch.where(small, -torch.ones_like(values), scale),
                        torch.where(small, exp(RANGE) * values, values.sign())], dim=-1)  # fmt: skip


def update(
    optimiser: Params, carried: Carried, coordinates: Tensor, gradients: Tensor, losses: Tensor
) -> tuple[Tensor, Carried]:
    """Return the parameters after one update, and what the optimiser remembers (the paper's section 3.1).

    Args:
        optimiser: The gates' parameters ``[*shape]``.
        carried: What it remembers from the update before.
        coordinates: The learner's parameters, the cell state ``[task, coordinate]``.
        gradients: Those of the loss, ``[task, coordinate]``.
        losses: ``[task]``.
    """
    told = torch.cat([preprocessed(gradients).movedim(-1, 1), carried.units], dim=1)  # [task, 2 + hidden, coordinate]
    layer = optimiser["layer.weight"]
    weight = torch.cat([layer[:, :2], layer[:, 4:]], dim=1).expand(len(told), -1, -1)
    # The loss, whose weights lie between, is the same for all coordinates.
    constant = functional.linear(preprocessed(losses), layer[:, 2:4], optimiser["layer.bias"]).unsqueeze(-1)
    units, cell = recurrent.lstm(torch.baddbmm(constant, weight, told), carried.cell, dim=1)

    def gate(name: str, last: Tensor) -> Tensor:
        weight = optimiser[f"{name}.weight"]  # of the units, of the parameter, and of the gate's last value
        logits = weight[:-2] @ units + weight[-2] * coordinates + weight[-1] * last + optimiser[f"{name}.bias"]
        return logits.sigmoid()

    keep, enter = gate("keep", carried.keep), gate("enter", carried.enter)
    return keep * coordinates - enter * gradients, Carried(units, cell, keep, enter)


@dataclass(frozen=True)
class _Loop:
    """The functions of the Learner, with the options and the network that they use."""

    options: MetaLSTM
    spec: Spec
    model: Model

    def init(self, generator: Generator) -> Params:
        hidden, step_size = self.options.units, self.options.step_size

        def uniform(*shape: int) -> Tensor:
            return SPREAD * (2 * torch.rand(shape, generator=generator) - 1)

        params = self.model.init(generator)
        gates = {
            "layer.weight": uniform(4 * hidden, 4 + hidden),
            "layer.bias": torch.zeros(4 * hidden),
            "keep.weight": uniform(hidden + 2),
            "keep.bias": torch.tensor(KEEP),
            "enter.weight": uniform(hidden + 2),
            "enter.bias": torch.tensor(log(step_size / (1 - step_size))),
        }
        return params | {OPTIMISER + name: value for name, value in gates.items()}

    def begin(self, params: Params, descriptors: Tensor) -> Optimised:
        """Give every task the same initial cell state; the optimiser remembers nothing yet."""
        optimiser = {
            name.removeprefix(OPTIMISER): value for name, value in params.items() if name.startswith(OPTIMISER)
        }
        network = {name: value for name, value in params.items() if not name.startswith(OPTIMISER)}
        tasks, size = len(descriptors), sum(value.numel() for value in network.values())
        none = optimiser["keep.bias"].new_zeros(tasks, size)
        nothing = none.unsqueeze(1).expand(-1, self.options.units, -1)
        return Optimised(stack(network, tasks), optimiser, Carried(nothing, nothing, none, none), None)

    def adapt(self, state: Optimised, batch: Batch) -> Optimised:
        """Update each task's network once. Keep the graph if gradients are enabled."""
        if not isinstance(batch, Examples):
            raise ValueError(f"meta-lstm learns from labelled examples, but got a {type(batch).__name__}")
        gradients, losses = self.slopes(state.params, batch)
        joined, slopes = (
            torch.cat([value.flatten(1) for value in group.values()], 1) for group in (state.params, gradients)
        )
        moved, carried = update(state.optimiser, state.carried, joined, slopes, losses)
        pieces = torch.split(moved, [value[0].numel() for value in state.params.values()], dim=1)
        named = zip(state.params.items(), pieces, strict=True)
        params = {name: piece.view(value.shape) for (name, value), piece in named}
        return Optimised(params, state.optimiser, carried, batch.inputs)

    def slopes(self, params: Params, batch: Examples) -> tuple[Params, Tensor]:
        """Return the gradients ``[task, *shape]`` and the losses ``[task]`` on a batch: constants in first order."""
        second_order = self.options.second_order
        given = params if second_order else {name: value.detach() for name, value in params.items()}

        def loss(outputs: Tensor) -> Tensor:
            return objectives.task_loss(self.spec, outputs, batch)

        gradients = loss_gradient(self.model, given, list(given), batch.inputs, loss, second_order=second_order)
        return gradients, loss(self.model.apply(given, batch.inputs))

    def predict(self, state: Optimised, inputs: Tensor) -> tuple[Tensor, Optimised]:
        return models.predict(self.model, state.params, inputs, state.seen), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses of the updated networks on the query set (the paper's algorithm 1), and metrics."""
        return inner.losses_after(self, params, experience)
