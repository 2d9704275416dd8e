"""A learner made of one rule: how the networks of tasks move, given the gradients of their losses."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from metarl import objectives
from metarl.advantages import Advantages
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.feeding import fed
from metarl.networks import Model, Network, NetworkOptions, loss_gradient, models, stack
from metarl.types import Batch, Experience, Learner, Params, Spec, inputs_of

Step = Callable[[Params, Params], Params]
"""``(parameters [task, *shape], gradients [task, *shape]) -> parameters``"""


def gradient_learner(
    spec: Spec,
    step: Step,
    network: NetworkOptions = Network(),
    steps: int = 1,
    second_order: bool = True,
    advantages: Advantages = Advantages(),
) -> Learner:
    """Return a learner of any kind of data that gives each task a network, and adapts it by a rule of your own.

    Adaptation takes the gradient of each task's loss (for control, of the policy-gradient surrogate) and hands it to
    ``step``. Meta-training minimises the loss of the adapted networks on the query data.

    Args:
        spec: What the family asks of a model.
        step: The rule. For MAML it is ``lambda params, gradients: {name: value - 0.1 * gradients[name] ...}``.
        network: The network of each task. Its initial parameters are the meta-parameters.
        steps: Adaptations in meta-training.
        second_order: Whether gradients keep their graph, so that the meta-gradient passes through them.
        advantages: How advantages are estimated, for control.

    Raises:
        ValueError: fewer than one step, or the network does not fit spec.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least one adaptation")
    spec = network.chosen(spec)
    rule = _Rule(spec, network.build(spec), step, second_order)
    functions = rule.model.init, rule.begin, rule.adapt, rule.predict, rule.meta_loss
    learner = Learner(spec, steps, *functions, advantages.of_episodes, batch_norm=rule.model.batch_norm)
    return fed(learner, honours_masks=True)


@dataclass(frozen=True)
class _Rule:
    """The functions of the learner. A state is the parameters of each task's network, ``[task, *shape]``."""

    spec: Spec
    model: Model
    step: Step
    second_order: bool

    def begin(self, params: Params, descriptors: Tensor) -> Params:
        return stack(params, len(descriptors))

    def adapt(self, state: Params, batch: Batch) -> Params:
        gradients = loss_gradient(
            self.model,
            state,
            list(state),
            inputs_of(batch),
            lambda outputs: objectives.task_loss(self.spec, outputs, batch),
            second_order=self.second_order,
        )
        return self.step(state, gradients)

    def predict(self, state: Params, inputs: Tensor) -> tuple[Tensor, Params]:
        return models.predict(self.model, state, inputs), state

    def meta_loss(self, params: Params, experience: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        return inner.losses_after(self, params, experience)
