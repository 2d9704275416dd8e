"""Policies of single tasks, as functions from observations to distributions of actions."""

from dataclasses import dataclass
from math import prod
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from metarl import objectives
from metarl.speed import float32, usual_modes
from metarl.types import Learner, Params, State


def check_policies(learner: Learner) -> None:
    """Raise ValueError for a learner that has no policies, or policies that need more than observations."""
    if not learner.spec.control:
        raise ValueError(f"this learner has no policies: it is for {learner.spec.kind}")
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


@dataclass(frozen=True, eq=False)
class TaskPolicy:
    """The policy of a learner in the state of one task: a function from observations to distributions of actions."""

    learner: Learner
    state: State
    device: torch.device

    @usual_modes()
    def __call__(self, observations: Any) -> Distribution:
        """Return the distributions of actions at observations ``[..., *input_shape]``, a tensor or an array.

        Raises ValueError for observations of another shape, and for those that are not finite.
        """
        shape, kind = tuple(self.learner.spec.input_shape), self.learner.spec.kind
        given = observations if isinstance(observations, Tensor) else torch.from_numpy(np.array(observations))
        lead = tuple(given.shape[: max(given.ndim - len(shape), 0)])
        if tuple(given.shape) != (*lead, *shape) or not given.numel():
            raise ValueError(f"observations have shape {tuple(given.shape)} where (..., {str(shape)[1:]} was expected")
        if not given.isfinite().all():
            raise ValueError("observations are not finite")
        rows = given.detach().to(self.device, torch.get_default_dtype()).reshape(1, prod(lead), *shape)
        with torch.no_grad(), float32(self.device):
            outputs, _ = self.learner.predict(self.state, rows)
        return objectives.distribution(kind, outputs[0].reshape(*lead, -1).to(given.device))

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        """Pickle by value: a learner's functions are closures."""
        return _again, (cloudpickle.dumps((self.learner, self.state, self.device)),)


def _again(pickled: bytes) -> TaskPolicy:
    return TaskPolicy(*cloudpickle.loads(pickled))
