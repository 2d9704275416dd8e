"""The meaning of a model's outputs: action distributions, losses and scores, chosen by ``Spec.kind``.

A policy outputs logits (``discrete``), or means followed by log standard deviations (``continuous``), along the last
axis. Every function is pure and works with any leading axes.
"""

import math
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.nn import functional

from metarl.types import Batch, Examples, Kind, Rollout, advantages_of

Surrogate = Literal["log_likelihood", "likelihood_ratio", "dice"]
LOG_TWO_PI = math.log(2 * math.pi)


def sample(kind: Kind, outputs: Tensor, generator: Generator) -> Tensor:
    """Draw an action from each distribution: ``[..., model_outputs]`` to ``[..., action]``, or ``[...]`` ids."""
    size = outputs.shape[-1] if kind == "discrete" else outputs.shape[-1] // 2
    drawn = torch.empty(*outputs.shape[:-1], size, dtype=outputs.dtype, device=outputs.device)
    return act(kind, outputs, fill_noise(kind, drawn, generator))


def fill_noise(kind: Kind, values: Tensor, generator: Generator) -> Tensor:
    """Return the noise that turns distributions into actions, ``[..., output_size]``, written into ``values``."""
    if kind == "continuous":
        return values.normal_(generator=generator)
    # Gumbel noise is -log(-log(uniform)). Clamping avoids log(0).
    tiny = torch.finfo(values.dtype).tiny
    uniform = values.uniform_(generator=generator).clamp_min_(tiny)
    return uniform.log_().neg_().clamp_min_(tiny).log_().neg_()


def act(kind: Kind, outputs: Tensor, noise: Tensor) -> Tensor:
    """Return the actions of distributions ``[..., model_outputs]``, given noise ``[..., output_size]``."""
    if kind == "discrete":
        # Gumbel-max trick: argmax(logits + Gumbel noise) is a sample. It needs no round trip to the host and no
        # reshaping, as torch.multinomial would.
        return (outputs + noise).argmax(-1)
    # Reparameterised Gaussian: mean + std * noise.
    mean, log_std = outputs.chunk(2, dim=-1)
    return torch.addcmul(mean, noise, log_std.exp())


def mode(kind: Kind, outputs: Tensor) -> Tensor:
    """Return each distribution's most likely action."""
    return outputs.argmax(-1) if kind == "discrete" else outputs.chunk(2, dim=-1)[0]


def distribution(kind: Kind, outputs: Tensor) -> Distribution:
    """Return the distribution of the action, ``[...]``, for outputs ``[..., model_outputs]``.

    It is ``Independent(Normal)`` over action dimensions, or ``Categorical``. Raises ValueError for outputs that are not
    finite.
    """
    if kind == "discrete":
        return Categorical(logits=outputs, validate_args=True)
    mean, log_std = outputs.chunk(2, dim=-1)
    return Independent(Normal(mean, log_std.exp(), validate_args=True), 1, validate_args=True)


def certain(kind: Kind, outputs: Tensor) -> Tensor:
    """Return the outputs of a deterministic policy that always takes the most likely action of ``outputs``."""
    # Logits 0 and -inf have probabilities 1 and 0; a log standard deviation of -inf is a standard deviation of 0.
    if kind == "discrete":
        chosen = functional.one_hot(outputs.argmax(-1), outputs.shape[-1]).bool()
        return torch.zeros_like(outputs).masked_fill(~chosen, -torch.inf)
    mean, log_std = outputs.chunk(2, dim=-1)
    return torch.cat([mean, torch.full_like(log_std, -torch.inf)], dim=-1)


