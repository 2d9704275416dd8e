"""What is made small and what is scored: losses of labelled examples and surrogates of policies.

What a policy's outputs mean is ``Spec.distribution``. Every function is pure.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from metarl.distributions import Distribution
from metarl.spec import TargetKind
from metarl.types import Batch, Examples, Kind, Rollout, Spec, advantages_of, valid

MEASURES = "info/"
"""Prefix of the scores that are numbers of environments' infos."""
CLOSE = 1e-4
"""How far the probabilities of classes may sum from 1."""
Surrogate = Literal["log_likelihood", "likelihood_ratio", "dice"]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the valid steps of each task: ``[task, episode, time]`` to ``[task]``."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)


def surrogate(name: Surrogate, distribution: Distribution, outputs: Tensor, rollout: Rollout) -> Tensor:
    """Return the policy-gradient loss of each task, ``[task]``, given the policy's outputs at the observations.

    All three surrogates have the same gradient at the policy that acted. They differ in their second derivatives:
    ``log_likelihood`` is the MAML paper's (arXiv 1703.03400, eq. 5), whose Hessian lacks the products of score
    functions. ``likelihood_ratio`` restores those within one time step (ProMP, arXiv 1810.06784, LVC). ``dice``
    restores those across time steps too (Loaded DiCE, arXiv 1909.10549, eq. 14, for lambda = 1): unbiased, with higher
    variance.
    """
    log_probs = distribution.log_prob(outputs, rollout.actions)
    if name == "log_likelihood":
        weights = log_probs
    elif name == "likelihood_ratio":
        weights = _log_ratios(log_probs, rollout).exp()
    else:
        weights = _dice_weights(log_probs, rollout)
    return -masked_mean(weights * advantages_of(rollout), rollout.mask)


def _dice_weights(log_probs: Tensor, rollout: Rollout) -> Tensor:
    # Loaded DiCE weighs step t by box(actions up to t) - box(actions before t). Here each magic box is the likelihood
    # ratio to the acting policy: equal to it at that policy, and still correct away from it.
    log_ratios = _log_ratios(log_probs, rollout)
    log_up_to = log_ratios.cumsum(-1)
    return log_up_to.exp() - (log_up_to - log_ratios).exp()


def _log_ratios(log_probs: Tensor, rollout: Rollout) -> Tensor:
    # 0 after the end: a ratio could overflow there, and infinity times a mask of 0 is nan.
    return (log_probs - rollout.log_probs) * rollout.mask


def clipped_surrogate(distribution: Distribution, outputs: Tensor, rollout: Rollout, clip: float) -> Tensor:
    """Return PPO's clipped surrogate loss of each task, ``[task]`` (arXiv 1707.06347, eq. 7)."""
    ratio = _log_ratios(distribution.log_prob(outputs, rollout.actions), rollout).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    advantages = advantages_of(rollout)
    pessimistic = torch.minimum(ratio * advantages, clipped * advantages)
    return -masked_mean(pessimistic, rollout.mask)


def loss(kind: Kind, outputs: Tensor, examples: Examples) -> Tensor:
    """Return the mean supervised loss of each task, ``[task]``: squared error, or cross-entropy in nats.

    Padding does not count.

    Raises:
        ValueError: regression targets whose shape differs from the outputs'.
    """
    if kind == "classification":
        classes = examples.targets
        return item_mean(functional.cross_entropy(outputs.movedim(-1, 1), classes, reduction="none"), examples)
    if outputs.shape != examples.targets.shape:  # they would broadcast to every pair of items
        raise ValueError(f"targets have shape {tuple(examples.targets.shape)}, expected {tuple(outputs.shape)}")
    return item_mean((outputs - examples.targets).square(), examples)


def targeted_loss(spec: Spec, descriptors: Tensor, outputs: Tensor, examples: Examples) -> Tensor:
    """Return the mean loss of each task ``[task]`` by what its targets are, of ``Spec.targets``.

    It is nan, and so is its gradient, for a task whose descriptor is not one-hot, whose classes or labels are not from
    0 to 1, or whose classes do not sum to 1 in each item.
    """
    sizes = [one.size for one in spec.targets]
    parts = zip(spec.targets, torch.split(outputs, sizes, -1), torch.split(examples.targets, sizes, -1), strict=True)
    found = [_part_loss(kind, own, replace(examples, targets=wanted)) for (kind, _), own, wanted in parts]
    which, told = told_apart(descriptors)
    # [task, part]: what a task's targets hold in the parts of others does not count.
    own = which.unsqueeze(1)
    losses, right = (torch.stack(values, dim=1).gather(1, own).squeeze(1) for values in zip(*found, strict=True))
    return _where(right & told, losses)


