"""Fast context adaptation via meta-learning (CAVIA; Zintgraf et al., 2019, arXiv 1810.03642), for any kind of data.

Only a few context parameters adapt to a task. They begin from zeros for each task. The network is shared by all tasks
and learned in the outer loop only.
"""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from metarl import objectives
from metarl.advantages import Advantages
from metarl.algorithms.normalising import normalise_observations
from metarl.algorithms.shared import contexts, inner
from metarl.algorithms.shared.contexts import ContextIn, Contexts
from metarl.algorithms.shared.feeding import fed
from metarl.networks import Network, NetworkOptions, loss_gradient, models
from metarl.objectives import Surrogate
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec, inputs_of


class Adapted(NamedTuple):
    """CAVIA's state: context parameters of each task, and the network that they modulate."""

    networks: Params  # [task, *shape] each task's own, a function of the two below
    params: Params  # [*shape] the meta-parameters, shared by all tasks
    context: Tensor  # [task, context]
    step: int  # gradient steps taken so far
    seen: Tensor | None  # [task, item, *input_shape] the latest support items; None before the first, and for control


@dataclass(frozen=True)
class CAVIA:
    """CAVIA: learn a network and how a few context parameters modulate it; only these adapt to a new task."""

    context: int = 5
    """Number of context parameters, at least 1. The paper uses 2 to 50 for sinusoids, 50 for robots, 100 for images."""
    context_in: ContextIn = "input"
    """Where they act: concatenated to the inputs (input; plain mlp only), or as scales and shifts of hidden features
    (film), for any network whose layers have weights and biases."""
    film_layers: tuple[str, ...] = ()
    """With film: the layers, by the beginning of their names, such as 'norm_2' for the third block of conv4 (the
    paper's choice). Empty: all hidden layers."""
    steps: int = 1
    """Inner gradient steps in meta-training, each on fresh episodes (control) or on the support set (examples)."""
    step_size: float = 1.0
    """Inner step size. The paper finds that it matters little: the maps learn to scale the context."""
    schedule: tuple[float, ...] | None = None
    """Factors of the step size at inner steps 1, 2, ..., in training and at evaluation; the last one is used for all
    later steps. By default 1. For control, steps beyond those of training are half as long."""
    first_order: bool = False
    """Ignore second derivatives of the inner loop in the meta-gradient."""
    surrogate: Surrogate = "likelihood_ratio"
    """Inner policy-gradient loss for control: likelihood_ratio, dice, or log_likelihood."""
    network: NetworkOptions = Network()
    """The network that all tasks share."""
    advantages: Advantages = Advantages()
    """How advantages are estimated, for control."""
    normalise_observations: bool = False
    """For control: read observations minus their running mean, divided by their running standard deviation. Leave it
    off for one-hot observations, such as those of Discrete spaces."""

    def __post_init__(self) -> None:
        for name, known in {"context_in": ContextIn, "surrogate": Surrogate}.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(known))}")
        if self.context < 1:
            raise ValueError(
                f"context={self.context}: CAVIA adapts context parameters only, so it needs at least 1; multitask "
                "trains a network without any"
            )
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: CAVIA takes at least one inner step")
        if self.film_layers and self.context_in != "film":
            raise ValueError(f"film_layers={self.film_layers}: only context_in=film has such layers")
        inner.check_steps(self.step_size, self.schedule)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of any kind.

        Raises:
            ValueError: the network does not fit spec, or cannot be modulated as ``context_in`` says.
        """
        network = contexts.build(self.context_in, self.network, spec, self.context, self.film_layers)
        loop = _Loop(self, spec, network)
        functions = network.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        batch_norm = network.model.batch_norm
        estimate = self.advantages.of_episodes
        learner = Learner(spec, self.steps, *functions, estimate=estimate, batch_norm=batch_norm)
        learner = fed(learner, honours_masks=True)
        return normalise_observations(learner) if self.normalise_observations else learner


@dataclass(frozen=True)
class _Loop:
    """The functions of CAVIA's Learner, with the options and the network that they use."""

    options: CAVIA
    spec: Spec
    contexts: Contexts

    def begin(self, params: Params, descriptors: Tensor) -> Adapted:
        """Give every task a context of zeros."""
        some = next(iter(params.values()))
        return self.at(params, some.new_zeros(len(descriptors), self.options.context), 0, None)

    def at(self, params: Params, context: Tensor, step: int, seen: Tensor | None) -> Adapted:
        return Adapted(self.contexts.networks(params, context), params, context, step, seen)

    def adapt(self, state: Adapted, batch: Batch) -> Adapted:
        """Take one gradient step on each task's context (eq. 4). Keep the graph if gradients are enabled."""
        gradients = loss_gradient(
            self.contexts.model,
            state.networks,
            self.contexts.modulated,
            inputs_of(batch),
            lambda outputs: objectives.task_loss(self.spec, outputs, batch, self.options.surrogate),
            second_order=not self.options.first_order,
        )
        gradient = self.contexts.gradient(state.params, gradients)
        if self.options.first_order:
            gradient = gradient.detach()
        factor = inner.factor(self.options.schedule, self.spec, state.step, self.options.steps)
        seen = batch.inputs if isinstance(batch, Examples) else None
        context = torch.sub(state.context, gradient, alpha=self.options.step_size * factor)
        return self.at(state.params, context, state.step + 1, seen)

    def predict(self, state: Adapted, inputs: Tensor) -> tuple[Tensor, Adapted]:
        return models.predict(self.contexts.model, state.networks, inputs, state.seen), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses on the query data after adaptation (eq. 5), and metrics."""
        return inner.losses_after(self, params, experience)
