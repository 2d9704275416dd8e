"""Adam and gradient descent on the meta-loss, for any learner: the first-order updates of the command line."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from metarl.numerics import adam_state, flatten, unflatten
from metarl.outer.chain import descended
from metarl.outer.meta_loss import meta_gradient
from metarl.outer.options import require_chunks, require_no_averages, require_positive
from metarl.outer.transforms import AdamW, At, Clip, Cosine, Linear, Transform, require_decay
from metarl.types import Experience, Learner, Params, Update

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Adam:
    """Adam on the meta-loss (arXiv 1412.6980). For control, this is a policy gradient through adaptation.

    ``chain`` puts together others, such as with a warm-up.
    """

    learning_rate: float = 1e-3
    """Step size."""
    epochs: int = 1
    """Gradient steps on one iteration's data. Use more than 1 only with a clipped meta-loss, such as RL^2's (PPO)."""
    chunks: int | None = None
    """Number of groups of tasks, processed one after another. By default, groups fit a CPU's caches; 1 on a GPU."""
    clip: float | None = None
    """Largest norm of the meta-gradient; longer ones are shortened to it. None: any."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW, arXiv 1711.05101): each step also takes this share of the meta-parameters away,
    times the step size."""
    schedule: Schedule = "constant"
    """Step size over training: constant, or falling to 0 at its end, linearly or along half a cosine."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "epochs")
        require_chunks(self.chunks)
        require_clip(self.clip)
        require_decay(self.weight_decay)
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule={self.schedule!r}: expected one of {', '.join(get_args(Schedule))}")

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner with running averages among its meta-parameters."""
        require_no_averages(learner, "adam")

    def init(self, params: Params) -> dict[str, Any]:
        """Return Adam's moments, all zero."""
        return adam_state(params)

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take ``epochs`` steps. The metrics are those before the first step.

        Raises:
            ValueError: chunks exceeds the number of tasks, or the meta-parameters hold running averages.
        """
        self.check(learner)
        parts: list[Transform] = [AdamW(self.learning_rate, self.weight_decay)]
        if self.clip is not None:
            parts.insert(0, Clip(self.clip))
        if self.schedule != "constant":
            parts.append(Linear() if self.schedule == "linear" else Cosine())
        # Only Adam remembers anything, so its state needs no prefix.
        named = [("", part) for part in parts]
        return descended(named, learner, params, state, experience, self.epochs, self.chunks)


@dataclass(frozen=True)
class SGD:
    """Gradient descent on the meta-loss. With Reptile, a step towards the mean of the adapted parameters."""

    learning_rate: float = 1.0
    """Step size. With Reptile, 1 moves all the way to the mean of the adapted parameters."""
    anneal: bool = True
    """Decrease the step size linearly to 0 at the end of training."""
    chunks: int | None = None
    """Number of groups of tasks, processed one after another. By default, groups fit a CPU's caches; 1 on a GPU."""
    clip: float | None = None
    """Largest norm of the meta-gradient; longer ones are shortened to it. None: any."""
    weight_decay: float = 0.0
    """Share of the meta-parameters that is added to the meta-gradient."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate")
        require_chunks(self.chunks)
        require_clip(self.clip)
        require_decay(self.weight_decay)

    def check(self, learner: Learner) -> None:
        """Raise ValueError where clipping or weight decay would spoil running averages among the meta-parameters."""
        if self.clip is not None or self.weight_decay:
            require_no_averages(learner, "sgd with clip or weight_decay")

    def init(self, params: Params) -> dict[str, Any]:
        """Return an empty state: SGD keeps nothing between updates."""
        return {}

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take one step.

        Raises:
            ValueError: chunks exceeds the number of tasks.
        """
        gradient, metrics = meta_gradient(learner, params, experience, self.chunks)
        if not torch.isfinite(gradient).all():
            return Update(params, state, metrics, finite=False)
        step_size = self.learning_rate * (1 - experience.progress if self.anneal else 1.0)
        metrics |= {"outer/gradient_norm": gradient.norm(), "outer/step_size": step_size}
        vector = flatten(params.values())
        if self.clip is not None:
            gradient, _ = Clip(self.clip).apply(gradient, {}, At(vector, experience.progress))
        if self.weight_decay:
            gradient = gradient + self.weight_decay * vector
        moved = unflatten(vector - step_size * gradient, params)
        return Update(moved, state, metrics)


def require_clip(clip: float | None) -> None:
    """Raise ValueError for a norm that is not positive. None (the default) is allowed."""
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip} must be positive")
