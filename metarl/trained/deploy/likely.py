"""Whether recorded actions can be a policy's own: a step on those of another one can point anywhere."""

import warnings

from torch import Generator

from metarl import objectives
from metarl.trained.deploy.native import Native
from metarl.types import Learner, Rollout, State

MARGIN = 2.0
"""Nats by which recorded actions may be less likely than the policy's own, for each dimension or choice. Gaussian
actions reach it at 2.2 standard deviations from the mean, on average."""


class OffPolicyWarning(UserWarning):
    """Recorded actions are far from those of the policy that adapts to them."""


def warn_if_unlikely(learner: Learner, state: State, rollout: Rollout, own: Native) -> None:
    """Warn with an ``OffPolicyWarning`` where the policy in a state would hardly ever take the recorded actions.

    The measure is their mean log-probability, beside that of actions that the policy draws in the same places.
    """
    law, mask = learner.spec.distribution, rollout.mask
    outputs, _ = learner.predict(state, rollout.observations)
    drawn = law.sample(outputs, Generator(outputs.device).manual_seed(0))
    theirs, ours = (
        objectives.masked_mean(law.log_prob(outputs, actions), mask).item() for actions in (rollout.actions, drawn)
    )
    parts = law.numbers if law.actions == "continuous" else len(law.sizes)
    if ours - theirs > MARGIN * parts:
        bounds = f", which has actions from {min(own.low):g} to {max(own.high):g}" if own.high else ""
        warnings.warn(
            f"the recorded actions are hardly this policy's own: their mean log-probability is {theirs:.1f}, where its "
            f"own actions have {ours:.1f}. Another policy took them, or they are in other units than the "
            f"environment's{bounds}: adapting to them can make the policy worse",
            OffPolicyWarning,
            stacklevel=3,
        )
