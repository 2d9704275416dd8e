"""Multi-task learning: one network for all tasks, fine-tuned to each task at test. A baseline for meta-learning.

Without the task's descriptor, it is plain pre-training. With the true descriptor, it is the oracle of the MAML paper
(arXiv 1703.03400, sections 5.1 and 5.3).
"""

from dataclasses import dataclass
from typing import NamedTuple, get_args

from torch import Tensor

from metarl import objectives
from metarl.advantages import Advantages
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.algorithms.shared.inner import Optimiser, Tuned
from metarl.networks import Network, NetworkOptions, conditioning
from metarl.networks.conditioning import Condition, Conditioned
from metarl.types import Batch, Examples, Experience, Learner, Params, Spec, inputs_of


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
    network: NetworkOptions = Network()
    """The network."""
    advantages: Advantages = Advantages()
    """How advantages are estimated, for control."""

    def __post_init__(self) -> None:
        for name, known in {"condition": Condition, "optimiser": Optimiser}.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(known))}")
        inner.check_steps(self.step_size, self.schedule)

    def build(self, spec: Spec) -> Learner:
        """Return the learner for a spec of any kind.

        Raises:
            ValueError: the network does not fit spec, or does not support this kind of conditioning.
        """
        functions = _Functions(self, spec, conditioning.build(self.condition, self.network, spec))
        named = functions.begin, functions.adapt, functions.predict, functions.meta_loss
        network = functions.network
        batch_norm = network.model.batch_norm
        estimate = self.advantages.of_episodes
        return fed(
            Learner(spec, 0, network.init, *named, estimate=estimate, batch_norm=batch_norm, differentiable=False)
        )


@dataclass(frozen=True)
class _Functions:
    """The functions of the Learner, with the options and the network that they use."""

    options: MultiTask
    spec: Spec
    network: Conditioned

    def begin(self, params: Params, descriptors: Tensor) -> Described:
        networks = self.network.networks(params, descriptors)
        moments = inner.no_moments(networks) if self.options.optimiser == "adam" else None
        return Described(Tuned(networks, moments, 0, None), descriptors)

    def adapt(self, state: Described, batch: Batch) -> Described:
        """Take one fine-tuning step on each task's own network. Raises ValueError if asked for gradients through it."""
        step_size = self.options.step_size * inner.factor(self.options.schedule, self.spec, state.tuned.step)
        inputs = self.network.inputs(inputs_of(batch), state.descriptors)
        tuned = inner.tune(self.spec.kind, self.network.model, state.tuned, inputs, batch, step_size)
        return state._replace(tuned=tuned._replace(seen=inputs) if isinstance(batch, Examples) else tuned)

    def predict(self, state: Described, inputs: Tensor) -> tuple[Tensor, Described]:
        read = self.network.inputs(inputs, state.descriptors)
        return inner.predict(self.network.model, state.tuned, read), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses on the query data, without adaptation, and metrics."""
        state, query = self.begin(params, experience.descriptors), experience.query
        outputs, _ = self.predict(state, inputs_of(query))
        return objectives.query_losses(self.spec.kind, outputs, query, step=0)
