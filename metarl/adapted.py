"""The adapted policies as a function of the meta-parameters: outputs, divergences, and products with their Jacobian.

Every function takes a group of tasks and returns sums over its tasks, so that groups add up to the whole meta-batch.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from metarl import objectives
from metarl.numerics import flatten, sum_of
from metarl.types import Batch, Experience, Learner, Params, Rollout, State

STEPS_PER_CHUNK = 16_384
"""Environment steps in a group of tasks by default: a CPU works through larger groups more slowly (measured)."""


def split(experience: Experience, chunks: int | None) -> list[Experience]:
    """Cut the tasks into groups of nearly equal size. Raises ValueError when there are more groups than tasks."""
    tasks = len(experience.descriptors)
    if chunks is None:
        steps = experience.query.mask.numel() if isinstance(experience.query, Rollout) else 0
        on_gpu = experience.descriptors.device.type != "cpu"
        chunks = 1 if on_gpu else min(tasks, max(1, round(steps / STEPS_PER_CHUNK)))
    if chunks > tasks:
        raise ValueError(f"chunks={chunks} is more than the {tasks} tasks of the meta-batch; give at most {tasks}")
    bounds = [round(index * tasks / chunks) for index in range(chunks + 1)]
    return [_tasks_of(experience, slice(low, high)) for low, high in pairwise(bounds)]


def _tasks_of(experience: Experience, tasks: slice) -> Experience:
    def cut(batch: Batch) -> Batch:
        return type(batch)(*(field[tasks] for field in batch))

    supports = tuple(cut(support) for support in experience.supports)
    return experience._replace(
        descriptors=experience.descriptors[tasks], supports=supports, query=cut(experience.query)
    )


def policy_outputs(learner: Learner, params: Params, part: Experience) -> list[Tensor]:
    """Outputs of the policies before each adaptation on its support rollout, and of the adapted ones on the query.

    Each is ``[task, episode, time, model_outputs]``.
    """
    state, outputs = learner.begin(params, part.descriptors), []
    for support in part.supports:
        outputs.append(learner.predict(state, rollout_of(support).observations)[0])
        state = learner.adapt(state, support)
    return [*outputs, learner.predict(state, rollout_of(part.query).observations)[0]]


def adapted_outputs(learner: Learner, params: Params, part: Experience) -> Tensor:
    """Outputs of the adapted policies on the query rollout, ``[task, episode, time, model_outputs]``."""
    return learner.predict(adapt(learner, params, part), rollout_of(part.query).observations)[0]


def adapt(learner: Learner, params: Params, part: Experience) -> State:
    """Fold the support batches into what the learner knows of each task."""
    state = learner.begin(params, part.descriptors)
    for support in part.supports:
        state = learner.adapt(state, support)
    return state


def rollout_of(batch: Batch) -> Rollout:
    """Return the batch. Raises ValueError unless it is a rollout."""
    if not isinstance(batch, Rollout):
        raise ValueError("this outer update moves policies and needs rollouts; for labelled examples use adam")
    return batch


def mean_kl(learner: Learner, old: Tensor, new: Tensor, rollout: Batch) -> Tensor:
    """Mean KL divergence of each task's policies over the rollout's valid steps, ``[task]``."""
    return objectives.masked_mean(objectives.kl(learner.spec.kind, old, new), rollout_of(rollout).mask)


def surrogate_and_kl(
    learner: Learner, params: Params, parts: list[Experience], old: list[Tensor]
) -> tuple[float, float]:
    """Mean surrogate loss of the adapted policies, and their mean KL from the old outputs; no gradients."""
    sums = []
    with torch.no_grad():
        for part, before in zip(parts, old, strict=True):
            outputs, query = adapted_outputs(learner, params, part), rollout_of(part.query)
            surrogate = objectives.surrogate("likelihood_ratio", learner.spec.kind, outputs, query)
            sums.append(torch.stack([surrogate.sum(), mean_kl(learner, before, outputs, query).sum()]))
    surrogate_mean, kl = (sum_of(sums) / sum(len(part.descriptors) for part in parts)).tolist()
    return surrogate_mean, kl


def mean_gradient(loss: Callable[[Params, int], Tensor], params: Params, parts: list[Experience]) -> Tensor:
    """Flat gradient of ``loss(params, part index)``, a sum over the part's tasks, averaged over all tasks."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    gradients = (gradient(loss(leaves, index), list(leaves.values())) for index in range(len(parts)))
    return sum_of(gradients) / sum(len(part.descriptors) for part in parts)


def gradient(value: Tensor, leaves: list[Tensor], weights: Tensor | None = None, keep_graph: bool = False) -> Tensor:
    """Flat gradient of a value (or, with weights, of its weighted sum) in the leaves; zeros for unused ones."""
    return flatten(torch.autograd.grad(value, leaves, weights, retain_graph=keep_graph, materialize_grads=True))


class Linearised(NamedTuple):
    """The adapted policies of a group of tasks with their Jacobian J in the meta-parameters."""

    part: Experience
    leaves: list[Tensor]
    outputs: Tensor  # [task, episode, time, model_outputs], with its graph
    cotangents: Tensor  # like outputs: a variable
    pulled_back: Tensor  # J^T cotangents, flat: linear in the cotangents, so that its transpose gives J


def linearise(learner: Learner, params: Params, part: Experience) -> Linearised:
    """Evaluate the adapted policies once and keep the graphs that products with J and its transpose need."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    outputs = adapted_outputs(learner, leaves, part)
    cotangents = torch.zeros_like(outputs, requires_grad=True)
    pulled_back = torch.autograd.grad(
        outputs, list(leaves.values()), cotangents, create_graph=True, materialize_grads=True
    )
    return Linearised(part, list(leaves.values()), outputs, cotangents, flatten(pulled_back))


def surrogate_gradient(learner: Learner, lines: Iterable[Linearised]) -> tuple[float, Tensor, list[Tensor]]:
    """Mean surrogate loss, its flat gradient, and each group's outputs without their graphs."""
    losses, gradients, outputs, tasks = [], [], [], 0
    for line in lines:
        query = rollout_of(line.part.query)
        loss = objectives.surrogate("likelihood_ratio", learner.spec.kind, line.outputs, query).sum()
        losses.append(loss.detach())
        gradients.append(gradient(loss, line.leaves, keep_graph=True))
        outputs.append(line.outputs.detach())
        tasks += len(line.part.descriptors)
    return float(sum_of(losses)) / tasks, sum_of(gradients) / tasks, outputs


def kl_hessian_product(learner: Learner, lines: Iterable[Linearised], vector: Tensor) -> Tensor:
    """Multiply a flat vector by the Hessian of the adapted policies' mean KL at the present parameters.

    There the KL and its gradient in the outputs vanish, so the Hessian is exactly J^T F J, with F the Fisher matrix of
    the action distributions: one product with J, one with its transpose, and no third derivatives.
    """
    products, tasks = [], 0
    for line in lines:
        (tangents,) = torch.autograd.grad(line.pulled_back, line.cotangents, vector, retain_graph=True)
        mask = rollout_of(line.part.query).mask
        weights = (mask / mask.sum((1, 2), keepdim=True).clamp_min(1)).unsqueeze(-1)
        weighted = objectives.fisher_product(learner.spec.kind, line.outputs.detach(), tangents) * weights
        products.append(gradient(line.outputs, line.leaves, weighted, keep_graph=True))
        tasks += len(line.part.descriptors)
    return sum_of(products) / tasks
