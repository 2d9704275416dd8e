"""Gradient steps on each task's own network: plain functions that MAML, Reptile and fine-tuning share.

Stacked parameters have shape ``[task, *shape]``.
"""

from collections.abc import Callable
from math import inf
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metarl import objectives
from metarl.networks import Model, loss_gradient, models
from metarl.types import NOT_DIFFERENTIATED, Batch, Experience, Params, Spec, inputs_of

Optimiser = Literal["sgd", "adam"]
"""Gradient descent, or Adam without momentum (beta1 = 0, beta2 = 0.999), as in the Reptile paper's inner loop."""
DECAY, EPSILON = 0.999, 1e-8


def check_steps(step_size: float, schedule: tuple[float, ...] | None) -> None:
    """Raise ValueError unless the step size and all its factors are positive, and finite."""
    if not 0 < step_size < inf:
        raise ValueError(f"step_size={step_size} must be positive and finite")
    if schedule is not None and not (schedule and all(0 < factor < inf for factor in schedule)):
        raise ValueError(f"schedule={schedule}: expected at least one factor, all of them positive")


def factor(schedule: tuple[float, ...] | None, spec: Spec, step: int, trained: int = 1) -> float:
    """Return the factor of the step size after ``step`` steps.

    Without a schedule, it is 1 for examples, and for control at the ``trained`` first steps, those that meta-training
    takes. Later steps of control, taken only at evaluation, are half as long (arXiv 1703.03400, app. A.2).
    """
    if schedule is not None:
        return schedule[min(step, len(schedule) - 1)]
    return 0.5 if spec.control and step >= trained else 1.0


def losses_after(functions: Any, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses ``[task]`` on the query data after adaptation to all support batches, and metrics.

    ``functions`` are a learner's: it has ``spec``, ``begin``, ``adapt`` and ``predict``.
    """
    state = functions.begin(params, experience.descriptors)
    for support in experience.supports:
        state = functions.adapt(state, support)
    outputs, _ = functions.predict(state, inputs_of(experience.query))
    return objectives.query_losses(functions.spec, outputs, experience.query, len(experience.supports))


class Moments(NamedTuple):
    """Adam's running means of squared gradients."""

    second: Params  # [task, *shape], weighted sums
    weight: Tensor  # [task], the sum of their weights: 1 - beta2^steps, unless moments were carried over


def no_moments(params: Params) -> Moments:
    """Return the moments before the first step on stacked parameters."""
    first = next(iter(params.values()))
    return Moments({name: torch.zeros_like(value) for name, value in params.items()}, first.new_zeros(len(first)))


class Tuned(NamedTuple):
    """The state of adaptation by gradient steps: a network for each task, and the optimiser's moments."""

    params: Params  # [task, *shape]
    moments: Moments | None  # None for gradient descent
    step: int  # gradient steps taken so far
    seen: Tensor | None  # [task, item, ...] the network's latest support inputs, for inductive batch norm


def tune(
    spec: Spec,
    model: Model,
    tuned: Tuned,
    inputs: Tensor,
    batch: Batch,
    step_size: float,
    loss: Callable[[Tensor], Tensor] | None = None,
) -> Tuned:
    """Take one gradient step on each task's loss on a batch; the model reads ``inputs``. ``seen`` does not change.

    The loss is that of the kind, or ``loss(outputs) -> [task]``.

    Raises:
        ValueError: gradients through this step are asked for; it keeps no graph.
    """
    if torch.is_grad_enabled() and any(value.requires_grad for value in tuned.params.values()):
        raise ValueError(NOT_DIFFERENTIATED)
    with torch.no_grad():
        loss = loss or (lambda outputs: objectives.task_loss(spec, outputs, batch))
        return stepped(tuned, loss_gradient(model, tuned.params, list(tuned.params), inputs, loss), step_size)


def stepped(tuned: Tuned, gradients: Params, step_size: float) -> Tuned:
    """Take the step of the optimiser for gradients ``[task, *shape]``."""
    directions, moments = (gradients, None) if tuned.moments is None else adam(gradients, tuned.moments)
    moved = {name: value - step_size * directions[name] for name, value in tuned.params.items()}
    return Tuned(moved, moments, tuned.step + 1, tuned.seen)


def predict(model: Model, tuned: Tuned, inputs: Tensor) -> Tensor:
    """Return the outputs of each task's network, ``[task, ..., model_outputs]``."""
    return models.predict(model, tuned.params, inputs, tuned.seen)


def adam(gradients: Params, moments: Moments) -> tuple[Params, Moments]:
    """Return Adam's directions (arXiv 1412.6980, algorithm 1) for beta1 = 0: the first moment is the gradient."""
    # Dividing by the sum of weights is Adam's bias correction; it also holds when moments were carried over.
    weight = torch.lerp(torch.ones_like(moments.weight), moments.weight, DECAY)
    second = {name: torch.lerp(value.square(), moments.second[name], DECAY) for name, value in gradients.items()}
    directions = {
        name: value / ((second[name] / weight.reshape(-1, *[1] * (value.ndim - 1))).sqrt() + EPSILON)
        for name, value in gradients.items()
    }
    return directions, Moments(second, weight)
