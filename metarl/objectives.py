"""What a model's outputs mean: action distributions, losses and scores, chosen by ``Spec.kind``.

A policy's outputs are logits (``discrete``), or means and log standard deviations side by side (``continuous``), along
the last axis. Every function is pure and works on any leading axes.
"""

import math
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from metarl.types import Batch, Examples, Kind, Rollout

Surrogate = Literal["log_likelihood", "likelihood_ratio", "dice"]
LOG_TWO_PI = math.log(2 * math.pi)


def sample(kind: Kind, outputs: Tensor, generator: Generator) -> Tensor:
    """Draw an action from each distribution: ``[..., model_outputs]`` to ``[..., action]``, or ``[...]`` ids."""
    if kind == "discrete":
        # Gumbel-max: one pass without a host round trip, and no reshaping as torch.multinomial would need.
        uniform = torch.rand(outputs.shape, generator=generator, dtype=outputs.dtype, device=outputs.device)
        tiny = torch.finfo(outputs.dtype).tiny
        return (outputs - (-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()).argmax(-1)
    mean, log_std = outputs.chunk(2, dim=-1)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return torch.addcmul(mean, noise, log_std.exp())


def mode(kind: Kind, outputs: Tensor) -> Tensor:
    """Return each distribution's most likely action."""
    return outputs.argmax(-1) if kind == "discrete" else outputs.chunk(2, dim=-1)[0]


def certain(kind: Kind, outputs: Tensor) -> Tensor:
    """Return outputs of distributions that always draw the most likely action of ``outputs``."""
    if kind == "discrete":
        chosen = functional.one_hot(outputs.argmax(-1), outputs.shape[-1]).bool()
        return torch.zeros_like(outputs).masked_fill(~chosen, -torch.inf)
    mean, log_std = outputs.chunk(2, dim=-1)
    return torch.cat([mean, torch.full_like(log_std, -torch.inf)], dim=-1)


def log_prob(kind: Kind, outputs: Tensor, actions: Tensor) -> Tensor:
    """Log-probability of actions, summed over action dimensions: ``[..., model_outputs]`` to ``[...]``."""
    if kind == "discrete":
        return functional.log_softmax(outputs, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    mean, log_std = outputs.chunk(2, dim=-1)
    deviation = (actions - mean) * (-log_std).exp()
    return -(0.5 * deviation.square() + log_std).sum(-1) - 0.5 * LOG_TWO_PI * mean.shape[-1]


def kl(kind: Kind, old: Tensor, new: Tensor) -> Tensor:
    """KL(old || new) of action distributions: ``[..., model_outputs]`` to ``[...]``, in nats."""
    if kind == "discrete":
        old_log, new_log = functional.log_softmax(old, -1), functional.log_softmax(new, -1)
        return (old_log.exp() * (old_log - new_log)).sum(-1)
    (old_mean, old_log_std), (new_mean, new_log_std) = old.chunk(2, dim=-1), new.chunk(2, dim=-1)
    variance = (2 * old_log_std).exp() + (old_mean - new_mean).square()
    return (new_log_std - old_log_std + 0.5 * variance * (-2 * new_log_std).exp() - 0.5).sum(-1)


def fisher_product(kind: Kind, outputs: Tensor, tangents: Tensor) -> Tensor:
    """Multiply tangents of the outputs by the Fisher matrix of each action distribution.

    It is the Hessian of ``kl(kind, outputs.detach(), outputs)`` in the outputs; both are ``[..., model_outputs]``.
    """
    if kind == "discrete":
        probabilities = functional.softmax(outputs, -1)
        weighted = probabilities * tangents
        return weighted - probabilities * weighted.sum(-1, keepdim=True)
    mean, log_std = tangents.chunk(2, dim=-1)
    return torch.cat([mean * (-2 * outputs.chunk(2, dim=-1)[1]).exp(), 2 * log_std], dim=-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over every valid step of each task: ``[task, episode, time]`` to ``[task]``."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)


def surrogate(name: Surrogate, kind: Kind, outputs: Tensor, rollout: Rollout) -> Tensor:
    """Policy-gradient loss of each task, ``[task]``; outputs are the policy's at the rollout's observations.

    All three have the same gradient at the policy that acted. They differ in their second derivatives:
    ``log_likelihood`` is the MAML paper's (arXiv 1703.03400, eq. 5), whose Hessian lacks the products of score
    functions; ``likelihood_ratio`` restores those of one time step (ProMP, arXiv 1810.06784, LVC); ``dice`` those
    across time steps too (Loaded DiCE, arXiv 1909.10549, eq. 14, for lambda = 1): unbiased, of higher variance.
    """
    log_probs = log_prob(kind, outputs, rollout.actions)
    if name == "log_likelihood":
        weights = log_probs
    elif name == "likelihood_ratio":
        weights = _log_ratios(log_probs, rollout).exp()
    else:
        weights = _dice_weights(log_probs, rollout)
    return -masked_mean(weights * rollout.advantages, rollout.mask)


def _dice_weights(log_probs: Tensor, rollout: Rollout) -> Tensor:
    # Ratios to the acting policy, not magic boxes: equal at that policy, and right away from it too.
    log_ratios = _log_ratios(log_probs, rollout)
    through = log_ratios.cumsum(-1)
    return through.exp() - (through - log_ratios).exp()


def _log_ratios(log_probs: Tensor, rollout: Rollout) -> Tensor:
    # 0 after the end, where a ratio might overflow and infinity times the mask is not a number.
    return (log_probs - rollout.log_probs) * rollout.mask


def clipped_surrogate(kind: Kind, outputs: Tensor, rollout: Rollout, clip: float) -> Tensor:
    """PPO's pessimistic surrogate loss of each task, ``[task]`` (arXiv 1707.06347, eq. 7)."""
    ratio = _log_ratios(log_prob(kind, outputs, rollout.actions), rollout).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -masked_mean(torch.minimum(ratio * rollout.advantages, clipped * rollout.advantages), rollout.mask)


def loss(kind: Kind, outputs: Tensor, examples: Examples) -> Tensor:
    """Mean supervised loss of each task, ``[task]``: squared error, or cross-entropy in nats.

    Raises:
        ValueError: targets of a regression have another shape than the outputs.
    """
    if kind == "classification":
        classes = examples.targets
        return functional.cross_entropy(outputs.movedim(-1, 1), classes, reduction="none").flatten(1).mean(1)
    if outputs.shape != examples.targets.shape:  # they would be broadcast to every pair of items
        raise ValueError(f"targets have shape {tuple(examples.targets.shape)}, expected {tuple(outputs.shape)}")
    return (outputs - examples.targets).square().flatten(1).mean(1)


def task_loss(kind: Kind, outputs: Tensor, batch: Batch, name: Surrogate = "likelihood_ratio") -> Tensor:
    """Loss of each task, ``[task]``: supervised, or a policy-gradient surrogate.

    Which surrogate makes no difference to first derivatives at the policy that acted.
    """
    if isinstance(batch, Rollout):
        return surrogate(name, kind, outputs, batch)
    return loss(kind, outputs, batch)


def scores(kind: Kind, batch: Batch, outputs: Tensor | None = None) -> dict[str, Tensor]:
    """What is reported of each task, ``[task]`` by name: ``return``, and perhaps ``success``; ``loss``, ``accuracy``.

    Supervised batches need the model's outputs; a rollout's return is the undiscounted mean over its episodes. Where
    environments tell of success, it is the share of episodes in which there was some at any step.
    """
    if isinstance(batch, Rollout):
        returns = {"return": (batch.rewards * batch.mask).sum(2).mean(1)}
        return returns if batch.success is None else returns | {"success": batch.success.mean(1)}
    if outputs is None:
        raise ValueError("scores of labelled examples need the model's outputs")
    found = {"loss": loss(kind, outputs, batch)}
    if kind == "classification":
        found["accuracy"] = (outputs.argmax(-1) == batch.targets).to(outputs.dtype).mean(1)
    return found


def mean_scores(kind: Kind, batch: Batch, outputs: Tensor | None, step: int) -> dict[str, Tensor]:
    """Mean of each score over the tasks, by the name that is logged: ``return/step_0``."""
    return {f"{name}/step_{step}": value.detach().mean() for name, value in scores(kind, batch, outputs).items()}


def instance_accuracies(outputs: Tensor, examples: Examples) -> Tensor:
    """Accuracy at the first, second, ... item of a class in a sequence, ``[instance, task]`` (MANN, arXiv 1605.06065).

    Args:
        outputs: ``[task, item, class]``, said of each item before its label was shown.
        examples: The sequence; of n items and N classes, the first n // N instances are told.
    """
    presented = functional.one_hot(examples.targets, outputs.shape[-1]).cumsum(1)
    number = presented.gather(-1, examples.targets.unsqueeze(-1)).squeeze(-1)
    counted = 1 + torch.arange(outputs.shape[1] // outputs.shape[-1], device=number.device).reshape(-1, 1, 1)
    asked = (number == counted).to(outputs.dtype)
    right = (outputs.argmax(-1) == examples.targets).to(outputs.dtype)
    return (asked * right).sum(2) / asked.sum(2)