def told_apart(descriptors: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the 1 of each one-hot descriptor is, ``[task]``, and whether the descriptor is one-hot, ``[task]``.

    Of others, such as the amplitude and the phase of a wave, no largest number says which kind of task is meant.
    """
    ones = descriptors == 1
    return descriptors.argmax(-1), (ones | (descriptors == 0)).all(-1) & (ones.sum(-1) == 1)


def label_loss(outputs: Tensor, examples: Examples) -> Tensor:
    """Return the mean binary cross-entropy of each task, ``[task]``, given logits ``[task, item, label]``.

    It is nan, and so is its gradient, for a task whose labels are not from 0 to 1.
    """
    losses, right = _part_loss("labels", outputs, examples)
    return _where(right, losses)


def _part_loss(kind: TargetKind, outputs: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return the mean loss of each task, and whether its targets are of this kind, both ``[task]``."""
    targets = examples.targets
    if kind == "numbers":
        losses, right = (outputs - targets).square(), torch.ones_like(targets[:, :, 0], dtype=torch.bool)
    elif kind == "labels":
        losses = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        right = ((targets >= 0) & (targets <= 1)).all(-1)
    else:
        losses = -(targets * outputs.log_softmax(-1)).sum(-1)
        right = (targets >= 0).all(-1) & ((targets.sum(-1) - 1).abs() < CLOSE)
    return item_mean(losses, examples), (right | (valid(examples) == 0)).all(1)


def _where(right: Tensor, losses: Tensor) -> Tensor:
    """Return the losses where they are right; elsewhere nan, and so is their gradient, which no update takes."""
    return losses * torch.where(right, 1.0, torch.nan)


def item_mean(values: Tensor, examples: Examples) -> Tensor:
    """Return the mean of ``[task, item, ...]`` over the items of each task, ``[task]``; padding does not count."""
    if examples.mask is None:
        return values.flatten(1).mean(1)
    each = values.flatten(2).mean(2) if values.ndim > 2 else values
    mask = examples.mask.to(values.dtype)
    # Not a product: what an item of padding gives may be infinite.
    return torch.where(mask > 0, each, 0).sum(1) / mask.sum(1).clamp_min(1)


def task_loss(spec: Spec, outputs: Tensor, batch: Batch, name: Surrogate = "likelihood_ratio") -> Tensor:
    """Return the loss of each task, ``[task]``: supervised, or a policy-gradient surrogate.

    At the policy that acted, all surrogates have the same first derivatives.
    """
    if isinstance(batch, Rollout):
        return surrogate(name, spec.distribution, outputs, batch)
    return loss(spec.kind, outputs, batch)


def scores(kind: Kind, batch: Batch, outputs: Tensor | None = None) -> dict[str, Tensor]:
    """Return the scores of each task, ``[task]`` by name: ``return`` and ``success``, or ``loss`` and ``accuracy``.

    Supervised batches need the model's outputs. The return is undiscounted, averaged over episodes. ``success`` is
    there when the environments report it: the fraction of episodes with a success at any step. Numbers of their infos
    are there under ``info/NAME``: means over steps, then over episodes.
    """
    if isinstance(batch, Rollout):
        returns = {"return": (batch.rewards * batch.mask).sum(2).mean(1)}
        if batch.success is not None:
            returns["success"] = batch.success.mean(1)
        return returns | {f"{MEASURES}{name}": values.mean(1) for name, values in (batch.measures or {}).items()}
    if outputs is None:
        raise ValueError("scores of labelled examples need the model's outputs")
    named = {"loss": loss(kind, outputs, batch)}
    if kind == "classification":
        named["accuracy"] = item_mean((outputs.argmax(-1) == batch.targets).to(outputs.dtype), batch)
    return named


def targeted_scores(spec: Spec, descriptors: Tensor, examples: Examples, outputs: Tensor) -> dict[str, Tensor]:
    """Return the scores of examples, ``[task]`` by name: by what each task's targets are, if ``Spec.targets`` says."""
    if spec.targets:
        return {"loss": targeted_loss(spec, descriptors, outputs, examples)}
    return scores(spec.kind, examples, outputs)


def step_scores(kind: Kind, batch: Batch, outputs: Tensor | None, step: int) -> dict[str, Tensor]:
    """Return each score ``[task]`` under the name that is logged, such as ``return/step_0``. No gradients."""
    outputs = None if outputs is None else outputs.detach()
    return {f"{name}/step_{step}": value for name, value in scores(kind, batch, outputs).items()}


def query_losses(spec: Spec, outputs: Tensor, query: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a ``Learner.meta_loss`` returns: losses ``[task]`` on the query data, and for examples their scores.

    ``outputs`` are those after adaptation number ``step``. Returns of control are measured where episodes are run.
    """
    metrics = step_scores(spec.kind, query, outputs, step) if isinstance(query, Examples) else {}
    return task_loss(spec, outputs, query), metrics


def instance_accuracies(outputs: Tensor, examples: Examples) -> Tensor:
    """Return the accuracy on the k-th instance of each class, ``[instance, task]`` (MANN, arXiv 1605.06065).

    Args:
        outputs: ``[task, item, class]``, predicted for each item before its label was shown.
        examples: The sequence. With n items and N classes, the result covers the first n // N instances.
    """
    # How often each item's class has been presented, the item itself included: [task, item].
    presented = functional.one_hot(examples.targets, outputs.shape[-1]).cumsum(1)
    number = presented.gather(-1, examples.targets.unsqueeze(-1)).squeeze(-1)
    instances = 1 + torch.arange(outputs.shape[1] // outputs.shape[-1], device=number.device).reshape(-1, 1, 1)
    is_instance = (number == instances).to(outputs.dtype)  # [instance, task, item]
    correct = (outputs.argmax(-1) == examples.targets).to(outputs.dtype)
    return (is_instance * correct).sum(2) / is_instance.sum(2)
