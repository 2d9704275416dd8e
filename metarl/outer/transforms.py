"""Parts of a first-order outer update, each of which turns one step into another; ``chain`` joins them.

A step is one flat vector, to be added to the meta-parameters. It begins as minus the meta-gradient. What changes its
length (``Clip``) comes before an optimiser, schedules of the step size come after it, as in optax.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from metarl.numerics import adam_direction, adam_state
from metarl.outer.options import require_positive


class At(NamedTuple):
    """Where a step is taken."""

    params: Tensor
    """The meta-parameters as one vector."""
    progress: float
    """Fraction of the training that is done."""


State = dict[str, Any]


@runtime_checkable
class Transform(Protocol):
    """A frozen dataclass of options: a part of a chain."""

    def init(self, params: Tensor) -> State:
        """Return what is remembered before the first step: tensors and numbers by name."""

    def apply(self, step: Tensor, state: State, at: At) -> tuple[Tensor, State]:
        """Return the step and the state that follow, and change neither in place."""


@dataclass(frozen=True)
class Clip:
    """Shortens a step, and so the gradient where it comes first, to a norm."""

    norm: float = 1.0
    """Largest Euclidean norm over all meta-parameters together."""

    def __post_init__(self) -> None:
        require_positive(self, "norm")

    def init(self, params: Tensor) -> State:
        """Return an empty state."""
        return {}

    def apply(self, step: Tensor, state: State, at: At) -> tuple[Tensor, State]:
        """Scale the step by min(1, norm / its norm)."""
        # Not by a comparison that Python makes: it would wait for a GPU.
        return step * (self.norm / step.norm().clamp_min(self.norm)), state


@dataclass(frozen=True)
class AdamW:
    """Adam (arXiv 1412.6980, algorithm 1), with decoupled weight decay (arXiv 1711.05101, algorithm 2)."""

    learning_rate: float = 1e-3
    """Step size."""
    weight_decay: float = 0.0
    """Share of the meta-parameters that is taken away in each step, times the learning rate."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of their squares."""
    epsilon: float = 1e-8
    """Added to the root of that mean."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "epsilon")
        require_shares(self, "beta1", "beta2")
        require_decay(self.weight_decay)

    def init(self, params: Tensor) -> State:
        """Return the step count and the two moments, all zero."""
        return adam_state({"": params})

    def apply(self, step: Tensor, state: State, at: At) -> tuple[Tensor, State]:
        """Return Adam's step for minus the given one, and the moments."""
        direction, moments = adam_direction(state, -step, self.beta1, self.beta2, self.epsilon)
        if self.weight_decay:
            direction = direction + self.weight_decay * at.params
        return -self.learning_rate * direction, moments


@dataclass(frozen=True)
class Descent:
    """Gradient descent, with momentum and weight decay if wanted, in the form of ``torch.optim.SGD``."""

    learning_rate: float = 0.1
    """Step size."""
    momentum: float = 0.0
    """Share of the direction before that is added to the gradient."""
    weight_decay: float = 0.0
    """Share of the meta-parameters that is added to the gradient."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate")
        require_shares(self, "momentum")
        require_decay(self.weight_decay)

    def init(self, params: Tensor) -> State:
        """Return the direction before the first step, zero; nothing without momentum."""
        return {"direction": torch.zeros_like(params)} if self.momentum else {}

    def apply(self, step: Tensor, state: State, at: At) -> tuple[Tensor, State]:
        """Return the step of descent for minus the given one."""
        gradient = self.weight_decay * at.params - step if self.weight_decay else -step
        if not self.momentum:
            return -self.learning_rate * gradient, state
        direction = gradient + self.momentum * state["direction"]
        return -self.learning_rate * direction, {"direction": direction}


@dataclass(frozen=True)
class Torch:
    """Any optimiser of ``torch.optim`` that takes a gradient and keeps tensors, such as NAdam or RMSprop.

    Its state begins with its first step, so ``--compile`` cannot compile iterations with it; they run as usual.
    """

    optimiser: str
    """Its class's name."""
    options: dict[str, float | bool] = field(default_factory=dict)
    """Its arguments by name, such as ``{"lr": 1e-3}``."""

    def __post_init__(self) -> None:
        try:
            with torch.enable_grad():
                self.apply(torch.ones(2), {}, At(torch.zeros(2), 0.0))
        except Exception as error:  # torch's optimisers raise anything
            raise ValueError(f"torch.optim.{self.optimiser} takes no steps with {self.options}: {error}") from error

    def _made(self, params: Tensor) -> torch.optim.Optimizer:
        kind: Any = getattr(torch.optim, self.optimiser)
        made: torch.optim.Optimizer = kind([params], **self.options)
        return made

    def init(self, params: Tensor) -> State:
        """Return an empty state: torch's optimiser makes its own in the first step."""
        return {}

    def apply(self, step: Tensor, state: State, at: At) -> tuple[Tensor, State]:
        """Return the optimiser's step for minus the given one, as a gradient."""
        params = at.params.clone().requires_grad_()
        params.grad = -step
        optimiser = self._made(params)
        optimiser.state[params] = {
            name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()
        }
        optimiser.step()
        return params.detach() - at.params, dict(optimiser.state[params])


