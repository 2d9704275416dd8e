"""What episodes before an adaptation are credited with for the returns after it (E-MAML)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metarl.advantages.baseline import discounted_sums
from metarl.advantages.estimates import SMALLEST
from metarl.objectives import masked_mean
from metarl.types import Rollout


def exploration_credit(support: Rollout, query: Rollout, discount: float) -> Tensor:
    """Return the credit of each support episode for what the adapted policy earned, ``[task, episode]``.

    It is the mean discounted return of the query episodes, less that of the other support episodes. These do not depend
    on the episode that is credited, so the mean of the credited scores stays what it is (Stadie et al., 2018, arXiv
    1803.01118), and varies less.

    The unit is about that of the query's surrogate, a mean over steps of normalised advantages: credit is divided by
    the mean length of the query episodes, and by the standard deviation of the returns-to-go of support and query
    together. That of the query alone would vanish where the adapted policy has become sure, and credit would know no
    bound. A single support episode has nothing taken off, and the unit is then the root mean square.
    """
    after, before = (discounted_sums((part.rewards * part.mask).double(), discount) for part in (query, support))
    first = before[:, :, 0]
    others = (first.sum(1, keepdim=True) - first) / max(first.shape[1] - 1, 1)
    improvement = after[:, :, 0].mean(1, keepdim=True) - others
    steps = query.mask.double().sum(2).mean(1, keepdim=True)
    spread = _spread([before, after], [support, query], about_mean=first.shape[1] > 1)
    return (improvement / (steps * spread)).to(query.rewards.dtype)


def _spread(returns: Sequence[Tensor], rollouts: Sequence[Rollout], about_mean: bool) -> Tensor:
    """Return the standard deviation of each task's returns-to-go ``[task, 1]`` over the valid steps of all rollouts.

    Or their root mean square, if not ``about_mean``.
    """
    values = torch.cat([part.flatten(1) for part in returns], dim=1).unsqueeze(1)
    mask = torch.cat([part.mask.flatten(1) for part in rollouts], dim=1).unsqueeze(1).to(values.dtype)
    size = masked_mean(values.square(), mask).sqrt()
    centred = values - masked_mean(values, mask).reshape(-1, 1, 1)
    # Where all that was done earned the same, what is left is rounding, and stays small.
    deviation = masked_mean(centred.square(), mask).sqrt().maximum(SMALLEST * size)
    return (deviation if about_mean else size).clamp_min(torch.finfo(values.dtype).tiny).unsqueeze(1)
