"""The adapted policies as a function of the meta-parameters: outputs, divergences, and products with their Jacobian.

Functions of a group of tasks return sums over its tasks, so that groups, and the groups of all ranks
(``metarl.speed.ranks``), add up to the whole meta-batch.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from metarl import objectives
from metarl.numerics import flatten
from metarl.outer.options import require_chunks
from metarl.speed import each_group, ranks
from metarl.types import (
    NO_POLICIES,
    NOT_DIFFERENTIATED,
    Batch,
    Experience,
    Learner,
    Params,
    Rollout,
    State,
    joined,
    rollout_of,
    select,
)

STEPS_PER_CHUNK = 8_192
"""Default number of environment steps in a group of tasks. Larger groups are slower on a CPU (measured)."""


def split(experience: Experience, chunks: int | None) -> list[Experience]:
    """Split the tasks into ``chunks`` groups of nearly equal size, of which each rank has its share.

    Exact sums are over groups of one task.

    Raises ValueError if ``chunks`` is less than 1 or more than the number of tasks.
    """
    require_chunks(chunks)
    tasks = len(experience.descriptors)
    if ranks.is_exact():
        return ranks.terms(experience)
    if chunks is not None and ranks.is_shared():
        chunks = min(tasks, -(-chunks // ranks.number_of_ranks()))
    if chunks is None:
        steps = experience.query.mask.numel() if isinstance(experience.query, Rollout) else 0
        on_gpu = experience.descriptors.device.type != "cpu"
        chunks = 1 if on_gpu else min(tasks, _groups(steps))
    if chunks > tasks:
        raise ValueError(f"chunks={chunks} is more than the {tasks} tasks of the meta-batch; use at most {tasks}")
    if chunks == 1:
        return [experience]
    bounds = [round(index * tasks / chunks) for index in range(chunks + 1)]
    return [select(experience, slice(low, high)) for low, high in pairwise(bounds)]


def _groups(steps: int) -> int:
    """Return a number of groups that keeps every core busy: one, or a multiple of the number of cores."""
    groups, cores = max(1, round(steps / STEPS_PER_CHUNK)), torch.get_num_threads()
    return groups if groups == 1 else cores * max(1, round(groups / cores))


def policy_outputs(learner: Learner, params: Params, part: Experience) -> list[Tensor]:
    """Return the policies' outputs before each adaptation, on its support rollout, then the adapted ones' on the query.

    Each has shape ``[task, episode, time, model_outputs]``.

    Raises:
        ValueError: the data are not rollouts, or the policies have a memory and therefore no separate inner steps.
    """
    query = rollout_of(part.query)
    require_inner_steps(learner)
    state, outputs = learner.begin(params, part.descriptors), []
    for support in part.supports:
        outputs.append(learner.predict(state, rollout_of(support).observations)[0])
        state = learner.adapt(state, support)
    return [*outputs, learner.predict(state, query.observations)[0]]


def adapted_outputs(learner: Learner, params: Params, part: Experience) -> Tensor:
    """Return the adapted policies' outputs on the judged rollout, ``[task, episode, time, model_outputs]``."""
    if learner.memory is None:
        return learner.predict(adapt(learner, params, part), rollout_of(part.query).observations)[0]
    state, outputs = learner.begin(params, part.descriptors), []
    for batch in (*part.supports, part.query):
        batch_outputs, state = learner.memory.unroll(state, rollout_of(batch))
        outputs.append(batch_outputs)
    return torch.cat(outputs, dim=2)


def judged(learner: Learner, part: Experience) -> Rollout:
    """Return the rollout that the surrogate loss is computed on: the query, or with memory the whole trial."""
    if learner.memory is None:
        return rollout_of(part.query)
    return joined([rollout_of(batch) for batch in (*part.supports, part.query)])


def adapt(learner: Learner, params: Params, part: Experience) -> State:
    """Return the learner's state after adapting to all support batches."""
    state = learner.begin(params, part.descriptors)
    for support in part.supports:
        state = learner.adapt(state, support)
    return state


def require_policies(learner: Learner) -> None:
    """Raise ValueError for a learner of labelled examples, or one whose adaptation is not differentiable."""
    if not learner.spec.control:
        raise ValueError(NO_POLICIES)
    if learner.adaptations and not learner.differentiable:
        raise ValueError(NOT_DIFFERENTIATED)


def require_inner_steps(learner: Learner) -> None:
    """Raise ValueError for a policy with memory."""
    if learner.memory is not None:
        raise ValueError(
            "this outer update penalises inner steps, and a policy with memory takes none: use trpo, or adam "
            "(which is PPO with several --outer.epochs)"
        )


def mean_kl(learner: Learner, old: Tensor, new: Tensor, rollout: Batch) -> Tensor:
    """Return each task's mean KL divergence over the rollout's valid steps, ``[task]``, in nats."""
    return objectives.masked_mean(learner.spec.distribution.kl(old, new), rollout_of(rollout).mask)


