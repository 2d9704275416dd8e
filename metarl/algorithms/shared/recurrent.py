"""Few-shot learning with a recurrent network: items are shown one after another, their labels one step late.

Each input holds an item and the label of the item before. So the network must associate items with labels itself, and
can predict each item before it sees the label (Santoro et al., 2016, arXiv 1605.06065, sec. 2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from metarl import objectives
from metarl.algorithms.shared.feeding import fed
from metarl.types import Batch, Examples, Experience, Learner, Memory, Params, Shared, Spec, pooled, valid

LossOn = Literal["sequence", "query"]


class Core(NamedTuple):
    """A recurrent network as pure functions. ``hidden`` is a NamedTuple of tensors ``[row, ...]``."""

    init: Callable[[Generator], Params]
    start: Callable[[Params, int], Any]
    """``(params, rows) -> hidden``: the initial hidden state."""
    run: Callable[[Params, Any, Tensor], tuple[Tensor, Any]]
    """``(params, hidden, inputs [row, time, input_size]) -> (outputs [row, time, output_size], hidden)``."""
    run_to: Callable[[Params, Any, Tensor, Tensor], tuple[Tensor, Any]] | None = None
    """The same, with the hidden state after the items ``last`` ``[row]``; None where there is only that at the end."""


class Shown(NamedTuple):
    """The state of a recurrent learner: the hidden state for each task, and the last label."""

    params: Shared
    hidden: Any
    last: Tensor  # [task, label_size(spec)] the label of the last item, shown with the next item


def input_size(spec: Spec) -> int:
    """Return the width of a Core's inputs: the flattened item and the label of the item before."""
    return prod(spec.input_shape) + label_size(spec)


def label_size(spec: Spec) -> int:
    """Return the width of a label as network input."""
    return spec.output_size + (spec.kind == "regression")


def labels(spec: Spec, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return targets as network inputs, ``[task, item, label_size]``. All zeros mean "no label".

    Classes are one-hot. Regression values get an extra 1, which tells a value of 0 from no label.
    """
    if spec.kind == "classification":
        return functional.one_hot(targets, spec.output_size).to(dtype)
    return functional.pad(targets.to(dtype), (0, 1), value=1.0)


def check_loss_on(loss_on: LossOn) -> None:
    """Raise ValueError for an unknown choice."""
    if loss_on not in get_args(LossOn):
        raise ValueError(f"loss_on={loss_on!r}: expected one of {', '.join(get_args(LossOn))}")


def glorot(generator: Generator, outputs: int, inputs: int) -> Tensor:
    """Return Xavier-uniform weights ``[outputs, inputs]``."""
    return nn.init.xavier_uniform_(torch.empty(outputs, inputs), generator=generator)


def lstm(gates: Tensor, cell: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Return an LSTM's output and cell after one step, from its cell before, whose units are on the axis ``dim``.

    ``gates`` hold, on that axis, the pre-activations of input gate, forget gate, candidate and output gate.
    """
    enter, keep, value, leave = gates.chunk(4, dim=dim)
    cell = keep.sigmoid() * cell + enter.sigmoid() * value.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def few_shot(spec: Spec, core: Core, loss_on: LossOn) -> Learner:
    """Return a learner that shows the support items to a recurrent network, then predicts each query item by itself."""
    fold = _Fold(spec, core, loss_on)
    functions = core.init, fold.begin, fold.adapt, fold.predict, fold.meta_loss
    return fed(Learner(spec, 1, *functions, memory=Memory(fold.unroll)), honours_masks=core.run_to is not None)


@dataclass(frozen=True)
class _Fold:
    """The functions of a recurrent learner for examples."""

    spec: Spec
    core: Core
    loss_on: LossOn

    def begin(self, params: Params, descriptors: Tensor) -> Shown:
        tasks, some = len(descriptors), next(iter(params.values()))
        return Shown(Shared(params), self.core.start(params, tasks), some.new_zeros(tasks, label_size(self.spec)))

    def unroll(self, state: Shown, batch: Batch) -> tuple[Tensor, Shown]:
        """Show the items in order. Return predictions ``[task, item, output_size]``, each made before its label."""
        examples = checked(batch)
        own = labels(self.spec, examples.targets, state.last.dtype)
        late = torch.cat([state.last.unsqueeze(1), own[:, :-1]], dim=1)  # the label of the item before
        items = examples.inputs.reshape(*own.shape[:2], -1)
        told = torch.cat([items, late], dim=2)
        if examples.mask is None:
            outputs, hidden = self.core.run(state.params, state.hidden, told)
            return outputs, Shown(state.params, hidden, own[:, -1])
        assert self.core.run_to is not None
        last = examples.counts - 1
        outputs, hidden = self.core.run_to(state.params, state.hidden, told, last)
        return outputs, Shown(state.params, hidden, own[torch.arange(len(own), device=own.device), last])

    def adapt(self, state: Shown, batch: Batch) -> Shown:
        return self.unroll(state, batch)[1]

    def predict(self, state: Shown, inputs: Tensor) -> tuple[Tensor, Shown]:
        """Predict each item as if it came next. Items do not see each other, and the state does not change."""
        lead = inputs.shape[: inputs.ndim - len(self.spec.input_shape)]
        items = inputs.reshape(lead[0], -1, prod(self.spec.input_shape))
        queries = torch.cat([items, state.last.unsqueeze(1).expand(-1, items.shape[1], -1)], dim=2)
        # One row, with a copy of its task's hidden state, for each item: a sequence of length 1.
        hidden = type(state.hidden)(*(value.repeat_interleave(items.shape[1], 0) for value in state.hidden))
        outputs, _ = self.core.run(state.params, hidden, queries.flatten(0, 1).unsqueeze(1))
        return outputs.reshape(*lead, self.spec.output_size), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses on the query items, or on query and support items (``loss_on``), and metrics."""
        state, query = self.begin(params, experience.descriptors), checked(experience.query)
        supports = [checked(support) for support in experience.supports]
        support_outputs: list[Tensor] = []
        for support in supports:
            outputs, state = self.unroll(state, support)
            support_outputs.append(outputs)
        query_outputs, _ = self.predict(state, query.inputs)
        metrics = objectives.step_scores(self.spec.kind, query, query_outputs, step=len(supports))
        if self.spec.kind == "classification" and supports[0].mask is None:
            accuracies = objectives.instance_accuracies(support_outputs[0].detach(), supports[0])
            metrics |= {f"accuracy/instance_{number}": value for number, value in enumerate(accuracies, start=1)}
        if self.loss_on == "query":
            return objectives.loss(self.spec.kind, query_outputs, query), metrics
        # loss_on == "sequence": all support items as they were shown, then the queries.
        outputs = torch.cat([*support_outputs, query_outputs], dim=1)
        return objectives.loss(self.spec.kind, outputs, _sequence([*supports, query])), metrics


def _sequence(batches: Sequence[Examples]) -> Examples:
    """Return the items of all batches one after another, with their padding where it is."""
    if all(batch.mask is None for batch in batches):
        return pooled(batches)
    inputs, targets = (torch.cat([getattr(batch, name) for batch in batches], dim=1) for name in ("inputs", "targets"))
    return Examples(inputs=inputs, targets=targets, mask=torch.cat([valid(batch) for batch in batches], dim=1))


def checked(batch: Batch) -> Examples:
    """Return the batch. Raises ValueError unless it holds labelled examples."""
    if not isinstance(batch, Examples):
        raise ValueError(f"expected labelled examples, but got a {type(batch).__name__}")
    return batch
