"""Adam and gradient descent on the meta-loss, for any learner."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarl.numerics import adam_state, adam_step, flatten, unflatten
from metarl.outer import adapted
from metarl.outer.options import require_chunks, require_positive
from metarl.types import Experience, Learner, Params, Update


@dataclass(frozen=True)
class Adam:
    """Adam on the meta-loss (arXiv 1412.6980). For control, this is a policy gradient through adaptation."""

    learning_rate: float = 1e-3
    """Step size."""
    epochs: int = 1
    """Gradient steps on one iteration's data. Use more than 1 only with a clipped meta-loss, such as RL^2's (PPO)."""
    chunks: int | None = None
    """Number of groups of tasks, processed one after another. By default, groups fit a CPU's caches; 1 on a GPU."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "epochs")
        require_chunks(self.chunks)

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner with running averages among its meta-parameters."""
        if learner.averages:
            raise ValueError(
                "the meta-parameters hold running averages (Reptile's --algorithm.carry-moments), which adam would "
                "not average: use sgd, or --algorithm.no-carry-moments"
            )

    def init(self, params: Params) -> dict[str, Any]:
        """Return Adam's moments, all zero."""
        return adam_state(params)

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take ``epochs`` steps. The metrics are those before the first step.

        Raises:
            ValueError: chunks exceeds the number of tasks, or the meta-parameters hold running averages.
        """
        self.check(learner)
        moved, moments = params, state
        metrics: dict[str, Tensor | float] = {}
        for _ in range(self.epochs):
            gradient, epoch_metrics = meta_gradient(learner, moved, experience, self.chunks)
            metrics = metrics or epoch_metrics | {"outer/gradient_norm": gradient.norm()}
            if not torch.isfinite(gradient).all():
                return Update(params, state, metrics, finite=False)
            moved, moments = adam_step(moved, moments, gradient, self.learning_rate)
        return Update(moved, moments, metrics)


@dataclass(frozen=True)
class SGD:
    """Gradient descent on the meta-loss. With Reptile, a step towards the mean of the adapted parameters."""

    learning_rate: float = 1.0
    """Step size. With Reptile, 1 moves all the way to the mean of the adapted parameters."""
    anneal: bool = True
    """Decrease the step size linearly to 0 at the end of training."""
    chunks: int | None = None
    """Number of groups of tasks, processed one after another. By default, groups fit a CPU's caches; 1 on a GPU."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate")
        require_chunks(self.chunks)

    def init(self, params: Params) -> dict[str, Any]:
        """Return an empty state: SGD keeps nothing between updates."""
        return {}

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take one step.

        Raises:
            ValueError: chunks exceeds the number of tasks.
        """
        gradient, metrics = meta_gradient(learner, params, experience, self.chunks)
        if not torch.isfinite(gradient).all():
            return Update(params, state, metrics, finite=False)
        step_size = self.learning_rate * (1 - experience.progress if self.anneal else 1.0)
        moved = unflatten(flatten(params.values()) - step_size * gradient, params)
        metrics |= {"outer/gradient_norm": gradient.norm(), "outer/step_size": step_size}
        return Update(moved, state, metrics)


def meta_gradient(
    learner: Learner, params: Params, experience: Experience, chunks: int | None = None
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Return the gradient of the mean meta-loss, and metrics to log.

    Args:
        learner: The learner whose ``meta_loss`` is differentiated.
        params: The meta-parameters ``[*shape]``. They are not modified.
        experience: The tasks' data. The gradient is a mean over tasks.
        chunks: Number of groups of tasks, processed one after another; at most the number of tasks. It affects only
            memory, speed and rounding. By default, groups fit a CPU's caches; 1 on a GPU.

    Returns:
        The gradient as one flat vector, in the order of ``params`` (as ``metarl.numerics.flatten`` joins parameters;
        ``unflatten`` splits it again). It may be nan or infinite. And the means of the meta-loss's metrics, with
        ``outer/loss``.

    Raises:
        ValueError: chunks is less than 1, or more than the number of tasks.
    """
    parts = adapted.split(experience, chunks)
    shares = [len(part.descriptors) / len(experience.descriptors) for part in parts]
    metrics: dict[str, Tensor | float] = {}

    def loss(candidate: Params, index: int) -> Tensor:
        losses, part_metrics = learner.meta_loss(candidate, parts[index])
        for name, values in {"outer/loss": losses.detach(), **part_metrics}.items():
            metrics[name] = metrics.get(name, 0.0) + shares[index] * values.mean()
        return losses.sum()

    return adapted.mean_gradient(loss, params, parts), metrics
