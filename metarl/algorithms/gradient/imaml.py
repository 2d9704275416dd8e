"""MAML with implicit gradients (iMAML; Rajeswaran et al., 2019, arXiv 1909.04630), for labelled examples.

The inner loop solves a problem: each task's loss plus ``strength / 2`` times the squared distance from the initial
network. The meta-gradient depends on the solution only, not on the way to it. So the optimiser is free, and memory does
not grow with its steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from metarl import objectives
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.algorithms.shared.inner import Moments
from metarl.algorithms.shared.prescribed import differentiates, grounded, prescribed
from metarl.algorithms.shared.recurrent import checked
from metarl.networks import Model, Network, NetworkOptions, loss_gradient, models, stack
from metarl.numerics import sum_of
from metarl.types import NOT_DIFFERENTIATED, Batch, Examples, Experience, Learner, Params, Spec

Optimiser = Literal["sgd", "adam"]
Product = Callable[[Params], Params]
"""``(stacked params) -> stacked params``: the product of each task's own matrix with its own vector."""


class Solving(NamedTuple):
    """iMAML's state: the inner problem of each task, and how far it is solved."""

    params: Params  # [task, *shape]
    start: Params  # [task, *shape] the initial network
    velocity: Params  # [task, *shape] of momentum; empty without it
    moments: Moments | None  # of Adam
    step: int  # inner steps taken so far
    seen: Tensor | None  # [task, item, *input_shape] the support items


@dataclass(frozen=True)
class IMAML:
    """iMAML: learn an initialisation through the solution of an inner problem, whatever optimiser solves it.

    The defaults are the paper's for 5-way Omniglot.
    """

    steps: int = 16
    """Inner steps on the support set in meta-training. The meta-gradient is exact when they solve the inner problem;
    the metric inner/gradient says how far they are from it."""
    step_size: float = 0.1
    """Inner step size."""
    optimiser: Optimiser = "sgd"
    """Inner optimiser: gradient descent (sgd), or Adam without its own momentum (beta1 = 0)."""
    momentum: float = 0.0
    """Momentum of either optimiser's steps, at least 0 and less than 1."""
    strength: float = 2.0
    """Weight of the squared distance from the initial network in the inner problem (the paper's lambda). The inner
    problem is convex, and the meta-gradient sound, where it exceeds the support loss's most negative curvature."""
    solver_steps: int = 5
    """Steps of conjugate gradients that solve for the meta-gradient. The metric inner/residual says what is left."""
    damping: float = 0.0
    """Added to the strength where the meta-gradient is solved for, as in the paper's code (1 for Omniglot). It biases
    the meta-gradient towards first-order MAML's, and steadies it where the loss is not convex."""
    network: NetworkOptions = Network()
    """The network that adapts."""

    def __post_init__(self) -> None:
        if self.optimiser not in get_args(Optimiser):
            raise ValueError(f"optimiser={self.optimiser!r}: expected one of {', '.join(get_args(Optimiser))}")
        for name in ("steps", "solver_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("step_size", "strength"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: expected at least 0 and less than 1")
        if not 0 <= self.damping < inf:
            raise ValueError(f"damping={self.damping}: expected at least 0, and finite")

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of labelled examples.

        Raises:
            ValueError: the spec is one of control, or the network does not fit it.
        """
        if spec.control:
            raise ValueError(
                f"imaml differentiates the solution of one fixed inner problem, and a policy ({spec.kind}) meets "
                "another one with every draw of episodes: for control use maml or cavia"
            )
        loop = _Loop(self, spec, self.network.build(spec))
        functions = loop.model.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        batch_norm = loop.model.batch_norm
        learner = Learner(spec, self.steps, *functions, batch_norm=batch_norm, differentiable=False)
        return fed(learner, honours_masks=True)


@dataclass(frozen=True)
class _Loop:
    """The functions of iMAML's Learner, with the options and the network that they use."""

    options: IMAML
    spec: Spec
    model: Model

    def begin(self, params: Params, descriptors: Tensor) -> Solving:
        """Give every task a view of the same initial network."""
        start = stack(params, len(descriptors))
        velocity = {name: torch.zeros_like(value) for name, value in start.items()} if self.options.momentum else {}
        moments = inner.no_moments(start) if self.options.optimiser == "adam" else None
        return Solving(start, start, velocity, moments, 0, None)

    def adapt(self, state: Solving, batch: Batch) -> Solving:
        """Take one step on each task's inner problem (eq. 3). Raises ValueError if asked for gradients through it."""
        if differentiates(state.params):
            raise ValueError(NOT_DIFFERENTIATED)
        examples, options = checked(batch), self.options
        directions, moments = self.gradient(state, examples), state.moments
        if moments is not None:
            directions, moments = inner.adam(directions, moments)
        if options.momentum:
            directions = {name: value + options.momentum * state.velocity[name] for name, value in directions.items()}
        moved = {name: value - options.step_size * directions[name] for name, value in state.params.items()}
        velocity = directions if options.momentum else {}
        return Solving(moved, state.start, velocity, moments, state.step + 1, examples.inputs)

    def gradient(self, state: Solving, support: Examples) -> Params:
        """Return the gradient of each task's inner problem, ``[task, *shape]``."""
        slopes = self.support_gradient(state.params, support)
        away = {name: value - state.start[name] for name, value in state.params.items()}
        return {name: slope + self.options.strength * away[name] for name, slope in slopes.items()}

    def support_gradient(self, params: Params, support: Examples) -> Params:
        def loss(outputs: Tensor) -> Tensor:
            return objectives.loss(self.spec.kind, outputs, support)

        return loss_gradient(self.model, params, list(params), support.inputs, loss, second_order=True)

    def predict(self, state: Solving, inputs: Tensor) -> tuple[Tensor, Solving]:
        return models.predict(self.model, state.params, inputs, state.seen), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the solutions' query losses (eq. 4), with the implicit gradient (eq. 6), and metrics."""
        support, query = checked(experience.supports[-1]), checked(experience.query)
        with torch.no_grad():
            state = self.begin(grounded(params), experience.descriptors)
            for batch in experience.supports:
                state = self.adapt(state, batch)
            metrics = {"inner/gradient": torch.linalg.vector_norm(_rows(self.gradient(state, support)), dim=1)}
        solution = {name: value.detach().requires_grad_() for name, value in state.params.items()}
        with torch.enable_grad():
            outputs, _ = self.predict(state._replace(params=solution), query.inputs)
            losses = objectives.loss(self.spec.kind, outputs, query)
            slopes = torch.autograd.grad(losses.sum(), list(solution.values()), materialize_grads=True)
        metrics |= objectives.step_scores(self.spec.kind, query, outputs, len(experience.supports))
        if not differentiates(params):
            return losses.detach(), metrics
        target = dict(zip(solution, slopes, strict=True))
        gradients, residual = solve(self.product(solution, support), target, self.options.solver_steps)
        return prescribed(losses, params, gradients), metrics | {"inner/residual": residual}

    def product(self, solution: Params, support: Examples) -> Product:
        """Return the product with ``I + H / strength``, H the Hessian of each task's support loss at its solution."""
        with torch.enable_grad():
            slopes = list(self.support_gradient(solution, support).values())
        strength = self.options.strength + self.options.damping

        def multiply(vector: Params) -> Params:
            curved = torch.autograd.grad(
                slopes, list(solution.values()), list(vector.values()), retain_graph=True, materialize_grads=True
            )
            pairs = zip(vector.items(), curved, strict=True)
            return {name: value + bent / strength for (name, value), bent in pairs}

        return multiply


