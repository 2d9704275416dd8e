"""Model-agnostic meta-learning (Finn et al., 2017, arXiv 1703.03400), for control and for labelled examples.

Options turn it into first-order MAML, ANIL (Raghu et al., arXiv 1909.09157: adapt only some layers) or Meta-SGD (Li et
al., arXiv 1707.09835: a learned step size for every parameter). Others add parts of MAML++ (Antoniou et al., arXiv
1810.09502: step sizes learned per layer and step, a loss after every step), or credit episodes before
adaptation for the returns after it (E-MAML: Stadie et al., arXiv 1803.01118).
"""

from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.advantages import Advantages, exploration_credit
from metarl.algorithms.normalising import normalise_observations
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.networks import Model, Network, NetworkOptions, loss_gradient, models, stack
from metarl.numerics import sum_of
from metarl.objectives import Surrogate
from metarl.outer import Adam
from metarl.types import Batch, Examples, Experience, Learner, Params, Rollout, Shared, Spec, inputs_of, rollout_of

StepSizes = Literal["parameter", "layer_step"]
STEP_SIZE = "step_size:"
"""Prefix of the learned step sizes' names among the meta-parameters."""


class Adapted(NamedTuple):
    """MAML's state: a separate network for each task."""

    params: Params  # [task, *shape]
    step_sizes: Shared  # [*shape], or [step], by name of the adapted parameter; empty unless learned
    step: int  # gradient steps taken so far
    seen: Tensor | None  # [task, item, *input_shape] the latest support items; None before the first, and for control


