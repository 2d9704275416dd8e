"""SVGD written pair by pair, as its paper has it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from support import synthetic
from torch import Tensor

from metarl.algorithms.gradient.bmaml import BMAML
from metarl.networks.options import Network
from metarl.types import Learner, Params, Spec

SMALL = Network(hidden=(5,), activation="tanh")


def slow_step(
    rows: Tensor, log_posterior: Callable[[int, Tensor], Tensor], temperature: float, step_size: float
) -> Tensor:
    """A step (arXiv 1806.03836, eq. 1) on particles ``[particle, number]``; posteriors may depend on whose they are."""
    count = len(rows)
    distances = sorted(float((rows[i] - rows[j]).square().sum()) for i in range(count) for j in range(i))
    middle = len(distances) // 2
    median = distances[middle] if len(distances) % 2 else (distances[middle - 1] + distances[middle]) / 2
    variance = median / (2 * math.log(count + 1))
    moved = []
    for row in rows:
        way = torch.zeros_like(row)
        for place, other in enumerate(rows):
            other = other.clone().requires_grad_()
            weight = (-(other - row).square().sum() / (2 * variance)).exp()
            (push,) = torch.autograd.grad(weight, other, retain_graph=True)
            (slope,) = torch.autograd.grad(log_posterior(place, other), other)
            way += weight.detach() * slope + push
        moved.append(row + step_size * temperature * way / count)
    return torch.stack(moved)


def built(spec: Spec, **options: Any) -> tuple[Learner, Params]:
    """A small learner with particles, and parameters off their start."""
    learner = BMAML(**{"network": SMALL, "particles": 3, "step_size": 0.3, **options}).build(spec)
    return learner, synthetic.initial(learner)
