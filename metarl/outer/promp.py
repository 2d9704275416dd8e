"""Proximal meta-policy search: PPO's clipped surrogate on adapted policies."""

from dataclasses import dataclass
from math import inf
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metarl import objectives
from metarl.numerics import adam_state, adam_step
from metarl.outer import adapted
from metarl.outer.objective import require_surrogate
from metarl.outer.options import require_chunks, require_positive
from metarl.speed import ranks
from metarl.types import Experience, Learner, Params, Update, rollout_of

OverSteps = Literal["mean", "sum"]


@dataclass(frozen=True)
class ProMP:
    """ProMP, proximal meta-policy search (arXiv 1810.06784): PPO's clipping plus a KL penalty on the inner steps."""

    learning_rate: float = 1e-3
    """Adam's step size."""
    clip: float = 0.3
    """Clip range: the adapted policies' probability ratio is clipped to [1 - clip, 1 + clip]."""
    epochs: int = 5
    """Gradient steps on one iteration's data."""
    inner_kl_coefficient: float = 5e-4
    """Initial weight of the KL penalty. The KL is from the policies that sampled each support rollout to the current
    policies before that inner step. With 0, there is no penalty: PPO's clipping alone."""
    inner_kl_adaptive: bool = False
    """Adapt the weight of each inner step: halve it if its KL ends below inner_kl_target / 1.5, double it if above
    inner_kl_target * 1.5. The paper's code keeps it constant, except for random dynamics."""
    inner_kl_target: float = 0.01
    """Target of that KL, if the weight adapts."""
    inner_kl_over_steps: OverSteps = "mean"
    """How the penalties of several inner steps are put together: their mean, as in the paper's code, or their sum, as
    when the paper's equation is applied to each step."""
    chunks: int | None = None
    """Number of groups of tasks, processed one after another. By default, groups fit a CPU's caches; 1 on a GPU."""

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "clip", "epochs", "inner_kl_target")
        if not 0 <= self.inner_kl_coefficient < inf:
            raise ValueError(f"inner_kl_coefficient={self.inner_kl_coefficient}: expected at least 0, and finite")
        if self.inner_kl_adaptive and self.inner_kl_coefficient == 0:
            raise ValueError("inner_kl_adaptive doubles or halves the weight, and 0 stays 0: give it another one")
        require_chunks(self.chunks)
        if self.inner_kl_over_steps not in get_args(OverSteps):
            raise ValueError(
                f"inner_kl_over_steps={self.inner_kl_over_steps!r}: expected one of {', '.join(get_args(OverSteps))}"
            )

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner without policies, with its own objective, or without inner steps."""
        adapted.require_policies(learner)
        adapted.require_inner_steps(learner)
        require_surrogate(learner, "promp")

    def init(self, params: Params) -> dict[str, Any]:
        """Return Adam's moments. The first update sets the penalty weights, one for each inner step."""
        return adam_state(params) | {"coefficients": None}

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take ``epochs`` Adam steps on the clipped surrogate plus the inner-KL penalty (the paper's eq. 14).

        Raises:
            ValueError: the data are not rollouts, or chunks exceeds the number of tasks.
        """
        parts, steps = adapted.split(experience, self.chunks), len(experience.supports)
        with torch.no_grad():
            old = [adapted.policy_outputs(learner, params, part) for part in parts]
        coefficients = state["coefficients"]
        if coefficients is None:
            coefficients = state["first"].new_full((steps,), self.inner_kl_coefficient)
        weights = coefficients / max(steps, 1) if self.inner_kl_over_steps == "mean" else coefficients

        def loss(candidate: Params, index: int) -> Tensor:
            part, outputs = parts[index], adapted.policy_outputs(learner, candidate, parts[index])
            query = rollout_of(part.query)
            surrogate = objectives.clipped_surrogate(learner.spec.distribution, outputs[-1], query, self.clip).sum()
            return surrogate + torch.dot(weights, _inner_kls(learner, old[index], outputs, part))

        moved, moments = params, {name: state[name] for name in ("count", "first", "second")}
        checked = list[Tensor]()
        for _ in range(self.epochs):
            gradient = adapted.mean_gradient(loss, moved, parts)
            checked.append(torch.isfinite(gradient).all())
            moved, moments = adam_step(moved, moments, gradient, self.learning_rate)
        inner_kls, measured = self._measure(learner, params, moved, parts, old)
        # Reading a number waits for the GPU, so all of them are read at once.
        start, surrogate, kl, inner_kl, *finite = torch.stack([*measured, *checked]).tolist()
        if not all(finite):
            return Update(params, state, {}, finite=False)
        metrics = {
            "outer/surrogate": start - surrogate,
            "outer/kl": kl,
            "outer/inner_kl": inner_kl / max(steps, 1),
        }
        following = self._adapt(coefficients, inner_kls) if self.inner_kl_adaptive else coefficients
        return Update(moved, moments | {"coefficients": following}, metrics)

    def _measure(
        self, learner: Learner, params: Params, moved: Params, parts: list[Experience], old: list[list[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the inner KLs, and a list: surrogate before and after the update, KL, and sum of inner KLs."""
        with torch.no_grad():
            sums = [
                (_inner_kls(learner, before, adapted.policy_outputs(learner, moved, part), part),)
                for before, part in zip(old, parts, strict=True)
            ]
        count = sum(len(part.descriptors) for part in parts)
        (total,), tasks = ranks.sums(sums, count, "the inner steps' KL")
        inner_kls = total / tasks
        queries = [before[-1] for before in old]
        start, _ = adapted.surrogate_and_kl(learner, params, parts, queries)
        surrogate, kl = adapted.surrogate_and_kl(learner, moved, parts, queries)
        return inner_kls, [start, surrogate, kl, inner_kls.sum()]

    def _adapt(self, coefficients: Tensor, inner_kls: Tensor) -> Tensor:
        # The rule of PPO's adaptive KL penalty (arXiv 1707.06347, sec. 4).
        coefficients = torch.where(inner_kls < self.inner_kl_target / 1.5, coefficients / 2, coefficients)
        return torch.where(inner_kls > self.inner_kl_target * 1.5, coefficients * 2, coefficients)


def _inner_kls(learner: Learner, old: list[Tensor], new: list[Tensor], part: Experience) -> Tensor:
    """Return the KL from the old to the new policies before each inner step, summed over tasks, ``[inner step]``."""
    triples = zip(old[:-1], new[:-1], part.supports, strict=True)
    kls = [adapted.mean_kl(learner, before, after, support).sum() for before, after, support in triples]
    return torch.stack(kls) if kls else new[-1].new_zeros(0)
