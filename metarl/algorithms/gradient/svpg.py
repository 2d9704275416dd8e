"""Bayesian MAML for control: several policies for each task, moved by Stein variational policy gradient (SVPG).

SVPG (Liu, Ramachandran, Liu and Peng, 2017, arXiv 1704.02399) takes the return, divided by a temperature, for the
logarithm of a likelihood of policies. The particles follow the policy gradients of all that are near, and repel each
other, so that they explore in different ways. Bayesian MAML (arXiv 1806.03836, sec. 5.4) meta-learns where they begin.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.algorithms.gradient.stein import draw_particles, energy_slopes, svgd
from metarl.algorithms.shared import inner
from metarl.networks import Model, models, stack
from metarl.types import Batch, Experience, Params, Rollout, Spec, each_tensor, rollout_of


class Policies(NamedTuple):
    """The state: several policies for each task. Episode number e is played by particle e modulo their number."""

    particles: Params  # [task, particle, *shape]
    step: int  # SVPG steps taken so far


@dataclass(frozen=True)
class PolicyLoop:
    """The functions of Bayesian MAML's Learner for control, with the options and the network that they use."""

    options: Any  # a BMAML
    spec: Spec
    model: Model

    def init(self, generator: Generator) -> Params:
        """Draw every particle by itself: parameters are ``[particle, *shape]``."""
        return draw_particles(self.model, self.options.particles, generator)

    def begin(self, params: Params, descriptors: Tensor) -> Policies:
        """Give every task a view of the same particles."""
        return Policies(stack(params, len(descriptors)), 0)

    def adapt(self, state: Policies, batch: Batch) -> Policies:
        """Take one SVPG step (eq. 12) on each task's policies. Keep the graph if gradients are enabled.

        A particle without episodes has no slope of its own: it follows those that are near.
        """
        rollout = rollout_of(batch)
        factor = inner.factor(self.options.schedule, self.spec, state.step, self.options.steps)
        slopes, step_size = self.slopes(state.particles, rollout), self.options.step_size * factor
        return Policies(svgd(state.particles, slopes, self.options.temperature, step_size), state.step + 1)

    def slopes(self, particles: Params, rollout: Rollout) -> Params:
        """Return the gradient of each particle's energy: its policy gradient, and the prior at the temperature."""
        own = by_particle(rollout, self.options.particles)
        decay = self.options.temperature * self.options.prior
        return energy_slopes(
            self.model,
            particles,
            own.observations,
            lambda outputs: objectives.task_loss(self.spec, outputs, own),
            decay,
        )

    def predict(self, state: Policies, inputs: Tensor) -> tuple[Tensor, Policies]:
        """Return the outputs ``[task, episode, ..., model_outputs]``, of each episode's own particle."""
        count, episodes = self.options.particles, inputs.shape[1]
        flat = {name: value.flatten(0, 1) for name, value in state.particles.items()}
        outputs = models.predict(self.model, flat, dealt(inputs, count), None)
        gathered = outputs.reshape(len(inputs), count, *outputs.shape[1:]).transpose(1, 2).flatten(1, 2)
        return gathered[:, :episodes], state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the surrogate of the adapted policies on the query episodes, as MAML's."""
        return inner.losses_after(self, params, experience)


def by_particle(rollout: Rollout, count: int) -> Rollout:
    """Return the episodes as each particle's own, ``[task x particle, round, time, ...]``.

    Where the last round is short, some particles have an episode of no steps there.
    """
    tasks, episodes = rollout.mask.shape[:2]
    judged = replace(rollout, explained_variance=None)  # [task]: nobody reads it here
    own = each_tensor(lambda values: dealt(values, count), judged)
    place = torch.arange(-(-episodes // count) * count, device=rollout.mask.device)
    played = dealt((place < episodes).to(rollout.mask).expand(tasks, -1), count)
    return replace(own, mask=own.mask * played.unsqueeze(-1))


def dealt(values: Tensor, count: int) -> Tensor:
    """Deal ``[task, episode, ...]`` out to particles, one after another: ``[task x particle, round, ...]``.

    Where the last round is short, the first episodes fill it again.
    """
    episodes = values.shape[1]
    rounds = -(-episodes // count)
    if rounds * count != episodes:
        values = values[:, torch.arange(rounds * count, device=values.device) % episodes]
    return values.reshape(len(values), rounds, count, *values.shape[2:]).transpose(1, 2).flatten(0, 1)