def log_prob(kind: Kind, outputs: Tensor, actions: Tensor) -> Tensor:
    """Return the log-probability of actions, summed over action dimensions: ``[..., model_outputs]`` to ``[...]``."""
    if kind == "discrete":
        return functional.log_softmax(outputs, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    mean, log_std = outputs.chunk(2, dim=-1)
    # log N(a; mean, std) = -(z^2 / 2 + log std + log(2 pi) / 2) for each dimension, with z = (a - mean) / std.
    deviation = (actions - mean) * (-log_std).exp()
    return -(0.5 * deviation.square() + log_std).sum(-1) - 0.5 * LOG_TWO_PI * mean.shape[-1]


def drawn_log_prob(kind: Kind, outputs: Tensor, actions: Tensor) -> Tensor:
    """Return ``log_prob`` of actions drawn from these outputs, and 0 where they are ``certain``: the probability is 1.

    The formula of the density gives nan there.
    """
    log_probs = log_prob(kind, outputs, actions)
    if kind == "discrete":
        return log_probs
    return log_probs.masked_fill(outputs.chunk(2, dim=-1)[1].isneginf().all(-1), 0)


def kl(kind: Kind, old: Tensor, new: Tensor) -> Tensor:
    """Return KL(old || new) of action distributions: ``[..., model_outputs]`` to ``[...]``, in nats."""
    if kind == "discrete":
        old_log, new_log = functional.log_softmax(old, -1), functional.log_softmax(new, -1)
        return (old_log.exp() * (old_log - new_log)).sum(-1)
    # log(s' / s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2 for each dimension, old m and s, new m' and s'.
    old_mean, old_log_std = old.chunk(2, dim=-1)
    new_mean, new_log_std = new.chunk(2, dim=-1)
    variance = (2 * old_log_std).exp() + (old_mean - new_mean).square()
    return (new_log_std - old_log_std + 0.5 * variance * (-2 * new_log_std).exp() - 0.5).sum(-1)


def fisher_product(kind: Kind, outputs: Tensor, tangents: Tensor) -> Tensor:
    """Multiply tangents of the outputs by the Fisher matrix of each action distribution.

    The Fisher matrix is the Hessian of ``kl(kind, outputs.detach(), outputs)`` in the outputs. Outputs and tangents are
    ``[..., model_outputs]``.
    """
    # For logits it is diag(p) - p p'. For a Gaussian it is diagonal: 1 / std^2 for the mean, 2 for the log std.
    if kind == "discrete":
        probabilities = functional.softmax(outputs, -1)
        weighted = probabilities * tangents
        return weighted - probabilities * weighted.sum(-1, keepdim=True)
    mean_tangents, log_std_tangents = tangents.chunk(2, dim=-1)
    log_std = outputs.chunk(2, dim=-1)[1]
    return torch.cat([mean_tangents * (-2 * log_std).exp(), 2 * log_std_tangents], dim=-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the valid steps of each task: ``[task, episode, time]`` to ``[task]``."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)


def surrogate(name: Surrogate, kind: Kind, outputs: Tensor, rollout: Rollout) -> Tensor:
    """Return the policy-gradient loss of each task, ``[task]``, given the policy's outputs at the observations.

    All three surrogates have the same gradient at the policy that acted. They differ in their second derivatives:
    ``log_likelihood`` is the MAML paper's (arXiv 1703.03400, eq. 5), whose Hessian lacks the products of score
    functions. ``likelihood_ratio`` restores those within one time step (ProMP, arXiv 1810.06784, LVC). ``dice``
    restores those across time steps too (Loaded DiCE, arXiv 1909.10549, eq. 14, for lambda = 1): unbiased, with higher
    variance.
    """
    log_probs = log_prob(kind, outputs, rollout.actions)
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


def clipped_surrogate(kind: Kind, outputs: Tensor, rollout: Rollout, clip: float) -> Tensor:
    """Return PPO's clipped surrogate loss of each task, ``[task]`` (arXiv 1707.06347, eq. 7)."""
    ratio = _log_ratios(log_prob(kind, outputs, rollout.actions), rollout).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    advantages = advantages_of(rollout)
    pessimistic = torch.minimum(ratio * advantages, clipped * advantages)
    return -masked_mean(pessimistic, rollout.mask)


def loss(kind: Kind, outputs: Tensor, examples: Examples) -> Tensor:
    """Return the mean supervised loss of each task, ``[task]``: squared error, or cross-entropy in nats.

    Raises:
        ValueError: regression targets whose shape differs from the outputs'.
    """
    if kind == "classification":
        classes = examples.targets
        return functional.cross_entropy(outputs.movedim(-1, 1), classes, reduction="none").flatten(1).mean(1)
    if outputs.shape != examples.targets.shape:  # they would broadcast to every pair of items
        raise ValueError(f"targets have shape {tuple(examples.targets.shape)}, expected {tuple(outputs.shape)}")
    return (outputs - examples.targets).square().flatten(1).mean(1)


def task_loss(kind: Kind, outputs: Tensor, batch: Batch, name: Surrogate = "likelihood_ratio") -> Tensor:
    """Return the loss of each task, ``[task]``: supervised, or a policy-gradient surrogate.

    At the policy that acted, all surrogates have the same first derivatives.
    """
    if isinstance(batch, Rollout):
        return surrogate(name, kind, outputs, batch)
    return loss(kind, outputs, batch)


def scores(kind: Kind, batch: Batch, outputs: Tensor | None = None) -> dict[str, Tensor]:
    """Return the scores of each task, ``[task]`` by name: ``return`` and ``success``, or ``loss`` and ``accuracy``.

    Supervised batches need the model's outputs. The return is undiscounted, averaged over episodes. ``success`` is
    there when the environments report it: the fraction of episodes with a success at any step.
    """
    if isinstance(batch, Rollout):
        returns = {"return": (batch.rewards * batch.mask).sum(2).mean(1)}
        return returns if batch.success is None else returns | {"success": batch.success.mean(1)}
    if outputs is None:
        raise ValueError("scores of labelled examples need the model's outputs")
    named = {"loss": loss(kind, outputs, batch)}
    if kind == "classification":
        named["accuracy"] = (outputs.argmax(-1) == batch.targets).to(outputs.dtype).mean(1)
    return named


def step_scores(kind: Kind, batch: Batch, outputs: Tensor | None, step: int) -> dict[str, Tensor]:
    """Return each score ``[task]`` under the name that is logged, such as ``return/step_0``. No gradients."""
    outputs = None if outputs is None else outputs.detach()
    return {f"{name}/step_{step}": value for name, value in scores(kind, batch, outputs).items()}


def query_losses(kind: Kind, outputs: Tensor, query: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a ``Learner.meta_loss`` returns: losses ``[task]`` on the query data, and for examples their scores.

    ``outputs`` are those after adaptation number ``step``. Returns of control are measured where episodes are run.
    """
    metrics = step_scores(kind, query, outputs, step) if isinstance(query, Examples) else {}
    return task_loss(kind, outputs, query), metrics


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
