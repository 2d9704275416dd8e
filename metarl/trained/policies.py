"""Policies of single tasks, as functions from observations to distributions of actions."""

from dataclasses import dataclass
from math import prod
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from metarl.environments import composite, flat
from metarl.speed import float32, usual_modes
from metarl.types import AS_GIVEN, InputScale, Learner, Params, Spec, State, Units, outputs_at


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


@dataclass(frozen=True, eq=False)
class TaskPolicy:
    """The policy of a learner in the state of one task: a function from observations to distributions of actions."""

    learner: Learner
    state: State
    device: torch.device

    @usual_modes()
    def __call__(self, observations: Any) -> Distribution:
        """Return the distributions of actions at observations ``[..., *input_shape]``, a tensor or an array.

        Where the environment has Dict or Tuple observations, it may be given those, too.

        Raises ValueError for observations of another shape, and for those that are not finite.
        """
        spec = self.learner.spec
        if spec.observations and composite(observations):
            observations = flat(spec.observations, observations)
        given = _given("observations", observations, spec)
        if not given.isfinite().all():
            raise ValueError("observations are not finite")
        return spec.distribution.as_torch(_outputs(self, given, given.to(torch.get_default_dtype())))

    def __reduce__(self) -> tuple[Any, tuple[type, bytes]]:
        """Pickle by value: a learner's functions are closures."""
        return _again, (type(self), cloudpickle.dumps((self.learner, self.state, self.device)))


@dataclass(frozen=True, eq=False)
class TaskPredictor:
    """What a learner of labelled examples predicts in the state of one task: a function of inputs. It can be pickled.

    It returns targets ``[..., output_size]``, or the probability of each class ``[..., class]``.
    """

    learner: Learner
    state: State
    device: torch.device
    units: Units = AS_GIVEN
    """The standard units of what the learner was trained on. Inputs and outputs are in the user's own."""
    scale: InputScale | None = None
    """What inputs are divided by before they are brought into standard units, if they are."""

    @usual_modes()
    def __call__(self, inputs: Any) -> Tensor:
        """Predict for inputs ``[..., *input_shape]``. Raises ValueError for another shape."""
        given = _given("inputs", inputs, self.learner.spec)
        outputs = _outputs(self, given, self._read(given))
        if self.learner.spec.kind == "classification":
            return outputs.softmax(-1)
        return outputs if self.units.targets is None else self.units.targets.undo(outputs)

    def _read(self, given: Tensor) -> Tensor:
        if self.units.inputs is None:
            return given.to(torch.get_default_dtype()) if given.is_floating_point() else given
        scale = self.scale
        scaled = scale is not None and (scale.floats or not given.is_floating_point())
        return self.units.inputs.apply(given.double() / scale.divisor if scale is not None and scaled else given)

    def __reduce__(self) -> tuple[Any, tuple[type, bytes]]:
        """Pickle by value: a learner's functions are closures."""
        parts = self.learner, self.state, self.device, self.units, self.scale
        return _again, (type(self), cloudpickle.dumps(parts))


def _given(what: str, values: Any, spec: Spec) -> Tensor:
    """Return numbers ``[..., *input_shape]`` as a tensor. Raises ValueError for another shape, and for none."""
    shape = tuple(spec.input_shape)
    given = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if tuple(given.shape) != (*_lead(given, spec), *shape) or not given.numel():
        raise ValueError(f"{what} have shape {tuple(given.shape)} where (..., {str(shape)[1:]} was expected")
    return given


def _lead(given: Tensor, spec: Spec) -> tuple[int, ...]:
    """Return the axes before those of the spec's input."""
    return tuple(given.shape[: max(given.ndim - len(spec.input_shape), 0)])


def _outputs(one: TaskPolicy | TaskPredictor, given: Tensor, numbers: Tensor) -> Tensor:
    """Return the learner's outputs ``[..., model_outputs]``, where the values were given."""
    spec, lead = one.learner.spec, _lead(given, one.learner.spec)
    rows = numbers.detach().to(one.device).reshape(prod(lead), *spec.input_shape)
    with torch.no_grad(), float32(one.device):
        outputs = outputs_at(one.learner, one.state, rows)
    return outputs.reshape(*lead, -1).to(given.device)


def _again(kind: type, pickled: bytes) -> Any:
    return kind(*cloudpickle.loads(pickled))
