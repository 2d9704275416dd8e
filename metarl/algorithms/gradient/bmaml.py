"""Bayesian MAML (BMAML; Yoon et al., 2018, arXiv 1806.03836).

Each task has several networks, the particles. Stein variational gradient descent (``stein.py``) moves them together
towards the posterior of the task's data: each follows the gradients of all that are near, and they repel each other.
Predictions are means over particles, and their spread tells the uncertainty. Policies are in ``svpg.py``.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl import objectives
from metarl.advantages import Advantages
from metarl.algorithms.gradient.stein import draw_particles, energy_slopes, svgd
from metarl.algorithms.gradient.svpg import PolicyLoop
from metarl.algorithms.normalising import normalise_observations
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.algorithms.shared.recurrent import checked
from metarl.networks import Model, Network, NetworkOptions, models, stack
from metarl.numerics import sum_of
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec, each_tensor, pooled


class Particles(NamedTuple):
    """BMAML's state: several networks for each task."""

    particles: Params  # [task, particle, *shape]
    step: int  # SVGD steps taken so far
    seen: Tensor | None  # [task, item, *input_shape] the latest support items; None before the first


@dataclass(frozen=True)
class BMAML:
    """Bayesian MAML: learn several networks that a few steps turn into samples of a task's posterior."""

    particles: int = 10
    """Networks for each task. With 1, there is nothing to repel: an inner step is MAML's on the loss and the prior."""
    steps: int = 1
    """Inner steps in meta-training: of SVGD on the support set (the chaser), or of SVPG, each on fresh episodes."""
    leader_steps: int = 1
    """Further steps that the leader takes from there, on support and query set together. Meta-training draws the
    chaser to it. Not for control, which makes the adapted policies' surrogate small, as MAML does."""
    step_size: float = 0.05
    """Step size of SVGD on the mean loss. Each particle moves by a mean over all particles, most of which are far away,
    so that it is about half as many times larger as there are particles than MAML's."""
    schedule: tuple[float, ...] | None = None
    """Factors of the step size at inner steps 1, 2, ...; the last one is used for all later steps. By default 1. For
    control, steps beyond those of training are half as long."""
    noise: float = 0.1
    """Standard deviation of the targets' noise, for regression: with the number of items, it says how far from the
    best fit the posterior reaches."""
    prior: float = 1.0
    """Precision of the normal prior of every weight, around 0. 0: a flat prior."""
    temperature: float = 0.1
    """For control: what the return is divided by to be the logarithm of a likelihood. The higher, the more the policies
    repel each other."""
    network: NetworkOptions = Network()
    """The network of each particle."""
    advantages: Advantages = Advantages()
    """How advantages are estimated, for control."""
    normalise_observations: bool = False
    """For control: read observations minus their running mean, divided by their running standard deviation. Leave it
    off for one-hot observations, such as those of Discrete spaces."""

    def __post_init__(self) -> None:
        for name in ("particles", "steps", "leader_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not 0 < self.noise < math.inf:
            raise ValueError(f"noise={self.noise} must be positive and finite")
        if not 0 <= self.prior < math.inf:
            raise ValueError(f"prior={self.prior}: expected at least 0, and finite")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be positive and finite")
        inner.check_steps(self.step_size, self.schedule)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of any kind. Raises ValueError where the network does not fit it."""
        spec = self.network.chosen(spec)
        model = self.network.build(spec)
        loop = PolicyLoop(self, spec, model) if spec.control else _Loop(self, spec, model)
        functions = loop.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        estimate = self.advantages.of_episodes
        learner = Learner(spec, self.steps, *functions, estimate=estimate, batch_norm=model.batch_norm)
        learner = fed(learner, honours_masks=True)
        return normalise_observations(learner) if self.normalise_observations else learner


@dataclass(frozen=True)
class _Loop:
    """The functions of BMAML's Learner, with the options and the network that they use."""

    options: BMAML
    spec: Spec
    model: Model

    def init(self, generator: Generator) -> Params:
        """Draw every particle by itself: parameters are ``[particle, *shape]``."""
        return draw_particles(self.model, self.options.particles, generator)

    def begin(self, params: Params, descriptors: Tensor) -> Particles:
        """Give every task a view of the same particles."""
        return Particles(stack(params, len(descriptors)), 0, None)

    def adapt(self, state: Particles, batch: Batch) -> Particles:
        """Take one SVGD step on each task's particles (eq. 2). Keep the graph if gradients are enabled."""
        examples = checked(batch)
        slopes = self.slopes(state.particles, examples)
        step_size = self.options.step_size * inner.factor(self.options.schedule, self.spec, state.step)
        moved = svgd(state.particles, slopes, self.temperature(examples), step_size)
        return Particles(moved, state.step + 1, examples.inputs)

    def slopes(self, particles: Params, examples: Examples) -> Params:
        """Return the gradient of each particle's energy: of the mean loss, and of the prior at the temperature."""
        count = self.options.particles
        repeated = each_tensor(lambda values: values.repeat_interleave(count, dim=0), examples)
        decay = self.temperature(examples) * self.options.prior
        return energy_slopes(
            self.model,
            particles,
            repeated.inputs,
            lambda outputs: objectives.loss(self.spec.kind, outputs, repeated),
            decay,
        )

    def temperature(self, examples: Examples) -> float | Tensor:
        """Return what the posterior's logarithm is divided by to be the negative mean loss, but for a constant.

        ``[task]`` where tasks differ in their number of items.
        """
        counts = examples.targets.shape[1] if examples.mask is None else examples.mask.sum(1)
        if self.spec.kind == "classification":
            return 1 / counts
        # Of normal noise: the sum of squared errors over twice the variance.
        return 2 * self.options.noise**2 / (counts * math.prod(examples.targets.shape[2:]))

    def predict(self, state: Particles, inputs: Tensor) -> tuple[Tensor, Particles]:
        """Return the particles' mean prediction: of targets, or of the classes' probabilities, as logarithms."""
        outputs = self.each(state, inputs)
        if self.spec.kind == "regression":
            return outputs.mean(1), state
        return functional.log_softmax(outputs, dim=-1).logsumexp(1) - math.log(outputs.shape[1]), state

    def each(self, state: Particles, inputs: Tensor) -> Tensor:
        """Return every particle's outputs, ``[task, particle, ..., model_outputs]``."""
        tasks, count = next(iter(state.particles.values())).shape[:2]
        flat = {name: value.flatten(0, 1) for name, value in state.particles.items()}
        seen = None if state.seen is None else state.seen.repeat_interleave(count, dim=0)
        outputs = models.predict(self.model, flat, inputs.repeat_interleave(count, dim=0), seen)
        return outputs.reshape(tasks, count, *outputs.shape[1:])

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the squared distances from the chaser to the leader (eq. 6, algorithm 2), and metrics.

        The leader counts as a constant.
        """
        query = checked(experience.query)
        chaser = self.begin(params, experience.descriptors)
        for support in experience.supports:
            chaser = self.adapt(chaser, support)
        with torch.no_grad():
            both = pooled([checked(experience.supports[-1]), query])
            leader = chaser._replace(particles={name: value.detach() for name, value in chaser.particles.items()})
            for _ in range(self.options.leader_steps):
                leader = self.adapt(leader, both)
            outputs, _ = self.predict(chaser, query.inputs)
        metrics = objectives.step_scores(self.spec.kind, query, outputs, len(experience.supports))
        ways = [value - leader.particles[name] for name, value in chaser.particles.items()]
        return sum_of(way.square().flatten(1).sum(1) for way in ways), metrics


def particle_outputs(learner: Learner, state: Particles, inputs: Tensor) -> Tensor:
    """Return what each particle of a BMAML learner's state predicts, ``[task, particle, ..., model_outputs]``.

    Their standard deviation over the particles is the uncertainty of a regression; the particles' log-probabilities of
    classes differ where the data do not tell.

    Args:
        learner: A learner that ``BMAML(...).build(spec)`` returned.
        state: A state of it, such as ``learner.adapt(state, support)`` returns.
        inputs: ``[task, ..., *input_shape]``.
    """
    tasks, count = next(iter(state.particles.values())).shape[:2]
    single = Particles(
        {name: value.flatten(0, 1).unsqueeze(1) for name, value in state.particles.items()},
        state.step,
        None if state.seen is None else state.seen.repeat_interleave(count, dim=0),
    )
    outputs, _ = learner.predict(single, inputs.repeat_interleave(count, dim=0))
    return outputs.reshape(tasks, count, *outputs.shape[1:])
