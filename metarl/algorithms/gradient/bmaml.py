"""Bayesian MAML (BMAML; Yoon et al., 2018, arXiv 1806.03836), for labelled examples.

Each task has several networks, the particles. Stein variational gradient descent (SVGD; Liu and Wang, 2016, arXiv
1608.04471) moves them together towards the posterior of the task's data: each follows the gradients of all that are
near, and they repel each other. Predictions are means over particles, and their spread tells the uncertainty.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl import objectives
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.algorithms.shared.recurrent import checked
from metarl.networks import Model, Network, NetworkOptions, loss_gradient, models, stack
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
    """SVGD steps on the support set in meta-training: the chaser."""
    leader_steps: int = 1
    """Further steps that the leader takes from there, on support and query set together. Meta-training draws the
    chaser to it."""
    step_size: float = 0.05
    """Step size of SVGD on the mean loss. Each particle moves by a mean over all particles, most of which are far away,
    so that it is about half as many times larger as there are particles than MAML's."""
    noise: float = 0.1
    """Standard deviation of the targets' noise, for regression: with the number of items, it says how far from the
    best fit the posterior reaches."""
    prior: float = 1.0
    """Precision of the normal prior of every weight, around 0. 0: a flat prior."""
    network: NetworkOptions = Network()
    """The network of each particle."""

    def __post_init__(self) -> None:
        for name in ("particles", "steps", "leader_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not self.noise > 0:
            raise ValueError(f"noise={self.noise} must be positive")
        if not self.prior >= 0:
            raise ValueError(f"prior={self.prior}: expected at least 0")
        inner.check_steps(self.step_size, None)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of labelled examples.

        Raises:
            ValueError: the spec is one of control, or the network does not fit it.
        """
        if spec.control:
            raise ValueError(
                f"bmaml samples the posterior of labelled examples, and a policy ({spec.kind}) has no likelihood of "
                "data: for control use maml or cavia"
            )
        loop = _Loop(self, spec, self.network.build(spec))
        functions = loop.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        norm = loop.model.batch_norm
        return fed(Learner(spec, self.steps, *functions, batch_norm=norm, masked=norm is None))


@dataclass(frozen=True)
class _Loop:
    """The functions of BMAML's Learner, with the options and the network that they use."""

    options: BMAML
    spec: Spec
    model: Model

    def init(self, generator: Generator) -> Params:
        """Draw every particle by itself: parameters are ``[particle, *shape]``."""
        drawn = [self.model.init(generator) for _ in range(self.options.particles)]
        return {name: torch.stack([params[name] for params in drawn]) for name in drawn[0]}

    def begin(self, params: Params, descriptors: Tensor) -> Particles:
        """Give every task a view of the same particles."""
        return Particles(stack(params, len(descriptors)), 0, None)

    def adapt(self, state: Particles, batch: Batch) -> Particles:
        """Take one SVGD step on each task's particles (eq. 2). Keep the graph if gradients are enabled."""
        examples = checked(batch)
        slopes = self.slopes(state.particles, examples)
        moved = svgd(state.particles, slopes, self.temperature(examples), self.options.step_size)
        return Particles(moved, state.step + 1, examples.inputs)

    def slopes(self, particles: Params, examples: Examples) -> Params:
        """Return the gradient of each particle's energy: of the mean loss, and of the prior at the temperature."""
        count = self.options.particles
        repeated = each_tensor(lambda values: values.repeat_interleave(count, dim=0), examples)
        gradients = loss_gradient(
            self.model,
            {name: value.flatten(0, 1) for name, value in particles.items()},
            list(particles),
            repeated.inputs,
            lambda outputs: objectives.loss(self.spec.kind, outputs, repeated),
            second_order=True,
        )
        decay = self.temperature(examples) * self.options.prior
        return {
            name: gradients[name].reshape(value.shape) + _beside(decay, value) * value
            for name, value in particles.items()
        }

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


def svgd(particles: Params, slopes: Params, temperature: float | Tensor, step_size: float) -> Params:
    """Take one step of SVGD on particles ``[task, particle, *shape]``, given the gradients of their energies.

    The energies are negative logarithms of the posterior, times the temperature: one for all tasks, or ``[task]``. The
    kernel is ``exp(-d^2 / 2 h^2)`` for particles at a distance d, with ``h^2 = median d^2 / (2 log(particles + 1))``
    over the pairs of particles.
    """
    count = next(iter(particles.values())).shape[1]
    rows = torch.cat([value.flatten(2) for value in particles.values()], dim=2)
    rows = rows - rows.mean(1, keepdim=True)  # only differences count, and small numbers are rounded less
    weights, variance = kernel(rows)
    # A particle is pushed away from the weighted mean of those near it.
    total = weights.sum(2)
    moved = {}
    for name, value in particles.items():
        own, shape = value.flatten(2), value.shape
        near = own - own.mean(1, keepdim=True)
        push = (near * total.unsqueeze(2) - weights @ near) / variance.reshape(-1, 1, 1)
        way = _beside(temperature, push) * push - weights @ slopes[name].flatten(2)
        moved[name] = value + (step_size / count) * way.reshape(shape)
    return moved


def _beside(values: float | Tensor, like: Tensor) -> float | Tensor:
    """Reshape ``[task]`` to broadcast with ``[task, ...]``; leave a number as it is."""
    return values.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(values, Tensor) else values


def kernel(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel of each pair of rows, ``[task, particle, particle]``, and h^2 ``[task]``.

    ``rows`` are ``[task, particle, number]``. A single particle is only near to itself. Particles that coincide have no
    distance: a kernel of 1, and no push.
    """
    count = rows.shape[1]
    products = rows @ rows.mT
    norms = products.diagonal(dim1=1, dim2=2)
    apart = 1 - torch.eye(count, dtype=rows.dtype, device=rows.device)
    squared = ((norms.unsqueeze(1) + norms.unsqueeze(2) - 2 * products) * apart).clamp_min(0)
    if count == 1:
        return torch.ones_like(squared), rows.new_ones(len(rows))
    # The first of the sorted are the particles' distances to themselves; all others are there twice.
    ordered, pairs = squared.flatten(1).sort(dim=1).values[:, count:], count * (count - 1)
    median = (ordered[:, (pairs - 1) // 2] + ordered[:, pairs // 2]) / 2
    variance = (median / (2 * math.log(count + 1))).clamp_min(torch.finfo(rows.dtype).eps)
    return (-squared / (2 * variance.reshape(-1, 1, 1))).exp(), variance


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
