"""Leap (Flennerhag et al., 2019, arXiv 1812.01054): transfer knowledge across learning processes, for examples.

Training on a task is a path on the surface of its loss: through the parameters, with the loss as height. Leap moves the
initial parameters so that the paths of all tasks get shorter, for adaptation over tens or hundreds of steps. It is
first-order, and reads the meta-gradient off the paths as they are walked.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from metarl import objectives
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.algorithms.shared.inner import Optimiser, Tuned
from metarl.algorithms.shared.mini_batches import MiniBatches, mini_batch
from metarl.algorithms.shared.prescribed import grounded, prescribed
from metarl.algorithms.shared.recurrent import checked
from metarl.networks import Model, Network, NetworkOptions, loss_gradient, stack
from metarl.numerics import sum_of
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec

Measure = Literal["length", "energy"]


class Point(NamedTuple):
    """A point of each task's path, and the slope there."""

    params: Params  # [task, *shape]
    losses: Tensor  # [task], on the mini-batch of the next step
    slopes: Params  # [task, *shape] the gradient of that


@dataclass(frozen=True)
class Leap:
    """Leap: learn an initialisation from which the ways of training, over many steps, are short.

    The defaults are the paper's for Omniglot, whose outer update is 'sgd' with a step size of 0.1.
    """

    steps: int = 100
    """Inner gradient steps in meta-training, each on a mini-batch of the support set."""
    step_size: float = 0.1
    """Inner step size."""
    optimiser: Optimiser = "sgd"
    """Inner optimiser: sgd, or adam without momentum (beta1 = 0). Paths of adam are measured as they go."""
    batch_size: int | None = 20
    """Support items in an inner step's mini-batch, at most the whole support set. None: all items."""
    mini_batches: MiniBatches = "cycle"
    """How mini-batches are drawn: cycle goes through the support set, in a new order after each pass; replacement draws
    each mini-batch from the whole support set."""
    measure: Measure = "length"
    """What gets smaller: the length of a path (the paper's p = 1), or its energy, the sum of its steps' squared
    lengths (p = 2), which is less steady where losses are large."""
    stabilise: bool = True
    """Count a step that raises the loss as if it lowered it by as much (the paper's mu). Else the meta-gradient climbs
    there."""
    network: NetworkOptions = Network()
    """The network that adapts."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: Leap takes at least one inner step")
        inner.check_steps(self.step_size, None)
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: expected at least 1, or None for the whole support set")
        for name, known in {"optimiser": Optimiser, "mini_batches": MiniBatches, "measure": Measure}.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {' or '.join(get_args(known))}")

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of labelled examples.

        Raises:
            ValueError: the spec is one of control, or the network does not fit it.
        """
        if spec.control:
            raise ValueError(
                f"leap measures how far the loss falls along the way, and the surrogate loss of a policy ({spec.kind}) "
                "is near zero for every draw of episodes: for control use reptile"
            )
        loop = _Loop(self, spec, self.network.build(spec))
        functions = loop.model.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        norm = loop.model.batch_norm
        learner = Learner(spec, self.steps, *functions, batch_norm=norm, differentiable=False)
        return fed(learner, honours_masks=True)


@dataclass(frozen=True)
class _Loop:
    """The functions of Leap's Learner, with the options and the network that they use."""

    options: Leap
    spec: Spec
    model: Model

    def begin(self, params: Params, descriptors: Tensor) -> Tuned:
        """Give every task a view of the same initial network."""
        networks = stack(params, len(descriptors))
        moments = inner.no_moments(networks) if self.options.optimiser == "adam" else None
        return Tuned(networks, moments, 0, None)

    def adapt(self, state: Tuned, batch: Batch) -> Tuned:
        """Take one inner step on a mini-batch. Raises ValueError if asked for gradients through it."""
        examples = checked(batch)
        chosen = self.mini_batch(examples, state.step)
        tuned = inner.tune(self.spec, self.model, state, chosen.inputs, chosen, self.options.step_size)
        return tuned._replace(seen=examples.inputs)

    def mini_batch(self, support: Examples, step: int) -> Examples:
        return mini_batch(support, self.options.mini_batches, self.options.batch_size, step)

    def predict(self, state: Tuned, inputs: Tensor) -> tuple[Tensor, Tuned]:
        return inner.predict(self.model, state, inputs), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the lengths (or energies) of the paths, with the paper's meta-gradient (algorithm 1), and metrics."""
        query = checked(experience.query)
        with torch.no_grad():
            state = self.begin(grounded(params), experience.descriptors)
            supports = [checked(support) for support in experience.supports]
            point = self.point(state, supports[0])
            measures, parts = list[Tensor](), list[Params]()
            for support in supports:
                state = inner.stepped(state, point.slopes, self.options.step_size)._replace(seen=support.inputs)
                reached = self.point(state, support)
                measure, gradient = increment(point, reached, self.options.measure, self.options.stabilise)
                measures.append(measure)
                parts = [{name: value + gradient[name] for name, value in parts[0].items()}] if parts else [gradient]
                point = reached
            metrics = objectives.step_scores(self.spec.kind, query, self.predict(state, query.inputs)[0], len(supports))
        return prescribed(sum_of(measures), params, parts[0]), metrics

    def point(self, state: Tuned, support: Examples) -> Point:
        """Return where a state is on its path: loss and slope on the mini-batch of its next step."""
        batch, found = self.mini_batch(support, state.step), list[Tensor]()

        def loss(outputs: Tensor) -> Tensor:
            found.append(objectives.loss(self.spec.kind, outputs, batch))
            return found[-1]

        slopes = loss_gradient(self.model, state.params, list(state.params), batch.inputs, loss)
        return Point(state.params, found[-1].detach(), slopes)


def increment(point: Point, reached: Point, measure: Measure, stabilise: bool) -> tuple[Tensor, Params]:
    """Return a step's length or energy ``[task]``, and what it adds to the meta-gradient, ``[task, *shape]`` (eq. 8).

    The point reached counts as a constant, and the point itself moves as the initial parameters do: its Jacobian in
    them counts as the identity.
    """
    fall = reached.losses - point.losses
    if stabilise:
        fall = -fall.abs()
    ways = {name: value - point.params[name] for name, value in reached.params.items()}
    squared = fall.square() + sum_of(way.square().flatten(1).sum(1) for way in ways.values())
    length = squared.sqrt()
    # The derivative of length^p is p length^(p - 2) times that of half its square.
    factor = torch.full_like(length, -2.0) if measure == "energy" else -1 / length.clamp_min(_tiny(length))
    gradient = {
        name: _column(factor, way) * (way + _column(fall, way) * point.slopes[name]) for name, way in ways.items()
    }
    return squared if measure == "energy" else length, gradient


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``[task]`` to broadcast with ``[task, *shape]``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny
