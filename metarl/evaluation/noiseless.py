"""Policies without noise."""

from torch import Tensor

from metarl.types import Learner, State


def acting_by_the_mean(learner: Learner) -> Learner:
    """Return a learner whose policies take the most likely action: the mean, for continuous actions."""

    def predict(state: State, observations: Tensor) -> tuple[Tensor, State]:
        outputs, state = learner.predict(state, observations)
        return learner.spec.distribution.certain(outputs), state

    return learner._replace(predict=predict)
