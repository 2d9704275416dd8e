"""From rewards to advantages: linear baselines, and generalised advantage estimation.

A learner chooses how its episodes are judged; see ``Learner.estimate``. ``Advantages`` holds the usual choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from metarl.advantages.baseline import baseline_features, discounted_sums, fitted_values, left_at_the_end
from metarl.objectives import masked_mean
from metarl.types import Rollout, State, joined

Baseline = Literal["auto", "linear", "time", "none"]
LARGEST_OBSERVATION = 512
"""Numbers in an observation above which ``auto`` fits a baseline of time only: the cost grows with their cube."""
SMALLEST = 1e-4
"""Standard deviation of advantages below which they count as rounding, in units of the returns' root mean square."""


@dataclass(frozen=True)
class Advantages:
    """Options for estimating advantages."""

    discount: float = 0.99
    """Discount factor gamma."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation (GAE). With 1, the advantage is reward-to-go minus the baseline."""
    baseline: Baseline = "auto"
    """What is subtracted. linear: a least-squares fit, for each task, of observations, their squares and time. time: of
    time only. none: nothing. auto: linear, but time for pictures and other observations of more than 512 numbers."""

    def __post_init__(self) -> None:
        if not (0 <= self.discount <= 1 and 0 <= self.gae_lambda <= 1):
            raise ValueError(f"discount and gae_lambda must be in [0, 1], not {self.discount} and {self.gae_lambda}")
        if self.baseline not in get_args(Baseline):
            raise ValueError(f"baseline={self.baseline!r}: expected one of {', '.join(get_args(Baseline))}")

    def of_episodes(self, state: State, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Add advantages to rollouts, each judged by itself; a ``Learner.estimate``.

        The baseline of an episode is fitted to the other episodes of its task, so that it does not swallow what the
        episode's own actions earned. Advantages are normalised per task. The horizon ends the task: there is no value
        beyond it, as in the MAML paper. An episode that its environment truncated earlier is worth the baseline's value
        of its last observation beyond its end.
        """
        return [
            replace(rollout, advantages=advantages, explained_variance=explained)
            for rollout in rollouts
            for advantages, explained in [self._estimate(rollout)]
        ]

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
        closed: dict[str, Any] = {name: without_gaps(getattr(trial, name)) for name in moved}
        whole = replace(trial, **closed)
        # Only the last episode can be cut before its horizon with nothing after it.
        cut = _cut_short(rollouts[-1])
        advantages, explained = self._estimate(whole, cut)
        advantages = torch.zeros_like(advantages).scatter(2, order, advantages)
        parts = torch.split(advantages, [rollout.mask.shape[2] for rollout in rollouts], dim=2)
        return [
            replace(rollout, advantages=part, explained_variance=explained)
            for rollout, part in zip(rollouts, parts, strict=True)
        ]

    def _estimate(self, rollout: Rollout, cut: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return normalised advantages ``[task, episode, time]``, and what ``explained_variance`` says of the baseline.

        By default, ``cut`` is that of the rollout.
        """
        cut = _cut_short(rollout) if cut is None else cut
        rewards, mask = (values.double() for values in (rollout.rewards, rollout.mask))
        returns = discounted_sums(rewards * mask, self.discount)
        features, explained = self._features(rollout), None
        if features is None:
            values = torch.zeros_like(functional.pad(returns, (0, 1)))
        else:
            left = left_at_the_end(cut, mask, self.discount)
            values = fitted_values(features, returns, mask, left)
            explained = explained_variance(returns + left * values[:, :, -1:], values[:, :, :-1], mask)
            explained = explained.to(rollout.rewards.dtype)
        last_values = values[:, :, -1] * cut
        advantages = gae(rewards, values[:, :, :-1], last_values, mask, self.discount, self.gae_lambda)
        size = masked_mean(returns.square(), mask).sqrt()
        return normalise(advantages, mask, SMALLEST * size).to(rollout.rewards.dtype), explained

    def _features(self, rollout: Rollout) -> Tensor | None:
        """Return what the baseline reads, before each step and after the last one; None where there is none."""
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
        return baseline_features(seen, torch.minimum(time, rollout.mask.sum(2, keepdim=True)), self.discount)


def _cut_short(rollout: Rollout) -> Tensor:
    """Return where the environment truncated an episode before the horizon, ``[task, episode]``, 0 or 1."""
    # The horizon itself ends the task.
    return rollout.truncated[:, :, :-1].any(2).to(rollout.rewards.dtype)


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


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return the share of the returns' variance that values explain, for each task: ``[task]``.

    It is 1 - var(returns - values) / var(returns) over the valid steps of all the task's episodes: 1 where each return
    is what was expected, 0 where nothing better than a constant was, and below 0 where a constant would have been
    better. Discounted returns-to-go ``[task, episode, time]`` have the values of the last observation beyond them where
    an episode was cut. nan for a task whose returns do not vary.
    """
    size = masked_mean(returns.square(), mask).sqrt()
    unexplained, all_of_it = _variance(returns - values, mask), _variance(returns, mask)
    return torch.where(all_of_it > (SMALLEST * size).square(), 1 - unexplained / all_of_it, torch.nan)


def _variance(values: Tensor, mask: Tensor) -> Tensor:
    """Return the variance of each task's valid steps, ``[task]``."""
    return masked_mean((values - masked_mean(values, mask).reshape(-1, 1, 1)).square(), mask)


def normalise(advantages: Tensor, mask: Tensor, smallest: Tensor) -> Tensor:
    """Shift and scale each task's valid advantages to mean 0 and standard deviation 1: ``[task, episode, time]``.

    A standard deviation below ``smallest`` ``[task]`` is taken for that: where all that was done earned the same, what
    is left is rounding, and stays small.
    """
    mean = masked_mean(advantages, mask).reshape(-1, 1, 1)
    centred = (advantages - mean) * mask
    std = masked_mean(centred.square(), mask).sqrt().maximum(smallest).reshape(-1, 1, 1)
    return centred / std.clamp_min(torch.finfo(std.dtype).tiny)
