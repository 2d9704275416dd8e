"""Stein variational gradient descent (SVGD; Liu and Wang, 2016, arXiv 1608.04471) on each task's particles."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from metarl.networks import Model, loss_gradient
from metarl.types import Params


def svgd(particles: Params, slopes: Params, temperature: float | Tensor, step_size: float) -> Params:
    """Take one step of SVGD on particles ``[task, particle, *shape]``, given the gradients of their energies.

    The energies are negative logarithms of the posterior, times the temperature: one for all tasks, or ``[task]``. The
    kernel is ``exp(-d^2 / 2 h^2)`` for particles at a distance d, with ``h^2 = median d^2 / (2 log(particles + 1))``
    over the pairs of particles.
    """
    count = next(iter(particles.values())).shape[1]
    rows = torch.cat([value.flatten(2) for value in particles.values()], dim=2)
    rows = rows - rows.mean(1, keepdim=True)  # only differences count, and small numbers are rounded less
    weights, variance = kernel(rows)
    # A particle is pushed away from the weighted mean of those near it.
    total = weights.sum(2)
    moved = {}
    for name, value in particles.items():
        own, shape = value.flatten(2), value.shape
        near = own - own.mean(1, keepdim=True)
        push = (near * total.unsqueeze(2) - weights @ near) / variance.reshape(-1, 1, 1)
        way = beside(temperature, push) * push - weights @ slopes[name].flatten(2)
        moved[name] = value + (step_size / count) * way.reshape(shape)
    return moved


def draw_particles(model: Model, count: int, generator: Generator) -> Params:
    """Return the parameters of ``count`` networks, ``[particle, *shape]``, each drawn by itself."""
    drawn = [model.init(generator) for _ in range(count)]
    return {name: torch.stack([params[name] for params in drawn]) for name in drawn[0]}


def energy_slopes(
    model: Model, particles: Params, inputs: Tensor, loss: Callable[[Tensor], Tensor], decay: float | Tensor
) -> Params:
    """Return the gradients of each particle's energy: of its loss, and of the prior, ``decay`` times the particle.

    Args:
        model: The network of each particle.
        particles: ``[task, particle, *shape]``.
        inputs: ``[task x particle, ..., *input_shape]``, each particle's own.
        loss: ``outputs [task x particle, ..., model_outputs] -> [task x particle]``.
        decay: The prior's precision, times the temperature: one for all tasks, or ``[task]``.
    """
    flat = {name: value.flatten(0, 1) for name, value in particles.items()}
    gradients = loss_gradient(model, flat, list(particles), inputs, loss, second_order=True)
    return {
        name: gradients[name].reshape(value.shape) + beside(decay, value) * value for name, value in particles.items()
    }


def beside(values: float | Tensor, like: Tensor) -> float | Tensor:
    """Reshape ``[task]`` to broadcast with ``[task, ...]``; leave a number as it is."""
    return values.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(values, Tensor) else values


def kernel(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel of each pair of rows, ``[task, particle, particle]``, and h^2 ``[task]``.

    ``rows`` are ``[task, particle, number]``. A single particle is only near to itself. Particles that coincide have no
    distance: a kernel of 1, and no push.
    """
    count = rows.shape[1]
    products = rows @ rows.mT
    norms = products.diagonal(dim1=1, dim2=2)
    apart = 1 - torch.eye(count, dtype=rows.dtype, device=rows.device)
    squared = ((norms.unsqueeze(1) + norms.unsqueeze(2) - 2 * products) * apart).clamp_min(0)
    if count == 1:
        return torch.ones_like(squared), rows.new_ones(len(rows))
    # The first of the sorted are the particles' distances to themselves; all others are there twice.
    ordered, pairs = squared.flatten(1).sort(dim=1).values[:, count:], count * (count - 1)
    median = (ordered[:, (pairs - 1) // 2] + ordered[:, pairs // 2]) / 2
    variance = (median / (2 * math.log(count + 1))).clamp_min(torch.finfo(rows.dtype).eps)
    return (-squared / (2 * variance.reshape(-1, 1, 1))).exp(), variance
