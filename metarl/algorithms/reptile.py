"""Reptile (Nichol, Achiam and Schulman, 2018, arXiv 1803.02999), for labelled examples and for control.

Reptile trains the network on each task for some steps, then moves the initial parameters towards the mean of the
trained ones. It is first-order: no gradients pass through adaptation. Options give the other combinations of inner
gradients that the paper compares, including first-order MAML.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.advantages import Advantages
from metarl.algorithms.normalising import normalise_observations
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.algorithms.shared.inner import Moments, Optimiser, Tuned
from metarl.algorithms.shared.mini_batches import MiniBatches, mini_batch
from metarl.networks import Model, Network, NetworkOptions, stack
from metarl.numerics import sum_of
from metarl.outer import SGD
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec, inputs_of

Combine = Literal["sum", "last"]
Tail = Literal["shared", "separate"]
MOMENT, WEIGHT = "second_moment:", "second_moment_weight"
"""Names of Adam's carried moments among the meta-parameters: a prefix, and the sum of their weights."""


@dataclass(frozen=True)
class Reptile:
    """Reptile: train on each task for a few steps, then move the initial parameters towards the trained ones.

    The default outer update is sgd: a step size of 1 moves all the way to the mean of the trained parameters. adam uses
    the same direction as a gradient. The defaults are the paper's for 5-way Omniglot.
    """

    steps: int = 5
    """Inner gradient steps in meta-training, each on a mini-batch of the support set (examples) or on fresh episodes
    (control). The paper takes 50 steps at test: 'metarl evaluate RUN --steps 50'."""
    step_size: float = 1e-3
    """Inner step size."""
    optimiser: Optimiser = "adam"
    """Inner optimiser: sgd, or adam without momentum (beta1 = 0)."""
    carry_moments: bool = True
    """Carry Adam's second moments over from earlier tasks, as the paper's code does, instead of starting each task with
    zeros. Also applies at test. The outer update must then be sgd, which averages the moments."""
    batch_size: int | None = 10
    """Support items in an inner step's mini-batch, at most the whole support set. None: all items. Unused for
    control."""
    mini_batches: MiniBatches = "cycle"
    """How mini-batches are drawn: cycle goes through the support set, in a new order after each pass; replacement draws
    each mini-batch from the whole support set."""
    combine: Combine = "sum"
    """Inner steps that the initial parameters follow: the sum of all (Reptile), or only the last (first-order MAML)."""
    tail: Tail = "shared"
    """Data of the last inner step in meta-training: another mini-batch of the support set (shared), or the query set,
    which has no item in common with the support set (separate)."""
    network: NetworkOptions = Network()
    """The network that adapts."""
    advantages: Advantages = Advantages()
    """How advantages are estimated, for control."""
    normalise_observations: bool = False
    """For control: read observations minus their running mean, divided by their running standard deviation. Leave it
    off for one-hot observations, such as those of Discrete spaces."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: Reptile takes at least one inner step")
        inner.check_steps(self.step_size, None)
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: expected at least 1, or None for the whole support set")
        choices = {"optimiser": Optimiser, "mini_batches": MiniBatches, "combine": Combine, "tail": Tail}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {' or '.join(get_args(known))}")

    def default_outer(self) -> SGD:
        """Return the paper's outer update."""
        return SGD()

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of any kind. Raises ValueError if the network does not fit it."""
        spec = self.network.chosen(spec)
        loop = _Loop(self, spec, self.network.build(spec))
        adaptations = self.steps - (self.tail == "separate")
        functions = loop.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        norm, carries = loop.model.batch_norm, loop.carries
        estimate = self.advantages.of_episodes
        learner = Learner(
            spec, adaptations, *functions, estimate=estimate, batch_norm=norm, averages=carries, differentiable=False
        )
        learner = fed(learner, honours_masks=True)
        return normalise_observations(learner) if self.normalise_observations else learner


@dataclass(frozen=True)
class _Loop:
    """The functions of Reptile's Learner, with the options and the network that they use."""

    options: Reptile
    spec: Spec
    model: Model

    @property
    def carries(self) -> bool:
        return self.options.optimiser == "adam" and self.options.carry_moments

    def init(self, generator: Generator) -> Params:
        params = self.model.init(generator)
        if not self.carries:
            return params
        moments = {MOMENT + name: torch.zeros_like(value) for name, value in params.items()}
        return params | moments | {WEIGHT: next(iter(params.values())).new_zeros(())}

    def begin(self, params: Params, descriptors: Tensor) -> Tuned:
        """Give every task a view of the same initial network and of the optimiser's moments."""
        stacked = stack(params, len(descriptors))
        network = {name: value for name, value in stacked.items() if name != WEIGHT and not name.startswith(MOMENT)}
        if self.options.optimiser == "sgd":
            return Tuned(network, None, 0, None)
        if not self.carries:
            return Tuned(network, inner.no_moments(network), 0, None)
        return Tuned(network, Moments({name: stacked[MOMENT + name] for name in network}, stacked[WEIGHT]), 0, None)

    def adapt(self, state: Tuned, batch: Batch) -> Tuned:
        """Take one inner step, for examples on a mini-batch. Raises ValueError if asked for gradients through it."""
        if not isinstance(batch, Examples):
            return self.step(state, batch)
        chosen = mini_batch(batch, self.options.mini_batches, self.options.batch_size, state.step)
        return self.step(state, chosen)._replace(seen=batch.inputs)

    def step(self, state: Tuned, batch: Batch) -> Tuned:
        return inner.tune(self.spec, self.model, state, inputs_of(batch), batch, self.options.step_size)

    def predict(self, state: Tuned, inputs: Tensor) -> tuple[Tensor, Tuned]:
        return inner.predict(self.model, state, inputs), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return half the squared distances from the initial to the adapted parameters, and metrics.

        The adapted parameters count as constants. So the gradient is the paper's: the initial parameters minus the mean
        of the adapted ones. Metrics are measured on the query set; with a separate tail, before the step on that set.
        """
        with torch.no_grad():
            start = self.begin(params, experience.descriptors)
            before, after = start, start
            for support in experience.supports:
                before, after = after, self.adapt(after, support)
            metrics = self.scores(after, experience.query)
            if self.options.tail == "separate":
                before, after = after, self.step(after, experience.query)
            goals = self.goals(start, before, after)
        distances = [(params[name] - goal).square().reshape(len(goal), -1).sum(1) for name, goal in goals.items()]
        return sum_of(distances) / 2, metrics

    def goals(self, start: Tuned, before: Tuned, after: Tuned) -> Params:
        """Return the meta-parameters that each task moves towards, ``[task, *shape]``."""
        goals = dict(after.params)
        if self.options.combine == "last":
            # First-order MAML: only the last inner step, taken from the initial parameters.
            goals = {name: start.params[name] + value - before.params[name] for name, value in goals.items()}
        if self.carries and after.moments is not None:
            goals |= {MOMENT + name: value for name, value in after.moments.second.items()}
            goals[WEIGHT] = after.moments.weight
        return goals

    def scores(self, state: Tuned, query: Batch) -> dict[str, Tensor]:
        """Return the scores on the query set; empty for control, whose returns are measured during sampling."""
        if not isinstance(query, Examples):
            return {}
        return objectives.step_scores(self.spec.kind, query, self.predict(state, query.inputs)[0], state.step)
