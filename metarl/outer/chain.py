"""First-order outer updates, put together of parts: the meta-gradient, and what becomes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tyro.conf import Suppress

from metarl.numerics import flatten, unflatten
from metarl.outer.meta_loss import meta_gradient
from metarl.outer.options import require_chunks, require_no_averages, require_positive
from metarl.outer.transforms import AdamW, At, Clip, Cosine, Descent, Linear, Torch, Transform, WarmUp
from metarl.types import Experience, Learner, Params, Update

Part = Clip | AdamW | Descent | Torch | WarmUp | Linear | Cosine | Transform
"""Those that a run folder records by their options, and any other."""


@dataclass(frozen=True)
class Chain:
    """Follow the meta-gradient in steps that several parts make, one after another; see ``chain``."""

    parts: Suppress[tuple[Part, ...]] = (AdamW(),)
    """What becomes of the meta-gradient, in this order."""
    epochs: int = 1
    """Steps on one iteration's data. Use more than 1 only with a clipped meta-loss, such as RL^2's (PPO)."""
    chunks: int | None = None
    """Number of groups of tasks, processed one after another. By default, groups fit a CPU's caches; 1 on a GPU."""

    def __post_init__(self) -> None:
        if wrong := [part for part in self.parts if isinstance(part, type) or not isinstance(part, Transform)]:
            raise ValueError(f"{wrong[0]!r} is no part of a chain: expected one with init and apply, such as AdamW()")
        if not self.parts:
            raise ValueError("a chain needs a part: without any, there is no step size; try AdamW()")
        require_positive(self, "epochs")
        require_chunks(self.chunks)

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner with running averages among its meta-parameters."""
        require_no_averages(learner, "a chain")

    def init(self, params: Params) -> dict[str, Any]:
        """Return what the parts remember, each under its place in the chain."""
        vector = flatten(params.values())
        return {f"{place}.{name}": value for place, part in enumerate(self.parts) for name, value in
                part.init(vector).items()}  # fmt: skip

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take ``epochs`` steps. The metrics are those before the first step.

        Raises:
            ValueError: chunks exceeds the number of tasks, or the meta-parameters hold running averages.
        """
        self.check(learner)
        placed = [(f"{place}.", part) for place, part in enumerate(self.parts)]
        return descended(placed, learner, params, state, experience, self.epochs, self.chunks)


def chain(*parts: Part, epochs: int = 1, chunks: int | None = None) -> Chain:
    """Return a first-order outer update made of parts, such as ``chain(Clip(1.0), AdamW(1e-3), Cosine())``.

    The step begins as minus the meta-gradient, and each part turns it into the next. At least one part must bring a
    step size.

    Raises:
        ValueError: there are no parts, or something else is among them.
    """
    return Chain(parts, epochs, chunks)


def descended(
    parts: Sequence[tuple[str, Transform]],
    learner: Learner,
    params: Params,
    state: dict[str, Any],
    experience: Experience,
    epochs: int = 1,
    chunks: int | None = None,
) -> Update:
    """Take steps by parts. Each finds its state under the names that begin with its prefix."""
    vector, kept = flatten(params.values()), dict(state)
    metrics: dict[str, Tensor | float] = {}
    for _ in range(epochs):
        gradient, found = meta_gradient(learner, unflatten(vector, params), experience, chunks)
        metrics = metrics or found | {"outer/gradient_norm": gradient.norm()}
        if not torch.isfinite(gradient).all():
            return Update(params, state, metrics, finite=False)
        step, at = -gradient, At(vector, experience.progress)
        for prefix, part in parts:
            own = {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}
            step, own = part.apply(step, own, at)
            kept |= {prefix + name: value for name, value in own.items()}
        vector = vector + step
    return Update(unflatten(vector, params), kept, metrics)
