"""The meta-gradient: the objective of first-order outer updates."""

from torch import Tensor

from metarl.outer import adapted
from metarl.types import Experience, Learner, Params


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
