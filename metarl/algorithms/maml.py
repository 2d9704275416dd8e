"""Model-agnostic meta-learning (Finn et al., 2017, arXiv 1703.03400), for control and for labelled examples.

Options turn it into first-order MAML, ANIL (Raghu et al., arXiv 1909.09157: adapt only some layers) and Meta-SGD
(Li et al., arXiv 1707.09835: a learned step size for every parameter).
"""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.models import Model
from metarl.networks import Network, NetworkOptions
from metarl.objectives import Surrogate
from metarl.types import Batch, Examples, Experience, Learner, Params, Rollout, Spec

STEP_SIZE = "step_size:"
"""Prefix under which Meta-SGD's step sizes stand among the meta-parameters."""


class Adapted(NamedTuple):
    """What MAML knows of each task: a network of its own."""

    params: Params  # [task, *shape]
    step_sizes: Params  # [*shape] by name of the adapted parameter; empty unless learned
    step: int  # how many gradient steps were taken


@dataclass(frozen=True)
class MAML:
    """MAML by gradient steps on each task's support data: learns an initialisation that adapts fast."""

    steps: int = 1
    """Inner gradient steps in meta-training, each on fresh episodes (control) or on the support set (examples)."""
    step_size: float = 0.1
    """Inner step size (the paper's alpha); where step sizes are learned, their initial value."""
    schedule: tuple[float, ...] | None = None
    """Factors of the step size at inner step 1, 2, ..., the last for all later ones; by default 1 0.5 for control (the
    paper's at test: normalised advantages do not shrink near the optimum), and 1 for examples."""
    first_order: bool = False
    """Leave the inner loop's second derivatives out of the meta-gradient (FOMAML)."""
    adapt_only: tuple[str, ...] = ()
    """Adapt only parameters whose names begin so, such as 'head' (ANIL); empty: all of them."""
    learn_step_sizes: bool = False
    """Meta-learn a step size for every single parameter (Meta-SGD)."""
    surrogate: Surrogate = "likelihood_ratio"
    """Inner policy-gradient loss (control): likelihood_ratio (ProMP's LVC), dice, or the MAML paper's log_likelihood,
    whose second derivatives are wrong and whose training is less stable for it (see docs/results.md)."""
    network: NetworkOptions = Network()
    """The network that adapts."""

    def __post_init__(self) -> None:
        if self.surrogate not in get_args(Surrogate):
            raise ValueError(f"surrogate={self.surrogate!r}: expected one of {', '.join(get_args(Surrogate))}")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: MAML takes at least one inner step")
        if not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")
        if self.schedule is not None and not (self.schedule and all(factor > 0 for factor in self.schedule)):
            raise ValueError(f"schedule={self.schedule}: give at least one factor, all of them positive")

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec, of any kind.

        Raises:
            ValueError: the network does not fit spec, or adapt_only names none of its parameters.
        """
        model = self.network.build(spec)
        loop = _Loop(self, spec, model, _adapted_names(self.adapt_only, model))
        return Learner(spec, self.steps, loop.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss)


def _adapted_names(prefixes: tuple[str, ...], model: Model) -> frozenset[str]:
    names = list(model.init(torch.Generator().manual_seed(0)))
    unmatched = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
    if unmatched:
        raise ValueError(f"adapt_only={unmatched} names no parameter; the network has {', '.join(names)}")
    return frozenset(name for name in names if not prefixes or name.startswith(prefixes))


@dataclass(frozen=True)
class _Loop:
    """MAML's options with the network they are about: the functions of its Learner."""

    options: MAML
    spec: Spec
    model: Model
    adapted: frozenset[str]

    def init(self, generator: Generator) -> Params:
        params = self.model.init(generator)
        if self.options.learn_step_sizes:
            for name in sorted(self.adapted):
                params[STEP_SIZE + name] = torch.full_like(params[name], self.options.step_size)
        return params

    def begin(self, params: Params, descriptors: Tensor) -> Adapted:
        """Give every task a view of the same initial network."""
        tasks = len(descriptors)
        sizes = {name.removeprefix(STEP_SIZE): value for name, value in params.items() if name.startswith(STEP_SIZE)}
        network = {name: value for name, value in params.items() if not name.startswith(STEP_SIZE)}
        return Adapted({name: value.expand(tasks, *value.shape) for name, value in network.items()}, sizes, 0)

    def adapt(self, state: Adapted, batch: Batch) -> Adapted:
        """Take one gradient step on each task (the paper's eq. 1), and keep its graph where gradients are on.

        Tasks are independent: the gradient of their summed losses in the stacked parameters is the stack of their own
        gradients.
        """
        differentiable = torch.is_grad_enabled() and any(value.requires_grad for value in state.params.values())
        params = (
            state.params
            if differentiable
            else {name: value.detach().requires_grad_(name in self.adapted) for name, value in state.params.items()}
        )
        names = [name for name in params if name in self.adapted]
        with torch.enable_grad():
            loss = self.inner_loss(self.model.apply(params, _inputs(batch)), batch).sum()
            gradients = torch.autograd.grad(
                loss,
                [params[name] for name in names],
                create_graph=differentiable and not self.options.first_order,
                materialize_grads=True,
            )
        moved = dict(state.params)
        for name, gradient in zip(names, gradients, strict=True):
            moved[name] = state.params[name] - self.step_size(state, name) * gradient
        return Adapted(moved, state.step_sizes, state.step + 1)

    def step_size(self, state: Adapted, name: str) -> Tensor | float:
        schedule = self.options.schedule or ((1.0, 0.5) if self.spec.control else (1.0,))
        return state.step_sizes.get(name, self.options.step_size) * schedule[min(state.step, len(schedule) - 1)]

    def inner_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        if isinstance(batch, Rollout):
            return objectives.surrogate(self.options.surrogate, self.spec.kind, outputs, batch)
        return objectives.loss(self.spec.kind, outputs, batch)

    def predict(self, state: Adapted, inputs: Tensor) -> tuple[Tensor, Adapted]:
        return self.model.apply(state.params, inputs), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the adapted networks on the query data (the paper's eq. 2), importance-weighted for control."""
        state = self.begin(params, experience.descriptors)
        for support in experience.supports:
            state = self.adapt(state, support)
        outputs, query = self.model.apply(state.params, _inputs(experience.query)), experience.query
        if isinstance(query, Rollout):
            return objectives.surrogate("likelihood_ratio", self.spec.kind, outputs, query).mean(), {}
        return objectives.loss(self.spec.kind, outputs, query).mean(), objectives.mean_scores(
            self.spec.kind, query, outputs, len(experience.supports)
        )


def _inputs(batch: Batch) -> Tensor:
    return batch.inputs if isinstance(batch, Examples) else batch.observations
