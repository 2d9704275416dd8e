"""Policies of single tasks, as functions from observations to distributions of actions."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from metarl import objectives
from metarl.speed import float32, usual_modes
from metarl.types import Learner, Params, State

ActionsOf = Callable[[Any], Distribution]
"""Observations ``[..., *input_shape]`` to the distributions of their actions, ``[...]``."""


Predict = Callable[[Any], Tensor]
"""Inputs ``[..., *input_shape]`` to targets ``[..., output_size]``, or to probabilities ``[..., class]``."""


def check_policies(learner: Learner) -> None:
    """Raise ValueError for a learner that has no policies, or policies that need more than observations."""
    if not learner.spec.control:
        raise ValueError(f"this learner has no policies: it is for {learner.spec.kind}; use predictor")
    if learner.memory is not None:
        raise ValueError(
            "this policy learns from rewards while it acts, and cannot act on observations alone, as here and in "
            "Stable-Baselines3's predict; use a learner without memory, such as maml"
        )


@usual_modes()
def before_any_task(learner: Learner, params: Params, device: torch.device) -> State:
    """Return the state before adaptation. Raises ValueError if the policy reads its task's descriptor."""
    # A descriptor of nan: if the outputs depend on it, they are nan too.
    spec = learner.spec
    unknown = torch.full((1, spec.descriptor_size), torch.nan, device=device)
    with torch.no_grad():
        state = learner.begin(params, unknown)
        outputs, _ = learner.predict(state, torch.zeros(1, 1, *spec.input_shape, device=device))
    if not torch.isfinite(outputs).all():
        raise ValueError("this policy reads its task's descriptor, so a task must be given")
    return state


def acting(learner: Learner, state: State, device: torch.device) -> ActionsOf:
    """Return the policy of a learner in the state of one task."""
    shape, kind = tuple(learner.spec.input_shape), learner.spec.kind

    @usual_modes()
    def actions_of(observations: Any) -> Distribution:
        given = observations if isinstance(observations, Tensor) else torch.from_numpy(np.array(observations))
        lead = tuple(given.shape[: max(given.ndim - len(shape), 0)])
        if tuple(given.shape) != (*lead, *shape) or not given.numel():
            raise ValueError(f"observations have shape {tuple(given.shape)} where (..., {str(shape)[1:]} was expected")
        if not given.isfinite().all():
            raise ValueError("observations are not finite")
        rows = given.detach().to(device, torch.get_default_dtype()).reshape(1, prod(lead), *shape)
        with torch.no_grad(), float32(device):
            outputs, _ = learner.predict(state, rows)
        return objectives.distribution(kind, outputs[0].reshape(*lead, -1).to(given.device))

    return actions_of


def predicting(learner: Learner, state: State, device: torch.device) -> Predict:
    """Return what a learner of examples predicts in the state of one task."""
    shape = tuple(learner.spec.input_shape)

    @usual_modes()
    def predict(inputs: Any) -> Tensor:
        given = inputs if isinstance(inputs, Tensor) else torch.from_numpy(np.array(inputs))
        lead = tuple(given.shape[: max(given.ndim - len(shape), 0)])
        if tuple(given.shape) != (*lead, *shape) or not given.numel():
            raise ValueError(f"inputs have shape {tuple(given.shape)} where (..., {str(shape)[1:]} was expected")
        floats = given.to(torch.get_default_dtype()) if given.is_floating_point() else given
        with torch.no_grad(), float32(device):
            outputs, _ = learner.predict(state, floats.detach().to(device).reshape(1, prod(lead), *shape))
        numbers = outputs.softmax(-1) if learner.spec.kind == "classification" else outputs
        return numbers[0].reshape(*lead, -1).to(given.device)

    return predict