def solve(product: Product, target: Params, iterations: int) -> tuple[Params, Tensor]:
    """Solve ``product(x) = target`` for every task by conjugate gradients, from x = 0.

    A task stays where it is from the first direction on along which its matrix is not positive, or once it is solved.

    Returns x ``[task, *shape]``, and each task's residual over its target, ``[task]``.
    """
    tiny = torch.finfo(next(iter(target.values())).dtype).tiny
    solution = {name: torch.zeros_like(value) for name, value in target.items()}
    residual = direction = target
    squared = start = _dot(target, target)
    going = squared > 0
    for _ in range(iterations):
        image = product(direction)
        curvature = _dot(direction, image)
        going = going & (curvature > 0) & (squared > tiny)
        length = torch.where(going, squared / torch.where(going, curvature, 1.0), 0.0)
        solution = _moved(solution, length, direction)
        residual = _moved(residual, -length, image)
        previous, squared = squared, _dot(residual, residual)
        direction = _moved(residual, squared / previous.clamp_min(tiny), direction)
    return solution, (squared / start.clamp_min(tiny)).sqrt()


def _dot(one: Params, other: Params) -> Tensor:
    """Return each task's inner product, ``[task]``."""
    return sum_of((value * other[name]).flatten(1).sum(1) for name, value in one.items())


def _moved(values: Params, lengths: Tensor, directions: Params) -> Params:
    """Return values plus each task's length ``[task]`` times its direction."""
    return {
        name: value + lengths.reshape(-1, *[1] * (value.ndim - 1)) * directions[name] for name, value in values.items()
    }


def _rows(params: Params) -> Tensor:
    """Return stacked parameters as ``[task, number]``."""
    return torch.cat([value.flatten(1) for value in params.values()], dim=1)
