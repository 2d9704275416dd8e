"""Learning from labelled examples by a recurrent network: they are shown one after another, labels one step late.

With an item comes the label of the item before, so that the network must bind them itself, and can be asked about every
item before it is told (Santoro et al., 2016, arXiv 1605.06065, sec. 2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from metarl import objectives
from metarl.algorithms.shared.feeding import fed
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec

LossOn = Literal["sequence", "query"]


class Core(NamedTuple):
    """A recurrent network as pure functions; ``hidden`` is a NamedTuple of tensors ``[row, ...]``."""

    init: Callable[[Generator], Params]
    start: Callable[[Params, int], Any]
    """``(params, rows) -> hidden``: nothing seen yet."""
    run: Callable[[Params, Any, Tensor], tuple[Tensor, Any]]
    """``(params, hidden, inputs [row, time, input_size]) -> (outputs [row, time, output_size], hidden)``."""


class Shown(NamedTuple):
    """What a recurrent network knows of each task."""

    params: Params  # [*shape], shared by all tasks
    hidden: Any
    last: Tensor  # [task, label_size(spec)] the label of the last item, which comes with the next one


def input_size(spec: Spec) -> int:
    """Width of what a Core is given with each item: the item, flattened, and the label before."""
    return prod(spec.input_shape) + label_size(spec)


def label_size(spec: Spec) -> int:
    """Width of a label as a network reads it."""
    return spec.output_size + (spec.kind == "regression")


def labels(spec: Spec, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Targets as a network reads them, ``[task, item, label_size]``, so that zeros mean none.

    Classes are one-hot; values have a 1 beside them.
    """
    if spec.kind == "classification":
        return functional.one_hot(targets, spec.output_size).to(dtype)
    return functional.pad(targets.to(dtype), (0, 1), value=1.0)


def check_loss_on(loss_on: LossOn) -> None:
    """Raise ValueError for an unknown choice."""
    if loss_on not in get_args(LossOn):
        raise ValueError(f"loss_on={loss_on!r}: expected one of {', '.join(get_args(LossOn))}")


def glorot(generator: Generator, outputs: int, inputs: int) -> Tensor:
    """Xavier-uniform weights ``[outputs, inputs]``."""
    return nn.init.xavier_uniform_(torch.empty(outputs, inputs), generator=generator)


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return an LSTM's output and cell ``[..., unit]`` after a step with pre-activations ``[..., 4 * unit]``.

    These are of the input gate, the forget gate, the candidate and the output gate.
    """
    enter, keep, value, leave = gates.chunk(4, dim=-1)
    cell = keep.sigmoid() * cell + enter.sigmoid() * value.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def few_shot(spec: Spec, core: Core, loss_on: LossOn) -> Learner:
    """Return the learner that shows a core a task's support items, then asks it about each query item by itself."""
    fold = _Fold(spec, core, loss_on)
    learner = Learner(spec, 1, core.init, fold.begin, fold.adapt, fold.predict, fold.meta_loss, replay=fold.replay)
    return fed(learner)


@dataclass(frozen=True)
class _Fold:
    """The functions of a recurrent network's Learner for examples."""

    spec: Spec
    core: Core
    loss_on: LossOn

    def begin(self, params: Params, descriptors: Tensor) -> Shown:
        tasks, some = len(descriptors), next(iter(params.values()))
        return Shown(params, self.core.start(params, tasks), some.new_zeros(tasks, label_size(self.spec)))

    def replay(self, state: Shown, batch: Batch) -> tuple[Tensor, Shown]:
        """Show the items in their order; say of each what it is, ``[task, item, output_size]``, before it is told."""
        examples = checked(batch)
        told = labels(self.spec, examples.targets, state.last.dtype)
        late = torch.cat([state.last.unsqueeze(1), told[:, :-1]], dim=1)
        items = examples.inputs.reshape(*told.shape[:2], -1)
        outputs, hidden = self.core.run(state.params, state.hidden, torch.cat([items, late], dim=2))
        return outputs, Shown(state.params, hidden, told[:, -1])

    def adapt(self, state: Shown, batch: Batch) -> Shown:
        return self.replay(state, batch)[1]

    def predict(self, state: Shown, inputs: Tensor) -> tuple[Tensor, Shown]:
        """Ask about each item as if it were the next one: items do not see each other, and are forgotten."""
        lead = inputs.shape[: inputs.ndim - len(self.spec.input_shape)]
        items = inputs.reshape(lead[0], -1, prod(self.spec.input_shape))
        asked = torch.cat([items, state.last.unsqueeze(1).expand(-1, items.shape[1], -1)], dim=2)
        hidden = type(state.hidden)(*(value.repeat_interleave(items.shape[1], 0) for value in state.hidden))
        outputs, _ = self.core.run(state.params, hidden, asked.flatten(0, 1).unsqueeze(1))
        return outputs.reshape(*lead, self.spec.output_size), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss on the query items, or on them and on all support items as they were shown."""
        state, query = self.begin(params, experience.descriptors), checked(experience.query)
        shown = [checked(support) for support in experience.supports]
        said: list[Tensor] = []
        for support in shown:
            outputs, state = self.replay(state, support)
            said.append(outputs)
        answers, _ = self.predict(state, query.inputs)
        metrics = objectives.mean_scores(self.spec.kind, query, answers, step=len(shown))
        if self.spec.kind == "classification":
            accuracies = objectives.instance_accuracies(said[0].detach(), shown[0]).mean(1)
            metrics |= {f"accuracy/instance_{number}": value for number, value in enumerate(accuracies, start=1)}
        if self.loss_on == "query":
            return objectives.loss(self.spec.kind, answers, query).mean(), metrics
        asked = Examples(*(torch.cat(fields, dim=1) for fields in zip(*shown, query, strict=True)))
        return objectives.loss(self.spec.kind, torch.cat([*said, answers], dim=1), asked).mean(), metrics


def checked(batch: Batch) -> Examples:
    """Return the batch. Raises ValueError unless it is one of labelled examples."""
    if not isinstance(batch, Examples):
        raise ValueError(f"labelled examples were expected, not {type(batch).__name__}")
    return batch
