"""A distribution of one's own: Laplace's, whose outputs are medians and the logarithms of the scales."""

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import Independent, Laplace

from metarl.distributions import gaussian

ACTIONS, BOUNDED = "continuous", False
head, log_stds, action_shape, encode = gaussian.head, gaussian.log_stds, gaussian.action_shape, gaussian.encode
mode, always = gaussian.mode, gaussian.always


def fill_noise(values: Tensor, generator: Generator) -> Tensor:
    uniform = values.uniform_(-1, 1, generator=generator)
    return uniform.copy_(-uniform.sign() * (-uniform.abs()).log1p())


def act(of: Any, outputs: Tensor, noise: Tensor) -> Tensor:
    return gaussian.act(of, outputs, noise)


def log_prob(of: Any, outputs: Tensor, actions: Tensor) -> Tensor:
    median, log_scale = outputs.chunk(2, dim=-1)
    return -((actions - median).abs() * (-log_scale).exp() + log_scale + math.log(2)).sum(-1)


def drawn_log_prob(of: Any, outputs: Tensor, actions: Tensor) -> Tensor:
    return log_prob(of, outputs, actions).masked_fill(outputs.chunk(2, dim=-1)[1].isneginf().all(-1), 0)


def kl(of: Any, old: Tensor, new: Tensor) -> Tensor:
    (median, log_scale), (other, log_other) = old.chunk(2, dim=-1), new.chunk(2, dim=-1)
    distance = (median - other).abs() * (-log_scale).exp()
    return (log_other - log_scale + (log_scale - log_other).exp() * (distance + (-distance).exp()) - 1).sum(-1)


def fisher_product(of: Any, outputs: Tensor, tangents: Tensor) -> Tensor:
    moved, scaled = tangents.chunk(2, dim=-1)
    return torch.cat([moved * (-2 * outputs.chunk(2, dim=-1)[1]).exp(), scaled], dim=-1)


def as_torch(of: Any, outputs: Tensor) -> Independent:
    median, log_scale = outputs.chunk(2, dim=-1)
    return Independent(Laplace(median, log_scale.exp(), validate_args=True), 1)
