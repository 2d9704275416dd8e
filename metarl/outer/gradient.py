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
    """Adam on the meta-loss (arXiv 1412.6980); for control that is a policy gradient through adaptation."""

    learning_rate: float = 1e-3
    """Step size."""
    epochs: int = 1
    """Steps on one iteration's data; several of them want a meta-loss that is clipped, such as RL^2's (PPO)."""
    chunks: int | None = None
    """Groups of tasks handled one after another; by default as many as keep a group in a CPU's caches, 1 on a GPU."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "epochs")
        require_chunks(self.chunks)

    def check(self, learner: Learner) -> None:
        """Raise ValueError for meta-parameters of which some are running averages."""
        if learner.averages:
            raise ValueError(
                "the meta-parameters hold running averages (Reptile's --algorithm.carry-moments), which adam would "
                "not average: use sgd, or --algorithm.no-carry-moments"
            )

    def init(self, params: Params) -> dict[str, Any]:
        """Adam's moments, all zero."""
        return adam_state(params)

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take ``epochs`` steps; the metrics are those before the first.

        Raises:
            ValueError: chunks exceeds the number of tasks, or the meta-parameters hold running averages.
        """
        self.check(learner)
        moved, moments, told = params, state, dict[str, Tensor | float]()
        for _ in range(self.epochs):
            gradient, metrics = meta_gradient(learner, moved, experience, self.chunks)
            told = told or metrics | {"outer/gradient_norm": gradient.norm()}
            if not torch.isfinite(gradient).all():
                return Update(params, state, told, finite=False)
            moved, moments = adam_step(moved, moments, gradient, self.learning_rate)
        return Update(moved, moments, told)


@dataclass(frozen=True)
class SGD:
    """Gradient descent on the meta-loss; with Reptile, a step towards the mean of the adapted parameters."""

    learning_rate: float = 1.0
    """Step size; with Reptile, 1 goes all the way."""
    anneal: bool = True
    """Let the step size fall linearly, to 0 at the end of training."""
    chunks: int | None = None
    """Groups of tasks handled one after another; by default as many as keep a group in a CPU's caches, 1 on a GPU."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate")
        require_chunks(self.chunks)

    def init(self, params: Params) -> dict[str, Any]:
        """Nothing is kept from one update to the next."""
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
        told = {"outer/gradient_norm": gradient.norm(), "outer/step_size": step_size}
        return Update(moved, state, metrics | told)


def meta_gradient(
    learner: Learner, params: Params, experience: Experience, chunks: int | None = None
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Return the gradient of the mean meta-loss, and what to log.

    Args:
        learner: The learner whose ``meta_loss`` is differentiated.
        params: Where: the meta-parameters ``[*shape]``, which are not written to.
        experience: The tasks' data. The meta-loss is a mean over tasks, and so is the gradient.
        chunks: Groups of tasks handled one after another, at most as many as tasks; they change nothing but the memory
            that is needed, the speed, and rounding. By default as many as keep a group in a CPU's caches, 1 on a GPU.

    Returns:
        The gradient as one flat vector, in the order of ``params`` (``metarl.numerics.flatten`` joins parameters so,
        ``unflatten`` takes them apart); it may be nan or infinite. And the means of the meta-loss's metrics, with
        ``outer/loss``.

    Raises:
        ValueError: chunks is less than 1, or more than the tasks.
    """
    parts = adapted.split(experience, chunks)
    shares = [len(part.descriptors) / len(experience.descriptors) for part in parts]
    metrics: dict[str, Tensor | float] = {}

    def loss(candidate: Params, index: int) -> Tensor:
        mean, told = learner.meta_loss(candidate, parts[index])
        for name, value in {"outer/loss": mean.detach(), **told}.items():
            metrics[name] = metrics.get(name, 0.0) + shares[index] * value
        return mean * len(parts[index].descriptors)

    return adapted.mean_gradient(loss, params, parts), metrics
