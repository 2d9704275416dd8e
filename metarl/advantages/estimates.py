"""From rewards to advantages: linear baselines, and generalised advantage estimation.

A learner chooses how its episodes are judged; see ``Learner.estimate``. ``Advantages`` holds the usual choices, and
``judged``, ``learned`` and ``practised`` ask for them where learners adapt to episodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from metarl.objectives import masked_mean
from metarl.types import Experience, Learner, Params, Policy, Rollout, State, joined, policy_of

Baseline = Literal["auto", "linear", "time", "none"]
LARGEST_OBSERVATION = 512
"""Numbers in an observation above which ``auto`` fits a baseline of time only: the cost grows with their cube."""


@dataclass(frozen=True)
class Advantages:
    """Options for estimating advantages."""

    discount: float = 0.99
    """Discount factor gamma."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation (GAE). With 1, the advantage is reward-to-go minus the baseline."""
    baseline: Baseline = "auto"
    """What is subtracted. linear: a least-squares fit, for each task, of observations, their squares and powers of
    time. time: of powers of time only. none: nothing. auto: linear, but time for pictures and other observations of
    more than 512 numbers."""

    def __post_init__(self) -> None:
        if not (0 <= self.discount <= 1 and 0 <= self.gae_lambda <= 1):
            raise ValueError(f"discount and gae_lambda must be in [0, 1], not {self.discount} and {self.gae_lambda}")
        if self.baseline not in get_args(Baseline):
            raise ValueError(f"baseline={self.baseline!r}: expected one of {', '.join(get_args(Baseline))}")

    def of_episodes(self, state: State, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Add advantages to rollouts, each judged by itself; a ``Learner.estimate``.

        The baseline is fitted to each task's episodes, and advantages are normalised per task. The horizon ends the
        task: there is no value beyond it, as in the MAML paper. An episode that its environment truncated earlier
        bootstraps from the baseline.
        """
        return [replace(rollout, advantages=self._estimate(rollout)) for rollout in rollouts]

    def of_trials(self, state: State, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Add advantages over whole trials: early episodes get credit for later rewards. A ``Learner.estimate``.

        A trial is one lane of all rollouts, in order. Steps after the end of an episode take no time: the value after
        an episode's last step, however it ended, is that of the next episode's first step.
        """
        trial = joined(rollouts)
        # A stable sort moves the valid steps to the front, in order; the scatter below moves them back.
        order = trial.mask.argsort(dim=2, descending=True, stable=True)

        def without_gaps(values: Tensor) -> Tensor:
            index = order.reshape(*order.shape, *[1] * (values.ndim - 3))
            return values.gather(2, index.expand_as(values))

        moved = ("observations", "rewards", "truncated", "mask")
        whole = replace(trial, **{name: without_gaps(getattr(trial, name)) for name in moved})
        # Only the last episode can be cut before its horizon with nothing after it.
        cut = _cut_short(rollouts[-1])
        advantages = self._estimate(whole, cut)
        advantages = torch.zeros_like(advantages).scatter(2, order, advantages)
        parts = torch.split(advantages, [rollout.mask.shape[2] for rollout in rollouts], dim=2)
        return [replace(rollout, advantages=part) for rollout, part in zip(rollouts, parts, strict=True)]

    def _estimate(self, rollout: Rollout, cut: Tensor | None = None) -> Tensor:
        """Return normalised advantages ``[task, episode, time]``. By default, ``cut`` is that of the rollout."""
        cut = _cut_short(rollout) if cut is None else cut
        rewards, mask = rollout.rewards, rollout.mask
        values = self._values(rollout)
        last_values = values[:, :, -1] * cut
        advantages = gae(rewards, values[:, :, :-1], last_values, mask, self.discount, self.gae_lambda)
        return normalise(advantages, mask).to(rewards.dtype)

    def _values(self, rollout: Rollout) -> Tensor:
        """Fit the baseline. Return its values before each step and after the last, ``[task, episode, time + 1]``."""
        features = self._features(rollout)
        if features is None:
            return torch.zeros_like(torch.nn.functional.pad(rollout.rewards, (0, 1)), dtype=torch.float64)
        returns = discounted_sums((rollout.rewards * rollout.mask).double(), self.discount)
        weights = fit_baseline(features[:, :, :-1], returns, rollout.mask)
        return torch.einsum("teif,tf->tei", features, weights)

    def _features(self, rollout: Rollout) -> Tensor | None:
        if self.baseline == "none":
            return None
        observations, last = rollout.observations, rollout.last_observations
        small = prod(last.shape[2:]) <= LARGEST_OBSERVATION
        if self.baseline == "time" or (self.baseline == "auto" and not small):
            nothing = rollout.rewards.unsqueeze(-1)[..., :0]
            observations, last = nothing, nothing[:, :, 0]
        # Time stops at the end of an episode, so that the state after its last step has the right time feature.
        time = torch.arange(observations.shape[2] + 1, device=last.device, dtype=last.dtype)
        seen = torch.cat([observations, last.unsqueeze(2)], dim=2)
        return baseline_features(seen, torch.minimum(time, rollout.mask.sum(2, keepdim=True)))


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


def _cut_short(rollout: Rollout) -> Tensor:
    """Return where the environment truncated an episode before the horizon, ``[task, episode]``, 0 or 1."""
    # The horizon itself ends the task.
    return rollout.truncated[:, :, :-1].any(2).to(rollout.rewards.dtype)


def discounted_sums(rewards: Tensor, discount: float) -> Tensor:
    """Return the discounted reward-to-go along the last axis, which is time."""
    sums = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[..., 0])
    for step in reversed(range(rewards.shape[-1])):
        following = rewards[..., step] + discount * following
        sums[..., step] = following
    return sums


