"""Several choices at once, independent of each other. Its outputs are the logits of the first, then of the second, ...

An action is ``[..., number of choices]``, as in Gymnasium's MultiDiscrete. Neighbours that choose among equally many
are computed together.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints

from metarl.distributions import categorical
from metarl.distributions.laws import Actions, Sizes

ACTIONS: Actions = "discrete"
BOUNDED = False
NONE = torch.Size()
fill_noise = categorical.fill_noise


def _groups(of: Sizes) -> list[tuple[int, int]]:
    """Return ``(how many, among how many each)`` for each run of choices among equally many."""
    return [(len(list(run)), size) for size, run in groupby(of.sizes)]


def _logits(of: Sizes, values: Tensor) -> list[Tensor]:
    """Split ``[..., sum of sizes]`` into ``[..., how many, among how many]``."""
    groups = _groups(of)
    parts = torch.split(values, [many * size for many, size in groups], dim=-1)
    return [part.reshape(*part.shape[:-1], *group) for part, group in zip(parts, groups, strict=True)]


def _choices(of: Sizes, actions: Tensor) -> tuple[Tensor, ...]:
    """Split ``[..., number of choices]`` in the same way, into ``[..., how many]``."""
    return torch.split(actions, [many for many, _ in _groups(of)], dim=-1)


def _total(each: Callable[..., Tensor], of: Sizes, *groups: Any) -> Tensor:
    """Return the sum over all choices of what the categorical distribution gives for each."""
    sums = [each(of, *group).sum(-1) for group in zip(*groups, strict=True)]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)


def head(of: Sizes) -> int:
    """Return the number of all logits."""
    return sum(of.sizes)


def log_stds(of: Sizes) -> int:
    """Return 0: there are none."""
    return 0


def action_shape(of: Sizes) -> tuple[int, ...]:
    """Return ``(number of choices,)``."""
    return (len(of.sizes),)


def act(of: Sizes, outputs: Tensor, noise: Tensor) -> Tensor:
    """Return a sample of each choice; the noise is Gumbel's."""
    return mode(of, outputs + noise)


def mode(of: Sizes, outputs: Tensor) -> Tensor:
    """Return the most likely choices."""
    return torch.cat([logits.argmax(-1) for logits in _logits(of, outputs)], dim=-1)


def always(of: Sizes, actions: Tensor) -> Tensor:
    """Return logits 0 and -inf, whose probabilities are 1 and 0."""
    chosen = encode(of, actions, torch.bool)
    return chosen.new_zeros(chosen.shape, dtype=torch.get_default_dtype()).masked_fill(~chosen, -torch.inf)


def log_prob(of: Sizes, outputs: Tensor, actions: Tensor) -> Tensor:
    """Return the logarithm of the probability of all choices together."""
    return _total(categorical.log_prob, of, _logits(of, outputs), _choices(of, actions))


drawn_log_prob = log_prob


def kl(of: Sizes, old: Tensor, new: Tensor) -> Tensor:
    """Return the sum of the choices' divergences."""
    return _total(categorical.kl, of, _logits(of, old), _logits(of, new))


def fisher_product(of: Sizes, outputs: Tensor, tangents: Tensor) -> Tensor:
    """Multiply by the Fisher matrix, which has one block for each choice."""
    pairs = zip(_logits(of, outputs), _logits(of, tangents), strict=True)
    return torch.cat([categorical.fisher_product(of, *pair).flatten(-2) for pair in pairs], dim=-1)


def encode(of: Sizes, actions: Tensor, dtype: Any) -> Tensor:
    """Return each choice one-hot, one after another."""
    runs = zip(_choices(of, actions), _groups(of), strict=True)
    return torch.cat([categorical.one_hot(chosen, size).flatten(-2) for chosen, (_, size) in runs], dim=-1).to(dtype)


def as_torch(of: Sizes, outputs: Tensor) -> Distribution:
    """Return ``Categoricals``."""
    return Categoricals(of.sizes, outputs)


class Categoricals(Distribution):
    """Independent ``Categorical`` distributions as one, of actions ``[..., number of choices]``.

    PyTorch has none whose choices differ in size. ``parts`` are the single ones.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # each part checks its own
    support = constraints.nonnegative_integer

    def __init__(self, sizes: tuple[int, ...], logits: Tensor) -> None:
        parts = torch.split(logits, list(sizes), dim=-1)
        self.parts: list[Any] = [Categorical(logits=part, validate_args=True) for part in parts]
        super().__init__(logits.shape[:-1], torch.Size([len(sizes)]), validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The most likely choices."""
        return torch.stack([part.mode for part in self.parts], dim=-1)

    def sample(self, sample_shape: Any = NONE) -> Tensor:
        """Draw choices ``[*sample_shape, ..., number of choices]``."""
        return torch.stack([part.sample(sample_shape) for part in self.parts], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of all choices together. Raises ValueError for numbers that are no choices."""
        return torch.stack([part.log_prob(one) for part, one in zip(self.parts, value.unbind(-1), strict=True)]).sum(0)

    def entropy(self) -> Tensor:
        """Return the sum of the entropies, in nats."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)