def surrogate_and_kl(learner: Learner, params: Params, parts: list[Experience], old: list[Tensor]) -> Tensor:
    """Return the adapted policies' mean surrogate loss and mean KL from the old outputs, ``[2]``. No gradients."""

    def sums(group: tuple[Experience, Tensor]) -> Tensor:
        part, before = group
        outputs, query = adapted_outputs(learner, params, part), judged(learner, part)
        surrogate = objectives.surrogate("likelihood_ratio", learner.spec.distribution, outputs, query)
        return torch.stack([surrogate.sum(), mean_kl(learner, before, outputs, query).sum()])

    with torch.no_grad():
        group_sums = each_group(sums, list(zip(parts, old, strict=True)))
    (total,), tasks = ranks.sums(((one,) for one in group_sums), _count(parts), "the surrogate and its KL")
    return total / tasks


def _count(parts: Iterable[Experience]) -> int:
    return sum(len(part.descriptors) for part in parts)


def mean_gradient(loss: Callable[[Params, int], Tensor], params: Params, parts: list[Experience]) -> Tensor:
    """Return the flat gradient of the mean over tasks of ``loss(params, part index)``, a sum over the part's tasks."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    gradients = ((gradient(loss(leaves, index), list(leaves.values())),) for index in range(len(parts)))
    (total,), tasks = ranks.sums(gradients, _count(parts), "the meta-gradient")
    return total / tasks


def gradient(value: Tensor, leaves: list[Tensor], weights: Tensor | None = None, keep_graph: bool = False) -> Tensor:
    """Return the flat gradient of a value (with weights: of its weighted sum) in the leaves; zeros for unused ones."""
    return flatten(torch.autograd.grad(value, leaves, weights, retain_graph=keep_graph, materialize_grads=True))


class Linearised(NamedTuple):
    """The adapted policies of a group of tasks, and the graphs for products with their Jacobian J.

    J is the derivative of the outputs in the meta-parameters.
    """

    part: Experience
    leaves: list[Tensor]
    outputs: Tensor  # [task, episode, time, model_outputs], with its graph
    surrogate: Tensor  # surrogate loss, summed over tasks
    cotangents: Tensor  # gradient of the surrogate in the outputs, as a leaf of the graph below
    gradient: Tensor  # J^T cotangents, flat: the surrogate's gradient, as a function of the cotangents


def linearise(learner: Learner, params: Params, part: Experience) -> Linearised:
    """Evaluate the adapted policies once, and keep the graphs for products with J and its transpose."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    outputs = adapted_outputs(learner, leaves, part)
    # Chain rule in two parts: first the gradient in the outputs, then J^T times it (the cotangents).
    variable = outputs.detach().requires_grad_()
    surrogate = objectives.surrogate(
        "likelihood_ratio", learner.spec.distribution, variable, judged(learner, part)
    ).sum()
    cotangents = torch.autograd.grad(surrogate, variable)[0].requires_grad_()
    pulled_back = torch.autograd.grad(
        outputs, list(leaves.values()), cotangents, create_graph=True, materialize_grads=True
    )
    return Linearised(part, list(leaves.values()), outputs, surrogate.detach(), cotangents, flatten(pulled_back))


def surrogate_gradient(lines: Iterable[Linearised]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the mean surrogate loss, its flat gradient, and each group's detached outputs."""
    found, outputs, count = [], [], 0
    for line in lines:
        found.append((line.surrogate, line.gradient.detach()))
        outputs.append(line.outputs.detach())
        count += len(line.part.descriptors)
    (loss, gradient), tasks = ranks.sums(found, count, "the surrogate's gradient")
    return loss.double() / tasks, gradient / tasks, outputs


def kl_hessian_product(learner: Learner, lines: Iterable[Linearised], vector: Tensor) -> Tensor:
    """Multiply a flat vector by the Hessian of the adapted policies' mean KL at the current parameters.

    There, the KL and its gradient in the outputs are zero. So the Hessian is exactly J^T F J, where F is the Fisher
    matrix of the action distributions. This takes one product with J, one with J^T, and no third derivatives.
    """

    def product(line: Linearised) -> tuple[Tensor, int]:
        # J v by two reverse passes: J^T c is linear in c, and differentiating v . (J^T c) in c gives J v.
        (tangents,) = torch.autograd.grad(line.gradient, line.cotangents, vector, retain_graph=True)
        mask = judged(learner, line.part).mask
        weights = (mask / mask.sum((1, 2), keepdim=True).clamp_min(1)).unsqueeze(
            -1
        )  # mean over each task's valid steps
        weighted = learner.spec.distribution.fisher_product(line.outputs.detach(), tangents) * weights
        return gradient(line.outputs, line.leaves, weighted, keep_graph=True), len(line.part.descriptors)

    products = each_group(product, lines)
    count = sum(tasks for _, tasks in products)
    (total,), tasks = ranks.sums(((summed,) for summed, _ in products), count, "a product with the KL's Hessian")
    return total / tasks
