"""A choice of one of several actions, 0 to ``sizes[0] - 1``. Its outputs are logits."""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import Categorical, Distribution
from torch.nn import functional

from metarl.distributions.laws import Actions, Sizes

ACTIONS: Actions = "discrete"
BOUNDED = False


def head(of: Sizes) -> int:
    """Return the number of choices."""
    return of.sizes[0]


def log_stds(of: Sizes) -> int:
    """Return 0: there are none."""
    return 0


def action_shape(of: Sizes) -> tuple[int, ...]:
    """Return ``()``: an action is one integer."""
    return ()


def fill_noise(values: Tensor, generator: Generator) -> Tensor:
    """Draw Gumbel noise: -log(-log(uniform)). Clamping avoids log(0)."""
    tiny = torch.finfo(values.dtype).tiny
    uniform = values.uniform_(generator=generator).clamp_min_(tiny)
    return uniform.log_().neg_().clamp_min_(tiny).log_().neg_()


def act(of: Sizes, outputs: Tensor, noise: Tensor) -> Tensor:
    """Return argmax(logits + Gumbel noise), which is a sample.

    It needs no round trip to the host and no reshaping, as torch.multinomial would.
    """
    return (outputs + noise).argmax(-1)


def mode(of: Sizes, outputs: Tensor) -> Tensor:
    """Return the most likely choice."""
    return outputs.argmax(-1)


def always(of: Sizes, actions: Tensor) -> Tensor:
    """Return logits 0 and -inf, whose probabilities are 1 and 0."""
    chosen = one_hot(actions, of.sizes[0])
    return chosen.new_zeros(chosen.shape, dtype=torch.get_default_dtype()).masked_fill(~chosen, -torch.inf)


def log_prob(of: Sizes, outputs: Tensor, actions: Tensor) -> Tensor:
    """Return the logarithm of the choice's probability."""
    return functional.log_softmax(outputs, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


drawn_log_prob = log_prob


def kl(of: Sizes, old: Tensor, new: Tensor) -> Tensor:
    """Return the sum of p (log p - log p') over choices; old p, new p'."""
    old_log, new_log = functional.log_softmax(old, -1), functional.log_softmax(new, -1)
    return (old_log.exp() * (old_log - new_log)).sum(-1)


def fisher_product(of: Sizes, outputs: Tensor, tangents: Tensor) -> Tensor:
    """Multiply by the Fisher matrix of the logits, diag(p) - p p'."""
    probabilities = functional.softmax(outputs, -1)
    weighted = probabilities * tangents
    return weighted - probabilities * weighted.sum(-1, keepdim=True)


def encode(of: Sizes, actions: Tensor, dtype: Any) -> Tensor:
    """Return actions one-hot."""
    return one_hot(actions, of.sizes[0]).to(dtype)


def one_hot(actions: Tensor, choices: int) -> Tensor:
    """Return booleans ``[..., choice]``. Unlike torch's one_hot, this asks nothing: a compiled step may not ask."""
    return actions.unsqueeze(-1) == torch.arange(choices, device=actions.device)


def as_torch(of: Sizes, outputs: Tensor) -> Distribution:
    """Return ``Categorical``."""
    return Categorical(logits=outputs, validate_args=True)