@dataclass(frozen=True)
class MAML:
    """MAML: learn initial parameters from which a few gradient steps solve a new task."""

    steps: int = 1
    """Inner gradient steps in meta-training, each on fresh episodes (control) or on the support set (examples)."""
    step_size: float = 0.1
    """Inner step size (the paper's alpha), or its initial value if step sizes are learned. Losses here are means over
    the support items. For N-way classification, the paper's code divides the sum of losses by the shots only, which
    makes its steps N times larger: its 0.4 for 5 ways is 2.0 here."""
    schedule: tuple[float, ...] | None = None
    """Factors of the step size at inner steps 1, 2, ..., in training and at evaluation; the last one is used for all
    later steps. By default 1. For control, steps beyond those of training are half as long (the paper's evaluation:
    normalised advantages do not shrink near the optimum)."""
    first_order: bool = False
    """Ignore second derivatives of the inner loop in the meta-gradient (FOMAML)."""
    adapt_only: tuple[str, ...] = ()
    """Adapt only parameters whose names start with one of these, such as 'head' (ANIL). Empty: adapt all."""
    learn_step_sizes: bool = False
    """Meta-learn the inner step sizes."""
    step_sizes: StepSizes = "parameter"
    """Which step sizes are learned: one for every single parameter (parameter, as in Meta-SGD), or one for each step
    and each layer's weights or biases (layer_step, as in MAML++; steps after the last reuse the last one's)."""
    multi_step_loss: float = 0.0
    """Fraction of training in which the query loss after every inner step counts. The weights start equal and move
    linearly to the last step. 0: only the last step counts. MAML++'s code uses 0.1. For examples only."""
    surrogate: Surrogate = "likelihood_ratio"
    """Inner policy-gradient loss for control: likelihood_ratio (ProMP's LVC), dice, or log_likelihood (the MAML
    paper's; its second derivatives are wrong, which makes training less stable, see docs/results.md)."""
    exploration_term: float = 0.0
    """Weight of E-MAML's term, for control: actions before adaptation are credited with the returns after it (1: the
    paper's, as far as the units of normalised advantages agree). 0 leaves it out. With log_likelihood, both together
    are the gradient of the mean return after adaptation to as many episodes as are drawn. The second derivatives of
    dice hold the same credit already, to first order in the step size, and those of likelihood_ratio a part of it: with
    these, the term adds to it. The outer update is then adam, unless one is chosen; trpo and promp know nothing of such
    terms and refuse them."""
    network: NetworkOptions = Network()
    """The network that adapts."""
    advantages: Advantages = Advantages()
    """How advantages are estimated, for control."""
    normalise_observations: bool = False
    """For control: read observations minus their running mean, divided by their running standard deviation. Leave it
    off for one-hot observations, such as those of Discrete spaces."""

    def __post_init__(self) -> None:
        if self.surrogate not in get_args(Surrogate):
            raise ValueError(f"surrogate={self.surrogate!r}: expected one of {', '.join(get_args(Surrogate))}")
        if self.step_sizes not in get_args(StepSizes):
            raise ValueError(f"step_sizes={self.step_sizes!r}: expected one of {', '.join(get_args(StepSizes))}")
        if not 0 <= self.multi_step_loss <= 1:
            raise ValueError(f"multi_step_loss={self.multi_step_loss}: expected a share of the training, 0 to 1")
        if not 0 <= self.exploration_term < inf:
            raise ValueError(f"exploration_term={self.exploration_term}: expected a weight of at least 0")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: MAML takes at least one inner step")
        inner.check_steps(self.step_size, self.schedule)

    def default_outer(self) -> Adam | None:
        """Return Adam where the meta-loss is more than the surrogate that trpo makes small; otherwise the usual one."""
        return Adam() if self.exploration_term else None

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of any kind.

        Raises:
            ValueError: the network does not fit spec, adapt_only matches no parameter, multi_step_loss is set for
                control, where the query episodes come from the last policy only, or exploration_term for examples,
                which no policy draws.
        """
        if not spec.control and self.exploration_term:
            raise ValueError("exploration_term credits the actions of a policy; for labelled examples, leave it at 0")
        if spec.control and self.multi_step_loss:
            raise ValueError("multi_step_loss is for labelled examples; for control, leave it at 0")
        spec = self.network.chosen(spec)
        model = self.network.build(spec)
        loop = _Loop(self, spec, model, _adapted_names(self.adapt_only, model))
        functions = loop.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        estimate = self.advantages.of_episodes
        learner = Learner(spec, self.steps, *functions, estimate=estimate, batch_norm=model.batch_norm)
        learner = fed(learner, honours_masks=True)
        return normalise_observations(learner) if self.normalise_observations else learner


def _adapted_names(prefixes: tuple[str, ...], model: Model) -> frozenset[str]:
    names = list(model.init(torch.Generator().manual_seed(0)))
    unmatched = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
    if unmatched:
        raise ValueError(f"adapt_only={unmatched} names no parameter; the network has {', '.join(names)}")
    return frozenset(name for name in names if not prefixes or name.startswith(prefixes))


@dataclass(frozen=True)
class _Loop:
    """The functions of MAML's Learner, with the options and the network that they use."""

    options: MAML
    spec: Spec
    model: Model
    adapted: frozenset[str]

    def init(self, generator: Generator) -> Params:
        params = self.model.init(generator)
        if self.options.learn_step_sizes:
            for name in sorted(self.adapted):
                shape = params[name].shape if self.options.step_sizes == "parameter" else (self.options.steps,)
                params[STEP_SIZE + name] = params[name].new_full(shape, self.options.step_size)
        return params

    def begin(self, params: Params, descriptors: Tensor) -> Adapted:
        """Give every task a view of the same initial network."""
        sizes = {name.removeprefix(STEP_SIZE): value for name, value in params.items() if name.startswith(STEP_SIZE)}
        network = {name: value for name, value in params.items() if not name.startswith(STEP_SIZE)}
        return Adapted(stack(network, len(descriptors)), Shared(sizes), 0, None)

    def adapt(self, state: Adapted, batch: Batch) -> Adapted:
        """Take one gradient step on each task (the paper's eq. 1). Keep the graph if gradients are enabled."""
        learned = self.step_sizes(state)
        # Every task has its own network, so each pass over all parameters is expensive. Scaling the scalar losses by
        # the common factor, instead of the gradients, saves one pass.
        scale = -inner.factor(self.options.schedule, self.spec, state.step, self.options.steps)
        scale *= 1.0 if learned else self.options.step_size
        gradients = loss_gradient(
            self.model,
            state.params,
            self.adapted,
            inputs_of(batch),
            lambda outputs: scale * objectives.task_loss(self.spec, outputs, batch, self.options.surrogate),
            second_order=not self.options.first_order,
        )
        moved = dict(state.params)
        for name, step in gradients.items():
            value = state.params[name]
            moved[name] = torch.addcmul(value, step, learned[name]) if learned else value + step
        seen = batch.inputs if isinstance(batch, Examples) else None
        return Adapted(moved, state.step_sizes, state.step + 1, seen)

    def step_sizes(self, state: Adapted) -> Params:
        """Return the learned step sizes of the next step; empty unless they are learned."""
        if self.options.step_sizes == "parameter":
            return state.step_sizes
        return {name: sizes[min(state.step, len(sizes) - 1)] for name, sizes in state.step_sizes.items()}

    def predict(self, state: Adapted, inputs: Tensor) -> tuple[Tensor, Adapted]:
        return models.predict(self.model, state.params, inputs, state.seen), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the adapted networks' query losses (the paper's eq. 2), and metrics.

        For control, the loss is importance-weighted.
        """
        state = self.begin(params, experience.descriptors)
        query = experience.query
        losses: list[Tensor] = []
        for weight, support in zip(self.step_weights(experience), experience.supports, strict=True):
            if self.options.exploration_term:
                losses.append(self.exploration_loss(state, rollout_of(support), rollout_of(query)))
            state = self.adapt(state, support)
            if weight > 0:
                outputs, _ = self.predict(state, inputs_of(query))
                losses.append(weight * objectives.task_loss(self.spec, outputs, query))
        metrics = {}
        if isinstance(query, Examples):
            metrics = objectives.step_scores(self.spec.kind, query, outputs, len(experience.supports))
        return sum_of(losses), metrics

    def exploration_loss(self, state: Adapted, support: Rollout, query: Rollout) -> Tensor:
        """Return minus the credited log-likelihoods of the support episodes, ``[task]`` (E-MAML).

        Likelihoods are relative to the policy that acted, so this is 0 there; its gradient counts.
        """
        outputs, _ = self.predict(state, support.observations)
        log_probs: Tensor = self.spec.distribution.log_prob(outputs, support.actions) - support.log_probs
        credit = exploration_credit(support, query, self.options.advantages.discount)
        return -self.options.exploration_term * (credit * (log_probs * support.mask).sum(2)).sum(1)

    def step_weights(self, experience: Experience) -> list[float]:
        """Return the weight of the query loss after each inner step (MAML++, sec. 4: multi-step loss)."""
        steps, share = len(experience.supports), self.options.multi_step_loss
        # Each step starts at 1 / steps; all but the last fall linearly to 0. The weights always sum to 1.
        early = max(0.0, 1 - experience.progress / share) / steps if share else 0.0
        return [early] * (steps - 1) + [1 - early * (steps - 1)]
