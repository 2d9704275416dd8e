"""Reptile (Nichol, Achiam and Schulman, 2018, arXiv 1803.02999), for labelled examples and for control.

Each task trains the network for some steps; the initial network moves towards the mean of the trained ones. It is
first-order: nothing is differentiated through adaptation. Options give the other combinations of inner gradients that
the paper compares, first-order MAML among them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.algorithms.shared.inner import Moments, Optimiser, Tuned
from metarl.networks import Model, Network, NetworkOptions, stack
from metarl.outer import SGD
from metarl.speed import send
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec, inputs_of

MiniBatches = Literal["cycle", "replacement"]
Combine = Literal["sum", "last"]
Tail = Literal["shared", "separate"]
CPU = torch.device("cpu")
MOMENT, WEIGHT = "second_moment:", "second_moment_weight"
"""Under which names Adam's carried moments stand among the meta-parameters."""


@dataclass(frozen=True)
class Reptile:
    """Reptile: trains on each task for some steps, and moves the initial network towards the trained ones.

    Its own outer update is sgd, whose step of 1 goes all the way; adam takes the same direction for a gradient. The
    defaults are the paper's for 5-way Omniglot.
    """

    steps: int = 5
    """Inner gradient steps in meta-training, each on a mini-batch of the support set or, in control, on fresh episodes.
    The paper takes 50 at test: 'metarl evaluate RUN --steps 50'."""
    step_size: float = 1e-3
    """Inner step size."""
    optimiser: Optimiser = "adam"
    """Inner optimiser: sgd, or adam without momentum (beta1 = 0)."""
    carry_moments: bool = True
    """Begin each task, at test too, with the squared gradients that Adam remembers from earlier ones, as the paper's
    code does, instead of none; the outer update must be sgd then, which averages them."""
    batch_size: int | None = 10
    """Support items in the mini-batch of an inner step, at most all of them; None: all. Not for control."""
    mini_batches: MiniBatches = "cycle"
    """cycle: through the support set, reordered after each round; or each drawn anew from all of it, 'replacement'."""
    combine: Combine = "sum"
    """Which inner steps the initial network follows: their sum (Reptile), or only the last (first-order MAML)."""
    tail: Tail = "shared"
    """Data of the last inner step in meta-training: a mini-batch like the others', or, 'separate', the query set, which
    shares no item with the support set."""
    network: NetworkOptions = Network()
    """The network that adapts."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: Reptile takes at least one inner step")
        if not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: give at least 1, or None for the whole support set")
        choices = {"optimiser": Optimiser, "mini_batches": MiniBatches, "combine": Combine, "tail": Tail}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {' or '.join(get_args(known))}")

    def default_outer(self) -> SGD:
        """The outer update of the paper."""
        return SGD()

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec, of any kind. Raises ValueError when the network does not fit it."""
        loop = _Loop(self, spec, self.network.build(spec))
        adaptations = self.steps - (self.tail == "separate")
        functions = loop.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        norm, carries = loop.model.batch_norm, loop.carries
        return fed(Learner(spec, adaptations, *functions, batch_norm=norm, averages=carries, differentiable=False))


@dataclass(frozen=True)
class _Loop:
    """Reptile's options with the network they are about: the functions of its Learner."""

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
        """Give every task a view of the same initial network, and of what the optimiser remembers."""
        stacked = stack(params, len(descriptors))
        network = {name: value for name, value in stacked.items() if name != WEIGHT and not name.startswith(MOMENT)}
        if self.options.optimiser == "sgd":
            return Tuned(network, None, 0, None)
        if not self.carries:
            return Tuned(network, inner.no_moments(network), 0, None)
        return Tuned(network, Moments({name: stacked[MOMENT + name] for name in network}, stacked[WEIGHT]), 0, None)

    def adapt(self, state: Tuned, batch: Batch) -> Tuned:
        """Take one inner step, on a mini-batch of labelled examples. Raises ValueError if it is differentiated."""
        if not isinstance(batch, Examples):
            return self.step(state, batch)
        return self.step(state, self.mini_batch(batch, state.step))._replace(seen=batch.inputs)

    def step(self, state: Tuned, batch: Batch) -> Tuned:
        return inner.tune(self.spec.kind, self.model, state, inputs_of(batch), batch, self.options.step_size)

    def mini_batch(self, support: Examples, step: int) -> Examples:
        items = support.targets.shape[1]
        size = min(self.options.batch_size or items, items)
        if size == items:
            return support
        chosen = positions(self.options.mini_batches, items, size, step, support.targets.device)
        return Examples(support.inputs.index_select(1, chosen), support.targets.index_select(1, chosen))

    def predict(self, state: Tuned, inputs: Tensor) -> tuple[Tensor, Tuned]:
        return inner.predict(self.model, state, inputs), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Half the mean squared distance from the initial parameters to the adapted ones, taken for constants.

        Its gradient is the paper's: the initial parameters less the mean of the adapted ones. The metrics are the query
        set's, before the last step where that is taken on it.
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
        distances = [(params[name] - goal).square().sum() for name, goal in goals.items()]
        return torch.stack(distances).sum() / (2 * len(experience.descriptors)), metrics

    def goals(self, start: Tuned, before: Tuned, after: Tuned) -> Params:
        """Where each task would have the meta-parameters go, ``[task, *shape]``."""
        goals = dict(after.params)
        if self.options.combine == "last":
            goals = {name: start.params[name] + value - before.params[name] for name, value in goals.items()}
        if self.carries and after.moments is not None:
            goals |= {MOMENT + name: value for name, value in after.moments.second.items()}
            goals[WEIGHT] = after.moments.weight
        return goals

    def scores(self, state: Tuned, query: Batch) -> dict[str, Tensor]:
        """Mean scores of the query set; control's were measured where the rollouts were made."""
        if not isinstance(query, Examples):
            return {}
        return objectives.mean_scores(self.spec.kind, query, self.predict(state, query.inputs)[0], state.step)


@lru_cache(maxsize=4096)
def positions(mini_batches: MiniBatches, items: int, size: int, step: int, device: torch.device = CPU) -> Tensor:
    """Positions of the items of a step's mini-batch, the same for all tasks: each support set is in random order."""
    if mini_batches == "replacement":
        return send(_order(items, step)[:size], device)
    taken = range(step * size, (step + 1) * size)
    return send(torch.stack([_order(items, index // items)[index % items] for index in taken]), device)


@lru_cache(maxsize=4096)
def _order(items: int, number: int) -> Tensor:
    return torch.randperm(items, generator=torch.Generator().manual_seed(number))
