"""The meta-gradient: the objective of first-order outer updates."""

from torch import Tensor

from metarl.outer import adapted
from metarl.speed import ranks
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
    found: list[dict[str, Tensor]] = []

    def loss(candidate: Params, index: int) -> Tensor:
        losses, part_metrics = learner.meta_loss(candidate, parts[index])
        found.append({"outer/loss": losses.detach(), **part_metrics})
        return losses.sum()

    return adapted.mean_gradient(loss, params, parts), _means(found)


def _means(parts: list[dict[str, Tensor]]) -> dict[str, Tensor | float]:
    """Return the means over all tasks of metrics ``[task]`` of each part, by name."""
    counts = [len(next(iter(part.values()))) for part in parts]
    if ranks.is_shared() or ranks.is_exact():
        names = dict.fromkeys(name for part in parts for name in part)
        summed = [tuple(part[name].sum() for name in names) for part in parts]
        totals, tasks = ranks.sums(summed, sum(counts), "the metrics")
        return {name: total / tasks for name, total in zip(names, totals, strict=True)}
    metrics: dict[str, Tensor | float] = {}
    for part, count in zip(parts, counts, strict=True):
        for name, values in part.items():
            metrics[name] = metrics.get(name, 0.0) + count / sum(counts) * values.mean()
    return metrics
