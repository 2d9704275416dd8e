"""What a classifier predicts for the first tasks of an evaluation, for pictures."""

from typing import NamedTuple

import torch

from metarl.evaluation.adaptation import adapt, stream_of
from metarl.selection import select_tasks
from metarl.speed import float32
from metarl.types import Examples, Learner, Params, Tasks, labelled_tasks

SHOWN = 4
"""Tasks that are shown."""


class Predicted(NamedTuple):
    """Examples of some tasks, and the classes that an adapted learner predicts."""

    support: Examples
    query: Examples
    classes: torch.Tensor
    """``[task, item]``: predicted classes of the query set."""


def has_pictures(learner: Learner) -> bool:
    """Return whether a learner tells classes of pictures: grey or coloured ones."""
    shape = learner.spec.input_shape
    return learner.spec.kind == "classification" and len(shape) == 3 and shape[0] in (1, 3)


def predicted(
    learner: Learner, params: Params, tasks: Tasks, steps: int, seed: int, device: torch.device | str
) -> Predicted:
    """Adapt to the first tasks of an evaluation, and return what is predicted for their query sets.

    ``tasks``, ``steps`` and ``seed`` are those of the evaluation, so that the pictures are those that it scored.
    """
    few, device = select_tasks(tasks, slice(SHOWN)), torch.device(device)
    last = adapt(learner, params, few, steps, seed, device)[-1]
    with torch.no_grad(), float32(device):
        outputs, _ = learner.predict(last.state, last.examples.inputs)
        support = labelled_tasks(few).draw("support", stream_of(seed, "support", device))
    return Predicted(support, last.examples, outputs.argmax(-1))
