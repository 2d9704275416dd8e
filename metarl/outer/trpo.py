"""Trust-region policy optimisation of the adapted policies."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl.numerics import conjugate_gradient, flatten, unflatten
from metarl.outer import adapted
from metarl.outer.adapted import Linearised
from metarl.outer.objective import require_surrogate
from metarl.outer.options import require_chunks, require_positive
from metarl.speed import each_group, run_captured
from metarl.types import Experience, Learner, Params, Update, held_by, holding


@dataclass(frozen=True)
class TRPO:
    """TRPO on the adapted policies: trust-region policy optimisation (arXiv 1502.05477), as in MAML's paper."""

    max_kl: float = 0.01
    """Bound on the mean KL divergence between the adapted policies before and after the step, in nats."""
    cg_iterations: int = 10
    """Conjugate-gradient iterations for the natural gradient."""
    damping: float = 1e-5
    """Damping: added to the diagonal of the KL's Hessian."""
    backtrack: float = 0.8
    """Factor by which the line search shortens the step."""
    max_backtracks: int = 15
    """Maximum number of step lengths that the line search tries. If none is accepted, the parameters do not change."""
    chunks: int | None = None
    """Number of groups of tasks, processed one after another. By default, groups fit a CPU's caches; 1 on a GPU."""
    keep_graphs: bool = True
    """Keep the graphs of all groups during the update (fast). False rebuilds them each time, and needs memory for one
    group only."""

    def __post_init__(self) -> None:
        require_positive(self, "max_kl", "cg_iterations", "backtrack", "max_backtracks")
        if self.damping < 0 or self.backtrack >= 1:
            raise ValueError(f"damping={self.damping} must not be negative, backtrack={self.backtrack} be below 1")
        require_chunks(self.chunks)

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner without policies, with its own objective, or not differentiable."""
        adapted.require_policies(learner)
        require_surrogate(learner, "trpo")

    def init(self, params: Params) -> dict[str, Any]:
        """Return an empty state: TRPO keeps nothing between updates."""
        return {}

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take the largest accepted step along the natural gradient.

        Metrics at the new parameters: ``outer/kl``, and ``outer/surrogate``, the decrease of the surrogate loss.
        ``outer/accepted`` is 0 if no step was accepted and the parameters did not change.

        Raises:
            ValueError: the data are not rollouts, or chunks exceeds the number of tasks.
        """
        # TRPO does not use the progress of training. As a constant, it lets every iteration reuse one captured graph.
        parts = adapted.split(replace(experience, progress=0.0), self.chunks)
        direction = run_captured("TRPO's products", partial(self._direction, learner), held_by(learner), params, parts)
        # Reading a number waits for the GPU: once here, and once for each step length of the line search.
        start, norm, finite = direction.numbers.tolist()
        if not finite:
            return Update(params, state, {}, finite=False)
        moved, metrics = self._line_search(learner, params, direction.full_step, parts, start, direction.old_outputs)
        return Update(moved, state, metrics | {"outer/gradient_norm": norm})

    # Buffers are arguments, too: a captured graph reads anything else as it was when it was captured.
    def _direction(self, learner: Learner, held: Params, params: Params, parts: list[Experience]) -> "_Direction":
        learner = holding(learner, held)

        def linearise(part: Experience) -> Linearised:
            return adapted.linearise(learner, params, part)

        kept = each_group(linearise, parts) if self.keep_graphs else None

        def lines() -> Iterable[Linearised]:
            return kept if kept is not None else map(linearise, parts)

        def product(vector: Tensor) -> Tensor:
            return adapted.kl_hessian_product(learner, lines(), vector) + self.damping * vector

        surrogate, gradient, old_outputs = adapted.surrogate_gradient(lines())
        direction, residual = conjugate_gradient(product, -gradient, self.cg_iterations)
        # H d = -gradient - residual, so the curvature d^T H d needs no further product with the Hessian H.
        full_step = direction * _step_length(direction @ (-gradient - residual), self.max_kl)
        numbers = torch.stack([surrogate, gradient.norm(), torch.isfinite(gradient).all()])
        return _Direction(numbers, full_step, old_outputs)

    def _line_search(
        self,
        learner: Learner,
        params: Params,
        full_step: Tensor,
        parts: list[Experience],
        start: float,
        old: list[Tensor],
    ) -> tuple[Params, dict[str, float]]:
        def judge(held: Params, candidate: Params, parts: list[Experience], old: list[Tensor]) -> Tensor:
            return adapted.surrogate_and_kl(holding(learner, held), candidate, parts, old)

        held, origin = held_by(learner), flatten(params.values())
        # Accept the first step that improves the surrogate within the bound on the KL (arXiv 1502.05477, appendix C).
        for attempt in range(self.max_backtracks):
            candidate = unflatten(origin + self.backtrack**attempt * full_step, params)
            surrogate, kl = run_captured("TRPO's steps", judge, held, candidate, parts, old).tolist()
            if surrogate < start and kl <= self.max_kl:
                return candidate, _step_metrics(start - surrogate, kl, attempt + 1, accepted=True)
        return params, _step_metrics(0.0, 0.0, self.max_backtracks, accepted=False)


class _Direction(NamedTuple):
    """The natural-gradient step, before the line search."""

    numbers: Tensor  # [3] surrogate loss, norm of its gradient, whether the gradient is finite
    full_step: Tensor  # flat; the longest step that the quadratic model of the KL allows
    old_outputs: list[Tensor]  # for each group of tasks


def _step_length(curvature: Tensor, max_kl: float) -> Tensor:
    """Return the length s at which the quadratic model of the KL, s^2 curvature / 2, reaches max_kl."""
    return (2 * max_kl / curvature.clamp_min(torch.finfo(curvature.dtype).tiny)).sqrt()


def _step_metrics(gain: float, kl: float, tried: int, accepted: bool) -> dict[str, float]:
    return {
        "outer/surrogate": gain,
        "outer/kl": kl,
        "outer/line_search_steps": float(tried),
        "outer/accepted": float(accepted),
    }
