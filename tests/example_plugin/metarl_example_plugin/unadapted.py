"""The simplest learner: one linear policy for all tasks."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.advantages import Advantages
from metarl.types import Batch, Experience, Learner, Params, Rollout, Spec


class State(NamedTuple):
    """The same policy for each task: nothing is learnt of any."""

    weight: Tensor  # [task, input, output]
    bias: Tensor  # [task, 1, output]


def begin(params: Params, descriptors: Tensor) -> State:
    """Give every task the shared policy, and hide its descriptor."""
    tasks = len(descriptors)
    return State(params["weight"].expand(tasks, -1, -1), params["bias"].expand(tasks, 1, -1))


def adapt(state: State, batch: Batch) -> State:
    """Learn nothing."""
    return state


def predict(state: State, inputs: Tensor) -> tuple[Tensor, State]:
    """Return the outputs ``[task, ..., output]`` of inputs ``[task, ..., input]``."""
    outputs = torch.baddbmm(state.bias, inputs.flatten(1, -2), state.weight)
    return outputs.reshape(*inputs.shape[:-1], -1), state


def meta_loss(spec: Spec, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the policy-gradient loss of each task."""
    query = experience.query
    if not isinstance(query, Rollout):
        raise ValueError("unadapted learns from rollouts only")
    outputs, _ = predict(begin(params, experience.descriptors), query.observations)
    return objectives.surrogate("likelihood_ratio", spec.distribution, outputs, query), {}


@dataclass(frozen=True)
class Unadapted:
    """One linear policy for all tasks, which never adapts: a floor for other algorithms."""

    std: float = 0.05
    """Standard deviation of the actions before training."""

    def build(self, spec: Spec) -> Learner:
        """Return the learner. Raises ValueError unless observations are vectors and actions continuous."""
        if spec.kind != "continuous" or len(spec.input_shape) != 1:
            raise ValueError(f"unadapted needs vector observations and continuous actions, not {spec}")

        def init(generator: Generator) -> Params:
            weight = 0.01 * torch.randn(*spec.input_shape, spec.model_outputs, generator=generator)
            mean, log_std = torch.zeros(spec.output_size), torch.full((spec.output_size,), self.std).log()
            return {"weight": weight, "bias": torch.cat([mean, log_std])}

        return Learner(spec, 0, init, begin, adapt, predict, partial(meta_loss, spec), Advantages().of_episodes)
