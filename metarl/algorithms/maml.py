"""Model-agnostic meta-learning (Finn et al., 2017, arXiv 1703.03400), for control and for labelled examples.

Options turn it into first-order MAML, ANIL (Raghu et al., arXiv 1909.09157: adapt only some layers), Meta-SGD (Li et
al., arXiv 1707.09835: a learned step size for every parameter), and add what MAML++ does (Antoniou et al., arXiv
1810.09502: step sizes learned per layer and step, a loss after every step).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.networks import Model, Network, NetworkOptions, loss_gradient, models, stack
from metarl.numerics import sum_of
from metarl.objectives import Surrogate
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec, inputs_of

StepSizes = Literal["parameter", "layer_step"]
STEP_SIZE = "step_size:"
"""Prefix under which learned step sizes stand among the meta-parameters."""


class Adapted(NamedTuple):
    """What MAML knows of each task: a network of its own."""

    params: Params  # [task, *shape]
    step_sizes: Params  # [*shape], or [step], by name of the adapted parameter; empty unless learned
    step: int  # how many gradient steps were taken
    seen: Tensor | None  # [task, item, *input_shape] the latest support items; None before, and for control


@dataclass(frozen=True)
class MAML:
    """MAML by gradient steps on each task's support data: learns an initialisation that adapts fast."""

    steps: int = 1
    """Inner gradient steps in meta-training, each on fresh episodes (control) or on the support set (examples)."""
    step_size: float = 0.1
    """Inner step size (the paper's alpha); where step sizes are learned, their initial value. Losses are means over the
    support items; the paper's code divides their sum in N-way classification by the shots only, so that its step sizes
    are N times larger in effect: its 0.4 for 5 ways is 2.0 here."""
    schedule: tuple[float, ...] | None = None
    """Factors of the step size at inner step 1, 2, ..., the last for all later ones; by default 1 0.5 for control (the
    paper's at test: normalised advantages do not shrink near the optimum), and 1 for examples."""
    first_order: bool = False
    """Leave the inner loop's second derivatives out of the meta-gradient (FOMAML)."""
    adapt_only: tuple[str, ...] = ()
    """Adapt only parameters whose names begin so, such as 'head' (ANIL); empty: all of them."""
    learn_step_sizes: bool = False
    """Meta-learn the inner step sizes."""
    step_sizes: StepSizes = "parameter"
    """Where they are learned: one for every single parameter (Meta-SGD); or, layer_step, one for each step and each
    layer's weights or biases (MAML++), whose last step's serves all later ones."""
    multi_step_loss: float = 0.0
    """Share of the training in which the query loss after every inner step counts, equally at first, then less and less
    but for the last (MAML++, whose code takes 0.1); 0: only the last. For examples."""
    surrogate: Surrogate = "likelihood_ratio"
    """Inner policy-gradient loss (control): likelihood_ratio (ProMP's LVC), dice, or the MAML paper's log_likelihood,
    whose second derivatives are wrong and whose training is less stable for it (see docs/results.md)."""
    network: NetworkOptions = Network()
    """The network that adapts."""

    def __post_init__(self) -> None:
        if self.surrogate not in get_args(Surrogate):
            raise ValueError(f"surrogate={self.surrogate!r}: expected one of {', '.join(get_args(Surrogate))}")
        if self.step_sizes not in get_args(StepSizes):
            raise ValueError(f"step_sizes={self.step_sizes!r}: expected one of {', '.join(get_args(StepSizes))}")
        if not 0 <= self.multi_step_loss <= 1:
            raise ValueError(f"multi_step_loss={self.multi_step_loss}: expected a share of the training, 0 to 1")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: MAML takes at least one inner step")
        inner.check_steps(self.step_size, self.schedule)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for spec, of any kind.

        Raises:
            ValueError: the network does not fit spec, adapt_only names none of its parameters, or multi_step_loss is
                asked of control, whose query episodes are the last policy's.
        """
        if spec.control and self.multi_step_loss:
            raise ValueError("multi_step_loss is for labelled examples; for control, leave it at 0")
        model = self.network.build(spec)
        loop = _Loop(self, spec, model, _adapted_names(self.adapt_only, model))
        functions = loop.init, loop.begin, loop.adapt, loop.predict, loop.meta_loss
        return fed(Learner(spec, self.steps, *functions, batch_norm=model.batch_norm))


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
                shape = params[name].shape if self.options.step_sizes == "parameter" else (self.options.steps,)
                params[STEP_SIZE + name] = params[name].new_full(shape, self.options.step_size)
        return params

    def begin(self, params: Params, descriptors: Tensor) -> Adapted:
        """Give every task a view of the same initial network."""
        sizes = {name.removeprefix(STEP_SIZE): value for name, value in params.items() if name.startswith(STEP_SIZE)}
        network = {name: value for name, value in params.items() if not name.startswith(STEP_SIZE)}
        return Adapted(stack(network, len(descriptors)), sizes, 0, None)

    def adapt(self, state: Adapted, batch: Batch) -> Adapted:
        """Take one gradient step on each task (the paper's eq. 1), and keep its graph where gradients are on."""
        learned = self.step_sizes(state)
        # Each pass over memory counts where every task has a large network of its own: what is common to all step sizes
        # scales the losses, not the gradients.
        scale = -inner.factor(self.options.schedule, self.spec, state.step)
        scale *= 1.0 if learned else self.options.step_size
        gradients = loss_gradient(
            self.model,
            state.params,
            self.adapted,
            inputs_of(batch),
            lambda outputs: scale * objectives.task_loss(self.spec.kind, outputs, batch, self.options.surrogate),
            second_order=not self.options.first_order,
        )
        moved = dict(state.params)
        for name, step in gradients.items():
            value = state.params[name]
            moved[name] = torch.addcmul(value, step, learned[name]) if learned else value + step
        seen = batch.inputs if isinstance(batch, Examples) else None
        return Adapted(moved, state.step_sizes, state.step + 1, seen)

    def step_sizes(self, state: Adapted) -> Params:
        """The learned step sizes of the step to come, if any."""
        if self.options.step_sizes == "parameter":
            return state.step_sizes
        return {name: sizes[min(state.step, len(sizes) - 1)] for name, sizes in state.step_sizes.items()}

    def predict(self, state: Adapted, inputs: Tensor) -> tuple[Tensor, Adapted]:
        return models.predict(self.model, state.params, inputs, state.seen), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the adapted networks on the query data (the paper's eq. 2), importance-weighted for control."""
        state, query, losses = self.begin(params, experience.descriptors), experience.query, list[Tensor]()
        for weight, support in zip(self.step_weights(experience), experience.supports, strict=True):
            state = self.adapt(state, support)
            if weight > 0:
                outputs, _ = self.predict(state, inputs_of(query))
                losses.append(weight * objectives.task_loss(self.spec.kind, outputs, query).mean())
        metrics = {}
        if isinstance(query, Examples):
            metrics = objectives.mean_scores(self.spec.kind, query, outputs.detach(), len(experience.supports))
        return sum_of(losses), metrics

    def step_weights(self, experience: Experience) -> list[float]:
        """How much the query loss after each inner step counts."""
        steps, share = len(experience.supports), self.options.multi_step_loss
        early = max(0.0, 1 - experience.progress / share) / steps if share else 0.0
        return [early] * (steps - 1) + [1 - early * (steps - 1)]
