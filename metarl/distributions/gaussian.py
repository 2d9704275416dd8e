"""A Gaussian with a diagonal covariance. Its outputs are means, then log standard deviations."""

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, Normal

from metarl.distributions.laws import Actions, Sizes

ACTIONS: Actions = "continuous"
BOUNDED = False
LOG_TWO_PI = math.log(2 * math.pi)


def head(of: Sizes) -> int:
    """Return the number of means."""
    return of.sizes[0]


def log_stds(of: Sizes) -> int:
    """Return the number of log standard deviations."""
    return of.sizes[0]


def action_shape(of: Sizes) -> tuple[int, ...]:
    """Return ``(dimensions,)``."""
    return of.sizes


def fill_noise(values: Tensor, generator: Generator) -> Tensor:
    """Draw standard normal numbers."""
    return values.normal_(generator=generator)


def act(of: Sizes, outputs: Tensor, noise: Tensor) -> Tensor:
    """Return mean + std * noise: the reparameterised Gaussian."""
    mean, log_std = outputs.chunk(2, dim=-1)
    return torch.addcmul(mean, noise, log_std.exp())


def mode(of: Sizes, outputs: Tensor) -> Tensor:
    """Return the means."""
    return outputs.chunk(2, dim=-1)[0]


def always(of: Sizes, actions: Tensor) -> Tensor:
    """Return actions as means, with standard deviations of 0."""
    return torch.cat([actions, torch.full_like(actions, -torch.inf)], dim=-1)


def log_prob(of: Sizes, outputs: Tensor, actions: Tensor) -> Tensor:
    """Return the log-density, summed over dimensions."""
    mean, log_std = outputs.chunk(2, dim=-1)
    # log N(a; mean, std) = -(z^2 / 2 + log std + log(2 pi) / 2) for each dimension, with z = (a - mean) / std.
    deviation = (actions - mean) * (-log_std).exp()
    return -(0.5 * deviation.square() + log_std).sum(-1) - 0.5 * LOG_TWO_PI * mean.shape[-1]


def drawn_log_prob(of: Sizes, outputs: Tensor, actions: Tensor) -> Tensor:
    """Return the log-density, and 0 where all standard deviations are 0: the formula gives nan there."""
    return log_prob(of, outputs, actions).masked_fill(outputs.chunk(2, dim=-1)[1].isneginf().all(-1), 0)


def kl(of: Sizes, old: Tensor, new: Tensor) -> Tensor:
    """Return the sum over dimensions of log(s' / s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2; old m, s, new m', s'."""
    old_mean, old_log_std = old.chunk(2, dim=-1)
    new_mean, new_log_std = new.chunk(2, dim=-1)
    variance = (2 * old_log_std).exp() + (old_mean - new_mean).square()
    return (new_log_std - old_log_std + 0.5 * variance * (-2 * new_log_std).exp() - 0.5).sum(-1)


def fisher_product(of: Sizes, outputs: Tensor, tangents: Tensor) -> Tensor:
    """Multiply by the Fisher matrix, which is diagonal: 1 / std^2 for a mean, 2 for a log standard deviation."""
    mean_tangents, log_std_tangents = tangents.chunk(2, dim=-1)
    log_std = outputs.chunk(2, dim=-1)[1]
    return torch.cat([mean_tangents * (-2 * log_std).exp(), 2 * log_std_tangents], dim=-1)


def encode(of: Sizes, actions: Tensor, dtype: Any) -> Tensor:
    """Return actions as they are."""
    return actions


def as_torch(of: Sizes, outputs: Tensor) -> Distribution:
    """Return ``Independent(Normal)`` over dimensions."""
    mean, log_std = outputs.chunk(2, dim=-1)
    return Independent(Normal(mean, log_std.exp(), validate_args=True), 1, validate_args=True)
