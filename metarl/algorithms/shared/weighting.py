"""How the losses of several tasks, learned by one network, are put together.

Which of several tasks a row is, its one-hot descriptor tells. The loss of a task with another descriptor is nan, and so
is its gradient, which no update takes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from metarl.objectives import told_apart
from metarl.speed import send
from metarl.types import Params

Weighting = Literal["equal", "fixed", "uncertainty", "pcgrad", "gradnorm"]


def fixed(losses: Tensor, descriptors: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Return losses ``[task]`` times the weight of each task; nan where the descriptor is not one-hot."""
    return losses * _of_each(_each(weights, losses), descriptors)


def uncertain(losses: Tensor, descriptors: Tensor, log_variances: Tensor, squared: tuple[bool, ...]) -> Tensor:
    """Return minus the log-likelihoods ``[task]`` of tasks whose noise is learned (Kendall et al., arXiv 1705.07115).

    But for a constant, ``loss / (2 variance) + log(variance) / 2`` for squared errors, and for cross-entropies, by
    their approximation, ``loss / variance + log(variance) / 2``. It is smallest where the variance is the mean squared
    error, or twice the cross-entropy.

    Args:
        losses: ``[task]``, means over items.
        descriptors: ``[task, descriptor_size]``, one-hot; the loss of a task is nan where it is not.
        log_variances: ``[descriptor_size]``.
        squared: Whether the losses are squared errors, for each number of the descriptor.
    """
    own = _of_each(log_variances, descriptors)
    shares = _of_each(_each([0.5 if one else 1.0 for one in squared], losses), descriptors)
    return losses * (-own).exp() * shares + 0.5 * own


def balanced(logits: Tensor, descriptors: Tensor, norms: Tensor, rates: Tensor, force: float) -> tuple[Tensor, Tensor]:
    """Return the weight of each task by GradNorm, and the loss ``[task]`` by which the weights are learned.

    GradNorm (Chen et al., arXiv 1711.02257, algorithm 1): the norms of the tasks' weighted gradients are to be equal,
    but larger for tasks that learn slowly. Weights sum to the number of kinds of tasks, here by a softmax of ``logits``
    instead of a division after each step.

    Args:
        logits: ``[descriptor_size]``; weights are a softmax of them times their number.
        descriptors: ``[task, descriptor_size]``, one-hot; the weight of a task is nan where it is not.
        norms: ``[task]``, of the gradients of the tasks' losses without weights.
        rates: ``[task]``, the losses as shares of the losses at the start (the paper's inverse training rates).
        force: How strongly slow tasks are favoured (the paper's alpha).

    Returns:
        Weights ``[task]`` without a graph, and losses whose gradient is in ``logits`` only.
    """
    weights = _of_each(logits.softmax(0) * len(logits), descriptors)
    found = weights * norms.detach()
    wanted = (found.mean() * (rates / rates.mean()) ** force).detach()
    return weights.detach(), (found - wanted).abs()


def without_conflicts(gradients: Tensor) -> Tensor:
    """Return the gradients ``[task, number]`` without what contradicts other tasks'.

    PCGrad (Yu et al., arXiv 2001.06782, algorithm 1): from each gradient, its projection on every other one that points
    against it is taken off, one after another. The paper's order is random. Here, those that point most against it come
    first, so that the order of the tasks does not matter.
    """
    products = gradients @ gradients.mT
    squares = products.diagonal().clamp_min(torch.finfo(products.dtype).tiny)
    cosines = products / (squares.sqrt().unsqueeze(0) * squares.sqrt().unsqueeze(1))
    order = (cosines + 4 * torch.eye(len(cosines), dtype=cosines.dtype, device=cosines.device)).argsort(dim=1)
    # Each stays a mixture of the gradients as they were, so products of their coefficients are all that is needed.
    mixtures = torch.eye(len(gradients), dtype=products.dtype, device=products.device)
    for others in order[:, :-1].unbind(1):
        against = (mixtures * products[others]).sum(1).clamp_max(0)
        mixtures = mixtures.scatter_add(1, others.unsqueeze(1), -(against / squares[others]).unsqueeze(1))
    return mixtures @ gradients


def following(losses: Tensor, params: Params, wanted: Tensor, found: Tensor) -> Tensor:
    """Return the same losses ``[task]`` with other gradients: ``wanted`` instead of ``found``, ``[task, number]``."""
    numbers = torch.cat([value.reshape(-1) for value in params.values()])
    return losses + (wanted - found) @ (numbers - numbers.detach())


def _of_each(values: Tensor, descriptors: Tensor) -> Tensor:
    """Return the value ``[task]`` at the 1 of each descriptor, of ``[descriptor_size]``; nan if that is not one-hot."""
    which, told = told_apart(descriptors)
    return values[which] * torch.where(told, 1.0, torch.nan)


def _each(values: Sequence[float], like: Tensor) -> Tensor:
    """Return constants ``[descriptor_size]`` as a tensor, without waiting for a GPU."""
    return send(torch.tensor(values, dtype=like.dtype), like.device)
