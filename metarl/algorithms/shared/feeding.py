"""Labelled examples that a user feeds a learner by hand: looked at in the family's terms, and made numbers.

Training does not pass through here: a learner's meta-loss calls its own functions.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarl.fewshot import image_scale, numbers
from metarl.types import Batch, Examples, Learner, Spec, State, check_served


def fed(learner: Learner, honours_masks: bool = False, mixes_targets: bool = False) -> Learner:
    """Return a learner of examples whose ``adapt``, ``predict`` and ``unroll`` look at what they are given.

    One that ``honours_masks`` does so without batch norm, which would count the padding. Raises ValueError for tasks
    with padding, or with losses of their own, which the learner does not honour.
    """
    learner = learner._replace(masked=honours_masks and learner.batch_norm is None, mixes_targets=mixes_targets)
    if learner.spec.control:
        return learner
    check_served(learner, learner.spec)
    by_hand = _Fed(learner)
    memory = None if learner.memory is None else learner.memory._replace(unroll=by_hand.unroll)
    return learner._replace(adapt=by_hand.adapt, predict=by_hand.predict, memory=memory)


@dataclass(frozen=True)
class _Fed:
    learner: Learner

    def adapt(self, state: State, batch: Batch) -> State:
        return self.learner.adapt(state, _examples(self.learner, batch))

    def predict(self, state: State, inputs: Tensor) -> tuple[Tensor, State]:
        return self.learner.predict(state, _inputs(self.learner.spec, inputs))

    def unroll(self, state: State, batch: Batch) -> tuple[Tensor, State]:
        assert self.learner.memory is not None
        return self.learner.memory.unroll(state, _examples(self.learner, batch))


def _examples(learner: Learner, batch: Batch) -> Batch:
    """Return examples as a family would draw them, or any other batch as it is. Raises ValueError for wrong ones."""
    if not isinstance(batch, Examples):
        return batch
    spec = learner.spec
    inputs, targets = _inputs(spec, batch.inputs), _tensor("targets", batch.targets)
    if inputs.ndim != 2 + len(spec.input_shape):
        raise ValueError(_shapes(spec, inputs))
    targets = (_classes if spec.kind == "classification" else _values)(spec, targets, tuple(inputs.shape[:2]))
    if batch.mask is not None:
        check_served(learner, replace(spec, ragged=True))
        _check_mask(batch.mask, tuple(inputs.shape[:2]))
    return (
        batch if inputs is batch.inputs and targets is batch.targets else replace(batch, inputs=inputs, targets=targets)
    )


def _check_mask(mask: Tensor, items: tuple[int, ...]) -> None:
    if mask.shape != items:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}: expected 1 for items and 0 for padding, {items}")
    if mask.device.type == "cpu" and ((mask.diff(dim=1) > 0).any() or (mask[:, 0] == 0).any()):
        raise ValueError("the mask rises, or begins with 0: expected the items of each task first, then its padding")


def _inputs(spec: Spec, inputs: Tensor) -> Tensor:
    lead = _tensor("inputs", inputs).ndim - len(spec.input_shape)
    if lead < 2 or inputs.shape[lead:] != torch.Size(spec.input_shape):
        raise ValueError(_shapes(spec, inputs))
    if inputs.is_floating_point():
        return inputs
    return numbers(inputs, image_scale(inputs.flatten(0, lead - 1), warn=False))


def _shapes(spec: Spec, inputs: Tensor) -> str:
    wanted = ", ".join(map(str, ("task", "item", *spec.input_shape)))
    return f"inputs have shape {tuple(inputs.shape)}: the learner was built for items {spec.input_shape}, [{wanted}]"


def _classes(spec: Spec, targets: Tensor, items: tuple[int, ...]) -> Tensor:
    if targets.is_floating_point() or targets.shape != items:
        told = f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise ValueError(f"targets are {told}: expected the class of each item, integers {items}")
    if targets.device.type == "cpu" and targets.numel():  # a GPU would be waited for
        low, high = (int(end) for end in torch.aminmax(targets))
        if low < 0 or high >= spec.output_size:
            told = f"targets name the classes {low} to {high}"
            raise ValueError(f"{told}: a task has {spec.output_size}, numbered 0 to {spec.output_size - 1}")
    return targets.long()


def _values(spec: Spec, targets: Tensor, items: tuple[int, ...]) -> Tensor:
    wanted = (*items, spec.output_size)
    if targets.shape != wanted:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, expected {wanted}")
    return targets if targets.is_floating_point() else numbers(targets, 1)


def _tensor(name: str, values: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise ValueError(f"{name}: found {type(values).__name__}, expected a tensor (torch.as_tensor makes one)")
    return values