@dataclass(frozen=True)
class WarmUp:
    """Lengthens steps linearly to their full length: over the first updates, 1 / n, 2 / n, ..., 1."""

    updates: int
    """Number of updates until then."""

    def __post_init__(self) -> None:
        require_positive(self, "updates")

    def init(self, params: Tensor) -> State:
        """Return a count of zero."""
        return {"count": 0}

    def apply(self, step: Tensor, state: State, at: At) -> tuple[Tensor, State]:
        """Scale the step."""
        count = state["count"] + 1
        return step * _at_most_1(count / self.updates), {"count": count}


@dataclass(frozen=True)
class Linear:
    """Shortens steps linearly to nothing at the end of training."""

    end: float = 0.0
    """Share of the step size that is left at the end."""

    def __post_init__(self) -> None:
        require_shares(self, "end")

    def init(self, params: Tensor) -> State:
        """Return an empty state."""
        return {}

    def apply(self, step: Tensor, state: State, at: At) -> tuple[Tensor, State]:
        """Scale the step."""
        return step * (self.end + (1 - self.end) * (1 - at.progress)), state


@dataclass(frozen=True)
class Cosine:
    """Shortens steps along half a cosine (arXiv 1608.03983, eq. 5, without restarts), to nothing at the end."""

    updates: int | None = None
    """Number of updates until then. None: until the end of training, wherever a resumed run has moved that."""
    end: float = 0.0
    """Share of the step size that is left at the end."""

    def __post_init__(self) -> None:
        require_shares(self, "end")
        if self.updates is not None:
            require_positive(self, "updates")

    def init(self, params: Tensor) -> State:
        """Return a count of zero; nothing where training's own progress is used."""
        return {} if self.updates is None else {"count": 0}

    def apply(self, step: Tensor, state: State, at: At) -> tuple[Tensor, State]:
        """Scale the step."""
        if self.updates is None:
            return step * self._factor(at.progress), state
        count = state["count"]
        return step * self._factor(_at_most_1(count / self.updates)), {"count": count + 1}

    def _factor(self, share: Any) -> Any:
        wave = torch.cos(math.pi * share) if isinstance(share, Tensor) else math.cos(math.pi * share)
        return self.end + (1 - self.end) * (1 + wave) / 2


def _at_most_1(share: Any) -> Any:
    """Return the smaller of a share and 1. In compiled iterations it is a tensor."""
    return share.clamp_max(1.0) if isinstance(share, Tensor) else min(1.0, share)


def require_shares(options: Any, *names: str) -> None:
    """Raise ValueError unless all named options are at least 0 and less than 1."""
    for name in names:
        if not 0 <= getattr(options, name) < 1:
            raise ValueError(f"{type(options).__name__}: {name}={getattr(options, name)} must be in [0, 1)")


def require_decay(weight_decay: float) -> None:
    """Raise ValueError for a negative weight decay."""
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay={weight_decay} must not be negative")
