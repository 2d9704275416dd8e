"""From trajectories to rollouts: the linear feature baseline, and generalised advantages."""

from typing import NamedTuple

import torch
from torch import Tensor

from metarl.objectives import masked_mean
from metarl.types import Rollout

MOST_READ = 1000
"""Numbers of an observation that the linear baseline reads at most."""


class Trajectory(NamedTuple):
    """What the environments and the policy produced, before advantages are estimated."""

    observations: Tensor  # [task, episode, time, *input_shape]
    actions: Tensor  # [task, episode, time(, output_size)]
    log_probs: Tensor  # [task, episode, time]
    rewards: Tensor  # [task, episode, time]
    mask: Tensor  # [task, episode, time]
    last_observations: Tensor  # [task, episode, *input_shape] after the last step
    truncated: Tensor  # [task, episode] 1 where the environment cut the episode before the horizon


def with_advantages(trajectory: Trajectory, discount: float, gae_lambda: float) -> Rollout:
    """Fit the baseline to each task, estimate advantages, and normalise them per task.

    The horizon ends the task: there is no value beyond it, as in the MAML paper. An episode that its environment
    truncated earlier bootstraps from the baseline.
    """
    returns = discounted_sums((trajectory.rewards * trajectory.mask).double(), discount)
    final_step = trajectory.mask.sum(2, keepdim=True)
    observations = torch.cat([trajectory.observations, trajectory.last_observations.unsqueeze(2)], dim=2)
    # Time stops at the end of an episode, so that the state after its last step has the right time feature.
    time = torch.arange(observations.shape[2], device=observations.device, dtype=observations.dtype)
    features = baseline_features(observations, torch.minimum(time, final_step))
    weights = fit_baseline(features[:, :, :-1], returns, trajectory.mask)
    values = torch.einsum("teif,tf->tei", features, weights)
    last_values = values[:, :, -1] * trajectory.truncated
    advantages = gae(trajectory.rewards, values[:, :, :-1], last_values, trajectory.mask, discount, gae_lambda)
    return Rollout(*trajectory[:5], advantages=normalise(advantages, trajectory.mask).to(trajectory.rewards.dtype))


def trial_advantages(trial: Rollout, discount: float, gae_lambda: float) -> Tensor:
    """Return advantages over the episodes of a trial, joined along time: early episodes get credit for later rewards.

    Steps after the end of an episode are skipped and take no time: the value after an episode's last step, however it
    ended, is that of the next episode's first step. After the trial's last step there is none, as in
    ``with_advantages`` after the horizon.
    """
    # A stable sort moves the valid steps to the front, in order; the scatter below moves them back.
    order = trial.mask.argsort(dim=2, descending=True, stable=True)

    def without_gaps(values: Tensor) -> Tensor:
        index = order.reshape(*order.shape, *[1] * (values.ndim - 3))
        return values.gather(2, index.expand_as(values))

    whole = Rollout(*map(without_gaps, trial[:6]))
    never = torch.zeros_like(whole.rewards[:, :, 0])
    trajectory = Trajectory(*whole[:5], whole.observations[:, :, -1], never)
    advantages = with_advantages(trajectory, discount, gae_lambda).advantages
    return torch.zeros_like(advantages).scatter(2, order, advantages)


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
    1604.06778). Of observations that are too large for a matrix of their features, such as images, only time is left.
    """
    states = readable(observations.flatten(3)).double().clamp(-10, 10)
    step = (time.double() / 100).expand(states.shape[:3]).unsqueeze(-1)
    return torch.cat([states, states.square(), step, step.square(), step**3, torch.ones_like(step)], dim=-1)


def readable(states: Tensor) -> Tensor:
    """Return what the linear baseline reads of states ``[..., size]``: nothing, where there are more than 1000 numbers.

    Its normal equations hold (2 size + 4)^2 numbers for each task: 24 GB for an image of 96 x 96 x 3.
    """
    return states if states.shape[-1] <= MOST_READ else states[..., :0]


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
