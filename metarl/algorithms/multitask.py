"""Multi-task learning: one network for all tasks, fine-tuned to each task at test. A baseline for meta-learning.

Without the task's descriptor, it is plain pre-training. With the true descriptor, it is the oracle of the MAML paper
(arXiv 1703.03400, sections 5.1 and 5.3).
"""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple, get_args

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.advantages import Advantages
from metarl.algorithms.normalising import normalise_observations
from metarl.algorithms.shared import inner, weighting
from metarl.algorithms.shared.feeding import fed
from metarl.algorithms.shared.inner import Optimiser, Tuned
from metarl.algorithms.shared.weighting import Weighting
from metarl.networks import Network, NetworkOptions, conditioning, loss_gradient
from metarl.networks.conditioning import Condition, Conditioned
from metarl.speed import ranks
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec, inputs_of

LOG_VARIANCES = "weighting:log_variances"
"""Name of the learned log-variances among the meta-parameters."""
BALANCE = "weighting:balance"
"""Name of GradNorm's weights among the meta-parameters, as logits."""


class Described(NamedTuple):
    """The state of multi-task learning: a network for each task, and the task's descriptor."""

    tuned: Tuned
    descriptors: Tensor  # [task, descriptor_size]


@dataclass(frozen=True)
class MultiTask:
    """Multi-task learning: train one network on all tasks together, and fine-tune it to each task at test."""

    condition: Condition = "none"
    """How the network uses the task's descriptor: not at all (none: pre-training), concatenated to the inputs, by a
    linear map that is added to or multiplies the hidden features, or to mix several heads, one for each of its
    numbers."""
    step_size: float = 0.01
    """Step size of fine-tuning."""
    schedule: tuple[float, ...] | None = None
    """Factors of the step size at steps 1, 2, ...; the last one is used for all later steps. By default 1 for
    examples, 1 0.5 for control."""
    optimiser: Optimiser = "sgd"
    """Optimiser of fine-tuning: sgd, or adam without momentum (beta1 = 0)."""
    weighting: Weighting = "equal"
    """How the losses of tasks are put together, for examples. equal: their mean. fixed: with task_weights. uncertainty:
    with the variance of each task's noise, which is learned (Kendall et al., arXiv 1705.07115). pcgrad: equally, but
    each task's gradient without what contradicts another's in the meta-batch, or in a group of --outer.chunks (Yu et
    al., arXiv 2001.06782). gradnorm: with weights that are learned so that the tasks' gradients have equal norms, or
    larger ones where a task learns slowly (Chen et al., arXiv 1711.02257). fixed, uncertainty and gradnorm tell tasks
    apart by one-hot descriptors: losses of tasks that have others are nan, and training says so."""
    task_weights: tuple[float, ...] = ()
    """Weights of the tasks, for fixed: one for each number of the descriptor."""
    restoring_force: float = 1.5
    """How strongly gradnorm favours tasks that learn slowly (the paper's alpha); 0: equal norms. A task's rate is its
    loss, as a share of the loss of outputs that are all zero, which stands for the loss at the start."""
    multi_label: bool = False
    """Targets are labels, any number of which may hold at once: 0 or 1 for each output, in a spec of regression. The
    loss is the binary cross-entropy of a sigmoid for each label. Outputs are probabilities, so the loss that is
    reported as a regression's is their squared error (the Brier score)."""
    network: NetworkOptions = Network()
    """The network."""
    advantages: Advantages = Advantages()
    """How advantages are estimated, for control."""
    normalise_observations: bool = False
    """For control: read observations minus their running mean, divided by their running standard deviation. Leave it
    off for one-hot observations, such as those of Discrete spaces."""

    def __post_init__(self) -> None:
        for name, known in {"condition": Condition, "optimiser": Optimiser, "weighting": Weighting}.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(known))}")
        inner.check_steps(self.step_size, self.schedule)
        if bool(self.task_weights) != (self.weighting == "fixed"):
            raise ValueError(
                f"weighting={self.weighting!r} with task_weights={self.task_weights}: expected weights with fixed only"
            )
        if not 0 <= self.restoring_force < inf:
            raise ValueError(f"restoring_force={self.restoring_force}: expected a number of at least 0")
        if not all(0 < weight < inf for weight in self.task_weights):
            raise ValueError(f"task_weights={self.task_weights}: expected positive numbers")

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of any kind.

        Raises:
            ValueError: the network does not fit spec, or does not support this kind of conditioning; multi_label for
                another kind than regression, or for a family that says what its targets are; or a weighting that does
                not fit spec or conditioning.
        """
        self._check_weighting(spec)
        if self.multi_label and spec.targets:
            raise ValueError("multi_label: the family says by its spec which of its targets are labels; leave it out")
        if self.multi_label and spec.kind != "regression":
            raise ValueError(
                f"multi_label reads targets of 0 and 1, in a spec of regression, not of {spec.kind}; leave it out, or "
                "give the family a regression spec with one output for each label"
            )
        spec = self.network.chosen(spec)
        functions = _Functions(self, spec, conditioning.build(self.condition, self.network, spec))
        named = functions.begin, functions.adapt, functions.predict, functions.meta_loss
        network = functions.network
        batch_norm = network.model.batch_norm
        estimate = self.advantages.of_episodes
        learner = Learner(
            spec, 0, functions.init, *named, estimate=estimate, batch_norm=batch_norm, differentiable=False
        )
        learner = fed(learner, honours_masks=True, mixes_targets=True)
        return normalise_observations(learner) if self.normalise_observations else learner

    def _check_weighting(self, spec: Spec) -> None:
        asked = f"weighting={self.weighting!r}"
        if spec.control and self.weighting != "equal":
            raise ValueError(f"{asked} weighs losses of examples; advantages are of one size already: use equal")
        if self.weighting in ("fixed", "uncertainty", "gradnorm") and spec.descriptor_size == 0:
            raise ValueError(f"{asked}: nothing describes the tasks of this family; use pcgrad, or equal")
        if self.weighting == "fixed" and len(self.task_weights) != spec.descriptor_size:
            told = f"{len(self.task_weights)} weights for descriptors of {spec.descriptor_size} numbers"
            raise ValueError(f"{asked} has {told}: expected one for each")
        if self.weighting in ("pcgrad", "gradnorm") and self.condition not in ("none", "concatenate"):
            raise ValueError(
                f"{asked} compares gradients of one network, and condition={self.condition!r} gives each task its own; "
                "use condition none or concatenate"
            )


@dataclass(frozen=True)
class _Functions:
    """The functions of the Learner, with the options and the network that they use."""

    options: MultiTask
    spec: Spec
    network: Conditioned

    def init(self, generator: Generator) -> Params:
        params = self.network.init(generator)
        if self.options.weighting == "uncertainty":
            params[LOG_VARIANCES] = torch.zeros(self.spec.descriptor_size)
        if self.options.weighting == "gradnorm":
            params[BALANCE] = torch.zeros(self.spec.descriptor_size)
        return params

    def loss(self, outputs: Tensor, batch: Batch, descriptors: Tensor) -> Tensor:
        """Return the loss of each task, ``[task]``, given the network's outputs; nan for labels beyond 0 and 1."""
        if isinstance(batch, Examples) and self.spec.targets:
            return objectives.targeted_loss(self.spec, descriptors, outputs, batch)
        if isinstance(batch, Examples) and self.options.multi_label:
            return objectives.label_loss(outputs, batch)
        return objectives.task_loss(self.spec, outputs, batch)

    def begin(self, params: Params, descriptors: Tensor) -> Described:
        params = {name: value for name, value in params.items() if name not in (LOG_VARIANCES, BALANCE)}
        networks = self.network.networks(params, descriptors)
        moments = inner.no_moments(networks) if self.options.optimiser == "adam" else None
        return Described(Tuned(networks, moments, 0, None), descriptors)

    def adapt(self, state: Described, batch: Batch) -> Described:
        """Take one fine-tuning step on each task's own network. Raises ValueError if asked for gradients through it."""
        step_size = self.options.step_size * inner.factor(self.options.schedule, self.spec, state.tuned.step)
        inputs = self.network.inputs(inputs_of(batch), state.descriptors)
        tuned = inner.tune(
            self.spec, self.network.model, state.tuned, inputs, batch, step_size,
            lambda outputs: self.loss(outputs, batch, state.descriptors),
        )  # fmt: skip
        return state._replace(tuned=tuned._replace(seen=inputs) if isinstance(batch, Examples) else tuned)

    def outputs(self, state: Described, inputs: Tensor) -> Tensor:
        """Return the network's outputs; logits where ``predict`` returns probabilities of labels."""
        return inner.predict(self.network.model, state.tuned, self.network.inputs(inputs, state.descriptors))

    def predict(self, state: Described, inputs: Tensor) -> tuple[Tensor, Described]:
        outputs = self.outputs(state, inputs)
        return outputs.sigmoid() if self.options.multi_label else outputs, state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses on the query data, without adaptation, and metrics."""
        state, query = self.begin(params, experience.descriptors), experience.query
        outputs = self.outputs(state, inputs_of(query))
        losses = self.weighted(self.loss(outputs, query, state.descriptors), params, state, query)
        if not isinstance(query, Examples):
            return losses, {}
        told = outputs.sigmoid() if self.options.multi_label else outputs
        scores = objectives.targeted_scores(self.spec, state.descriptors, query, told.detach())
        metrics = {f"{name}/step_0": value for name, value in scores.items()}
        if self.options.multi_label:
            right = ((outputs.detach() > 0) == (query.targets > 0.5)).to(outputs.dtype)
            metrics["accuracy/step_0"] = objectives.item_mean(right, query)
        return losses, metrics

    def weighted(self, losses: Tensor, params: Params, state: Described, query: Batch) -> Tensor:
        """Return the losses ``[task]`` that are trained on, put together as ``weighting`` says."""
        how = self.options.weighting
        if how == "fixed":
            return weighting.fixed(losses, state.descriptors, self.options.task_weights)
        if how == "uncertainty":
            return weighting.uncertain(losses, state.descriptors, params[LOG_VARIANCES], self.squared)
        if how in ("pcgrad", "gradnorm") and torch.is_grad_enabled():
            if ranks.is_shared() or ranks.is_exact():
                raise ValueError(
                    f"weighting={how!r} compares the gradients of all tasks, which must be in one process, together: "
                    "train without torchrun and without exact_sums"
                )
            own = self.gradients(state, query)
            if how == "gradnorm":
                return self.balanced(losses, params[BALANCE], state, query, own.norm(dim=1))
            return weighting.following(losses, params, weighting.without_conflicts(own), own)
        return losses

    @property
    def squared(self) -> tuple[bool, ...]:
        """Whether the loss is a squared error, for each number of the descriptor."""
        if self.spec.targets:
            return tuple(one.kind == "numbers" for one in self.spec.targets)
        return (self.spec.kind == "regression" and not self.options.multi_label,) * self.spec.descriptor_size

    def balanced(self, losses: Tensor, logits: Tensor, state: Described, query: Batch, norms: Tensor) -> Tensor:
        """Return losses with GradNorm's weights, which learn by its loss; that is not added to the value."""
        zeros = torch.zeros_like(query.targets, dtype=norms.dtype) if isinstance(query, Examples) else norms
        if self.spec.kind == "classification":
            zeros = norms.new_zeros(*zeros.shape, self.spec.output_size)
        rates = losses.detach() / self.loss(zeros, query, state.descriptors)
        weights, learning = weighting.balanced(logits, state.descriptors, norms, rates, self.options.restoring_force)
        return weights * losses + learning - learning.detach()

    def gradients(self, state: Described, query: Batch) -> Tensor:
        """Return each task's own gradient in the network that all share, ``[task, number]``."""
        networks = {name: value.detach() for name, value in state.tuned.params.items()}
        inputs = self.network.inputs(inputs_of(query), state.descriptors)
        found = loss_gradient(
            self.network.model,
            networks,
            list(networks),
            inputs,
            lambda outputs: self.loss(outputs, query, state.descriptors),
        )
        return torch.cat([value.flatten(1) for value in found.values()], dim=1)
