"""A Gaussian squashed by tanh into the bounds of the actions (arXiv 1801.01290, appendix C).

Its outputs are means and log standard deviations before squashing. A bijection changes neither divergence nor Fisher
matrix, so both are the Gaussian's. The ``mode`` is the squashed mean: the median, which actions have as their centre.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)
from torch.nn import functional

from metarl.distributions import gaussian
from metarl.distributions.laws import Actions, Sizes

ACTIONS: Actions = "continuous"
BOUNDED = True
head, log_stds, action_shape = gaussian.head, gaussian.log_stds, gaussian.action_shape
fill_noise, kl, fisher_product = gaussian.fill_noise, gaussian.kl, gaussian.fisher_product


def _squashed(of: Sizes, values: Tensor) -> Tensor:
    """Return ``values`` squashed into the bounds."""
    # Where tanh rounds to 1, no number could be told from the action any more; there, it stops one step before.
    end = 1 - torch.finfo(values.dtype).eps
    low, high = of.bounds
    return (low + high) / 2 + (high - low) / 2 * values.tanh().clamp(-end, end)


def _unsquashed(of: Sizes, actions: Tensor) -> Tensor:
    low, high = of.bounds
    end = 1 - torch.finfo(actions.dtype).eps
    return ((actions - (low + high) / 2) / ((high - low) / 2)).clamp(-end, end).atanh()


def act(of: Sizes, outputs: Tensor, noise: Tensor) -> Tensor:
    """Return tanh(mean + std * noise), scaled to the bounds."""
    return _squashed(of, gaussian.act(of, outputs, noise))


def mode(of: Sizes, outputs: Tensor) -> Tensor:
    """Return the squashed means."""
    return _squashed(of, gaussian.mode(of, outputs))


def always(of: Sizes, actions: Tensor) -> Tensor:
    """Return means that become these actions, with standard deviations of 0."""
    return gaussian.always(of, _unsquashed(of, actions))


def log_prob(of: Sizes, outputs: Tensor, actions: Tensor) -> Tensor:
    """Return the Gaussian's log-density minus the logarithm of the slope of what squashes it."""
    values = _unsquashed(of, actions)
    return gaussian.log_prob(of, outputs, values) - _log_slope(of, values)


def drawn_log_prob(of: Sizes, outputs: Tensor, actions: Tensor) -> Tensor:
    """Return the log-density, and 0 where all standard deviations are 0."""
    return log_prob(of, outputs, actions).masked_fill(outputs.chunk(2, dim=-1)[1].isneginf().all(-1), 0)


def _log_slope(of: Sizes, values: Tensor) -> Tensor:
    """Return the sum of log(half the range * (1 - tanh(values)^2)), in a form that does not cancel."""
    low, high = of.bounds
    slopes = 2 * (math.log(2) - values - functional.softplus(-2 * values)) + math.log((high - low) / 2)
    return slopes.sum(-1)


def encode(of: Sizes, actions: Tensor, dtype: Any) -> Tensor:
    """Return actions as they are."""
    return actions


def as_torch(of: Sizes, outputs: Tensor) -> Distribution:
    """Return a ``TransformedDistribution``, which has ``sample``, ``log_prob``, and a ``mode`` as here.

    Its mean and its entropy have no closed form.
    """
    return _Squashed(of, outputs)


class _Squashed(TransformedDistribution):
    def __init__(self, of: Sizes, outputs: Tensor) -> None:
        self._mode = mode(of, outputs)
        mean, log_std = outputs.chunk(2, dim=-1)
        low, high = of.bounds
        transforms = [TanhTransform(cache_size=1), AffineTransform((low + high) / 2, (high - low) / 2)]
        base = Independent(Normal(mean, log_std.exp(), validate_args=True), 1, validate_args=True)
        super().__init__(base, transforms, validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The squashed mean."""
        return self._mode
