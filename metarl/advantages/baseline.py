"""A linear baseline: the returns of each task by least squares, each episode's from the other episodes."""

import torch
from torch import Tensor

RIDGES = (1e-8, 1e-3, 1e-1, 10.0, 1e6)
"""Strengths of the penalty on what is observed, in units of a column's variance. The first is next to none; the last
one leaves time only."""
TIME_RIDGE = 1e-11
"""Strength of the penalty on the columns of time: only that equations can be solved."""
TIME_COLUMNS = 5
WIDEST, ENOUGH = 128, 10
"""Features above which episodes are left out one by one only where there are fewer rows than so many for each feature:
it takes a solution for each."""


def discounted_sums(rewards: Tensor, discount: float) -> Tensor:
    """Return the discounted reward-to-go along the last axis, which is time."""
    # Sums over 1, 2, 4, ... steps: few operations, where a loop over time would start some for every step.
    sums, steps = rewards, 1
    while steps < rewards.shape[-1]:
        following = torch.cat([sums[..., steps:], torch.zeros_like(sums[..., :steps])], dim=-1)
        sums, steps = sums + discount**steps * following, 2 * steps
    return sums


def baseline_features(observations: Tensor, time: Tensor, discount: float) -> Tensor:
    """Return the features of the linear baseline, ``[task, episode, time, 2 * size + 5]`` in float64.

    They are observations clipped to [-10, 10], their squares, powers of time / 100, and 1 (Duan et al., arXiv
    1604.06778). The last one is what a reward of 1 at every step until the horizon is worth: with it, constant rewards
    leave nothing unexplained.

    Args:
        observations: ``[task, episode, time, *input_shape]``, the one after the last step included.
        time: Steps since the beginning, ``[..., time]``.
        discount: Discount factor gamma.
    """
    states = observations.flatten(3).double().clamp(-10, 10)
    shape = states.shape[:3]
    step = (time.double() / 100).expand(shape).unsqueeze(-1)
    horizon = shape[2] - 1
    worth = discounted_sums(torch.ones(horizon, dtype=torch.float64, device=states.device), discount)
    worth = torch.cat([worth, worth.new_zeros(1)])[time.long().expand(shape)].unsqueeze(-1)
    return torch.cat([states, states.square(), step, step.square(), step**3, torch.ones_like(step), worth], dim=-1)


def left_at_the_end(cut: Tensor, mask: Tensor, discount: float) -> Tensor:
    """Return how much a value after the last step counts at each step, ``[task, episode, time]``.

    It is gamma^(steps to the end) where an episode was ``cut`` ``[task, episode]``, and 0 where it ended.
    """
    steps = torch.arange(mask.shape[2], device=mask.device, dtype=mask.dtype)
    return cut.unsqueeze(-1).to(mask.dtype) * discount ** (mask.sum(2, keepdim=True) - steps).clamp_min(0) * mask


def fitted_values(features: Tensor, returns: Tensor, mask: Tensor, left: Tensor) -> Tensor:
    """Return the baseline's values before each step and after the last, ``[task, episode, time + 1]``, in float64.

    The return of a step is V(s_t) for an episode that ended. Where it was cut, what came later is missing, so it is
    V(s_t) - gamma^(T - t) V(s_T). Both are linear in the weights, which solve all these equations at once.

    The values of an episode come from the other episodes, as far as there are any. So they do not depend on what
    happened in it, and advantages keep their expectation. The strength of the penalty is the one that predicts best
    what was left out: however many steps there are, an episode unlike the others (a fall, say) may lie far outside of
    what they have seen, and next to no penalty then says anything. In one of twelve tasks of a half-cheetah, that made
    values worse than a constant (explained variance -2 to -55, and 0.7 to 0.99 with the penalty).

    Args:
        features: ``[task, episode, time + 1, feature]``.
        returns: Discounted rewards-to-go ``[task, episode, time]``.
        mask: ``[task, episode, time]``, 1 while an episode runs.
        left: What ``left_at_the_end`` returns.
    """
    rows = features[:, :, :-1] * mask.unsqueeze(-1)
    # On a GPU, looking would wait for the device. Zeros change nothing.
    if left.device.type != "cpu" or left.any():
        rows = rows - left.unsqueeze(-1) * features[:, :, -1:]
    tasks, episodes, time, width = rows.shape
    scales = _scales(rows, mask)
    if episodes == 1 or (width > WIDEST and episodes * time >= ENOUGH * width):
        gram, target = _normal_equations(rows.flatten(1, 2), (returns * mask).flatten(1))
        return torch.einsum("teif,tf->tei", features, _solved(gram, target, _penalty(scales, RIDGES[0])))
    of_episodes = _normal_equations(rows.flatten(0, 1), (returns * mask).flatten(0, 1))
    grams, targets = (of.reshape(tasks, episodes, *of.shape[1:]) for of in of_episodes)
    others = grams.sum(1, keepdim=True) - grams, targets.sum(1, keepdim=True) - targets
    penalties = torch.stack([_penalty(scales, ridge) for ridge in RIDGES])
    weights = _solved(*others, penalties.unsqueeze(2))  # [strength, task, episode, feature]
    # How far what was left out is from what is said of it: [task, episode, time, strength].
    errors = (rows @ weights.permute(1, 2, 3, 0) - returns.unsqueeze(-1)) * mask.unsqueeze(-1)
    best = errors.square().sum((1, 2)).argmin(1)
    weights = weights[best, torch.arange(tasks, device=best.device)]
    return (features @ weights.unsqueeze(-1)).squeeze(-1)


def _scales(rows: Tensor, mask: Tensor) -> Tensor:
    """Return sums of squares of each task's columns, ``[task, feature]``: of what is observed, about the mean."""
    count = mask.sum((1, 2)).clamp_min(1).unsqueeze(-1)
    squares = rows.square().sum((1, 2))
    # Of a column that hardly varies, what is left is rounding.
    about_mean = (squares - rows.sum((1, 2)).square() / count).maximum(1e-12 * squares)
    return torch.cat([about_mean[:, :-TIME_COLUMNS], squares[:, -TIME_COLUMNS:]], dim=1)


def _penalty(scales: Tensor, ridge: float) -> Tensor:
    """Return the diagonal of the penalty, ``[task, feature]``. Columns of zeros get a weight of 0."""
    strengths = torch.full_like(scales, ridge)
    strengths[:, -TIME_COLUMNS:] = TIME_RIDGE
    return torch.where(scales > 0, strengths * scales, 1.0)


def _normal_equations(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return X'X ``[batch, feature, feature]`` and X'y ``[batch, feature]`` of rows X and targets y."""
    return rows.mT @ rows, (rows.mT @ targets.unsqueeze(-1)).squeeze(-1)


def _solved(gram: Tensor, target: Tensor, penalty: Tensor) -> Tensor:
    """Solve (X'X + D) w = X'y for each of a batch, where D is diagonal: ``[..., feature]``. Batches are broadcast.

    The penalty of one grows until its equations can be solved.
    """
    diagonal = torch.diag_embed(penalty)
    for _ in range(6):
        factor, failed = torch.linalg.cholesky_ex(gram + diagonal)
        # On a GPU, checking for success would wait for the device. Solving again gives the same result, and is faster.
        if gram.device.type == "cpu" and not failed.any():
            break
        diagonal = torch.where(failed.unsqueeze(-1).unsqueeze(-1) > 0, 30 * diagonal, diagonal)
    # torch.cholesky_solve does the same, but on a GPU it may wait for the device.
    half = torch.linalg.solve_triangular(factor, target.unsqueeze(-1), upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution.squeeze(-1)
