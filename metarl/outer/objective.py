"""Whether a learner's meta-loss is what updates of policies make small.

TRPO and ProMP need more than a number: the adapted policies' outputs, their divergence, and the surrogate as a function
of both. So they take the likelihood-ratio surrogate of the adapted policies, whose gradient is that of the meta-loss
of every learner here. Where it is not, they would train something else than the learner says.
"""

from functools import partial

import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.advantages import practised
from metarl.numerics import near
from metarl.outer import adapted
from metarl.types import Experience, Learner, Params, Policy, Rollout

TASKS, EPISODES, STEPS = 2, 3, 4
"""Of the made-up experience: one tells whether two functions are the same."""
TOLERANCE = 1e-3
"""Largest distance of the gradients, relative to their norm: rounding makes less."""


def require_surrogate(learner: Learner, outer: str) -> None:
    """Compare gradients at a learner's initial policies, on made-up episodes in which these acted.

    Raises:
        ValueError: the meta-loss has another gradient than the surrogate that ``outer`` makes small.
    """
    generator = Generator().manual_seed(0)
    params = learner.init(generator)
    experience = made_up(learner, params, generator)

    def surrogate(candidate: Params, index: int) -> Tensor:
        outputs, judged = adapted.adapted_outputs(learner, candidate, experience), adapted.judged(learner, experience)
        return objectives.surrogate("likelihood_ratio", learner.spec.distribution, outputs, judged).sum()

    def told(candidate: Params, index: int) -> Tensor:
        return learner.meta_loss(candidate, experience)[0].sum()

    expected, found = (adapted.mean_gradient(loss, params, [experience]) for loss in (surrogate, told))
    if expected.isfinite().all() and not near(found, expected, TOLERANCE):
        cosine = torch.cosine_similarity(found.double(), expected.double(), dim=0)
        raise ValueError(
            f"{outer} makes the likelihood-ratio surrogate of the adapted policies small, and this learner's meta_loss "
            f"is something else: the cosine of their gradients is {cosine:.3g}, their norms are {expected.norm():.3g} "
            f"and {found.norm():.3g}; let meta_loss be that surrogate, or train it as it is by adam"
        )


def made_up(learner: Learner, params: Params, generator: Generator) -> Experience:
    """Return experience as training gathers it, of observations and rewards without any meaning."""
    with torch.no_grad():
        descriptors = torch.rand(TASKS, learner.spec.descriptor_size, generator=generator)
        act = partial(_act, input_shape=learner.spec.input_shape, generator=generator)
        return practised(learner, params, descriptors, act, progress=0.5)


def _act(policy: Policy, input_shape: tuple[int, ...], generator: Generator) -> Rollout:
    """Act for some steps; each task's first episode ends one step before the others."""
    shape, state = (TASKS, EPISODES, STEPS), policy.state
    observations = torch.rand(*shape, *input_shape, generator=generator)
    mask = torch.ones(shape)
    mask[:, 0, -1] = 0
    rewards = torch.randn(shape, generator=generator) * mask
    ends = torch.cat([mask[:, :, 1:], torch.zeros_like(mask[:, :, :1])], dim=2) < mask
    actions, log_probs = list[Tensor](), list[Tensor]()
    for step in range(STEPS):
        outputs, state = policy.predict(state, observations[:, :, step])
        actions.append(policy.distribution.sample(outputs, generator))
        log_probs.append(policy.distribution.log_prob(outputs, actions[-1]))
        if policy.observe is not None:
            state = policy.observe(state, actions[-1], rewards[:, :, step], ends[:, :, step])
    return Rollout(
        observations=observations,
        last_observations=observations[:, :, -1],
        actions=torch.stack(actions, dim=2),
        log_probs=torch.stack(log_probs, dim=2),
        rewards=rewards,
        terminated=ends & (torch.arange(STEPS) < STEPS - 1),
        truncated=torch.zeros_like(ends),
        mask=mask,
    )