def baseline_features(observations: Tensor, time: Tensor) -> Tensor:
    """Return the features of the linear baseline, ``[task, episode, time, 2 * size + 4]`` in float64.

    They are observations clipped to [-10, 10], their squares, powers of time / 100, and 1 (Duan et al., arXiv
    1604.06778).
    """
    states = observations.flatten(3).double().clamp(-10, 10)
    step = (time.double() / 100).expand(states.shape[:3]).unsqueeze(-1)
    return torch.cat([states, states.square(), step, step.square(), step**3, torch.ones_like(step)], dim=-1)


def fit_baseline(features: Tensor, returns: Tensor, mask: Tensor, ridge: float = 1e-5) -> Tensor:
    """Return the least-squares weights of each task, ``[task, feature]``, over its valid steps.

    The ridge of a task grows tenfold until its normal equations can be solved. So every batch works, even if all
    episodes end at their first step, or every observation is the same.
    """
    # Normal equations: (X'X + ridge I) w = X'y, with X the valid rows of features and y their returns.
    valid = features * mask.double().unsqueeze(-1)
    rows = valid.flatten(1, 2)
    gram = rows.mT @ rows
    target = rows.mT @ (returns.double() * mask).flatten(1).unsqueeze(-1)
    penalty = ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    for _ in range(12):
        factor, failed = torch.linalg.cholesky_ex(gram + penalty)
        # On a GPU, checking for success would wait for the device. Solving again gives the same result, and is faster.
        if gram.device.type == "cpu" and not failed.any():
            break
        penalty = torch.where(failed.reshape(-1, 1, 1) > 0, 10 * penalty, penalty)
    return torch.cholesky_solve(target, factor).squeeze(-1)


def gae(
    rewards: Tensor, values: Tensor, last_values: Tensor, mask: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """Return generalised advantage estimates, ``[..., time]`` (arXiv 1506.02438, eq. 16); 0 after the end.

    ``values[..., t]`` is the value of the state before step t. ``last_values`` is the value of the state after the last
    valid step: 0 where the episode terminated.
    """
    # V(s_{t+1}): the next step's value, or last_values after the last valid step.
    following = torch.cat([values[..., 1:] * mask[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    is_last = mask - torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], dim=-1)
    following = following + is_last * last_values.unsqueeze(-1)
    # TD errors, delta_t = r_t + gamma V(s_{t+1}) - V(s_t), summed with the discount gamma * lambda.
    errors = (rewards + discount * following - values) * mask
    return discounted_sums(errors, discount * gae_lambda)


def normalise(advantages: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale each task's valid advantages to mean 0 and standard deviation 1: ``[task, episode, time]``."""
    mean = masked_mean(advantages, mask).reshape(-1, 1, 1)
    centred = (advantages - mean) * mask
    std = masked_mean(centred.square(), mask).sqrt().reshape(-1, 1, 1)
    return centred / (std + 1e-8)
