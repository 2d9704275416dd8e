"""Where learners adapt to episodes: their advantages are estimated first."""

from collections.abc import Callable, Sequence

from torch import Tensor

from metarl.types import Experience, Learner, Params, Policy, Rollout, State, policy_of


def judged(learner: Learner, state: State, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return rollouts with the learner's advantages, see ``Learner.estimate``. Raises ValueError if it has none."""
    if learner.estimate is None:
        raise ValueError(
            "this learner cannot learn from rollouts, because it estimates no advantages: build it with "
            "estimate=Advantages().of_episodes, of metarl.advantages"
        )
    return list(learner.estimate(state, rollouts))


def learned(learner: Learner, state: State, rollout: Rollout) -> State:
    """Return the state after adaptation to episodes that policies of ``state`` played."""
    return learner.adapt(state, rollout if learner.memory is not None else judged(learner, state, [rollout])[0])


def practised(
    learner: Learner, params: Params, descriptors: Tensor, act: Callable[[Policy], Rollout], progress: float = 0.0
) -> Experience:
    """Return the experience of one meta-iteration: ``act`` runs episodes before and after each adaptation."""
    start = state = learner.begin(params, descriptors)
    rollouts: list[Rollout] = []
    for number in range(learner.adaptations + 1):
        rollouts.append(act(policy_of(learner, state)))
        if learner.memory is None:
            rollouts[-1:] = judged(learner, state, rollouts[-1:])
        if number < learner.adaptations:
            state = learner.adapt(state, rollouts[-1])
    if learner.memory is not None:
        rollouts = judged(learner, start, rollouts)
    *supports, query = rollouts
    return Experience(descriptors=descriptors, supports=tuple(supports), query=query, progress=progress)
