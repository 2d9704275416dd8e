"""Outer updates: how the meta-parameters move. TRPO, ProMP (PPO), Adam and SGD, for any learner.

Each processes the tasks in groups (``chunks``), one after another, whose sums are those of the whole batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl import adapted, graphs, objectives, parallel
from metarl.adapted import Linearised
from metarl.numerics import adam_state, adam_step, conjugate_gradient, flatten, sum_of, unflatten
from metarl.types import Algorithm, Experience, Learner, Outer, Params, Spec, Update


@dataclass(frozen=True)
class TRPO:
    """Trust-region policy optimisation of the adapted policies (arXiv 1502.05477, as in MAML, arXiv 1703.03400)."""

    max_kl: float = 0.01
    """Bound on the mean KL divergence between the adapted policies before and after the step, in nats."""
    cg_iterations: int = 10
    """Conjugate-gradient iterations for the natural gradient."""
    damping: float = 1e-5
    """Added to the diagonal of the KL's Hessian."""
    backtrack: float = 0.8
    """Factor by which the line search shortens the step."""
    max_backtracks: int = 15
    """Step lengths that the line search tries before it gives up and leaves the parameters alone."""
    chunks: int | None = None
    """Groups of tasks handled one after another; by default as many as keep a group in a CPU's caches, 1 on a GPU."""
    keep_graphs: bool = True
    """Keep every group's graph for the whole update (fast); or rebuild it each time: memory for one group only."""

    def __post_init__(self) -> None:
        _require_positive(self, "max_kl", "cg_iterations", "backtrack", "max_backtracks")
        if self.damping < 0 or self.backtrack >= 1:
            raise ValueError(f"damping={self.damping} must not be negative, backtrack={self.backtrack} be below 1")
        _require_chunks(self.chunks)

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner without policies, or whose adaptation cannot be differentiated."""
        adapted.require_policies(learner)

    def init(self, params: Params) -> dict[str, Any]:
        """TRPO keeps nothing from one update to the next."""
        return {}

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take the largest acceptable step along the natural gradient.

        Metrics: ``outer/kl`` and ``outer/surrogate`` (the fall of the surrogate loss) at the new parameters;
        ``outer/accepted`` is 0 where no step was acceptable and the parameters stay as they were.

        Raises:
            ValueError: the data are not rollouts, or chunks exceeds the number of tasks.
        """
        # How far training has come means nothing here, and would be another number in each iteration's graph.
        parts = adapted.split(experience._replace(progress=0.0), self.chunks)
        found = graphs.capture("TRPO's products", partial(self._direction, learner), params, parts)
        # A GPU is waited for whenever a number is read: once here, and once for each length that is tried.
        start, norm, finite = found.numbers.tolist()
        if not finite:
            return Update(params, state, {}, finite=False)
        moved, metrics = self._line_search(learner, params, found.full_step, parts, start, found.old_outputs)
        return Update(moved, state, metrics | {"outer/gradient_norm": norm})

    def _direction(self, learner: Learner, params: Params, parts: list[Experience]) -> "_Direction":
        def linearise(part: Experience) -> Linearised:
            return adapted.linearise(learner, params, part)

        kept = parallel.each(linearise, parts) if self.keep_graphs else None

        def lines() -> Iterable[Linearised]:
            return kept if kept is not None else map(linearise, parts)

        def product(vector: Tensor) -> Tensor:
            return adapted.kl_hessian_product(learner, lines(), vector) + self.damping * vector

        surrogate, gradient, old_outputs = adapted.surrogate_gradient(lines())
        direction, residual = conjugate_gradient(product, -gradient, self.cg_iterations)
        # The residual tells the direction's image, which would cost one more product.
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
        judge, origin = partial(adapted.surrogate_and_kl, learner), flatten(params.values())
        for attempt in range(self.max_backtracks):
            candidate = unflatten(origin + self.backtrack**attempt * full_step, params)
            surrogate, kl = graphs.capture("TRPO's steps", judge, candidate, parts, old).tolist()
            if surrogate < start and kl <= self.max_kl:
                return candidate, _step_metrics(start - surrogate, kl, attempt + 1, accepted=True)
        return params, _step_metrics(0.0, 0.0, self.max_backtracks, accepted=False)


class _Direction(NamedTuple):
    """Where to, from here."""

    numbers: Tensor  # [3] the surrogate loss, its gradient's norm, whether that is finite
    full_step: Tensor  # flat; as long as the quadratic model of the KL allows
    old_outputs: list[Tensor]  # of each group of tasks


def _step_length(curvature: Tensor, max_kl: float) -> Tensor:
    """Length at which the quadratic model of the KL reaches its bound."""
    return (2 * max_kl / curvature.clamp_min(torch.finfo(curvature.dtype).tiny)).sqrt()


def _step_metrics(gain: float, kl: float, tried: int, accepted: bool) -> dict[str, float]:
    return {
        "outer/surrogate": gain,
        "outer/kl": kl,
        "outer/line_search_steps": float(tried),
        "outer/accepted": float(accepted),
    }


@dataclass(frozen=True)
class ProMP:
    """Proximal meta-policy search (arXiv 1810.06784): PPO's clipped ratio, and a penalty on the inner steps' KL."""

    learning_rate: float = 1e-3
    """Adam's step size."""
    clip: float = 0.3
    """How far the adapted policies' probability ratio may move from 1."""
    epochs: int = 5
    """Gradient steps on one iteration's data."""
    inner_kl_coefficient: float = 5e-4
    """Initial weight of the KL between the policies that acted before each inner step and the present ones."""
    inner_kl_target: float = 0.01
    """The weight is halved where that KL ends below target / 1.5, and doubled where above target * 1.5."""
    chunks: int | None = None
    """Groups of tasks handled one after another; by default as many as keep a group in a CPU's caches, 1 on a GPU."""

    def __post_init__(self) -> None:
        _require_positive(self, "learning_rate", "clip", "epochs", "inner_kl_coefficient", "inner_kl_target")
        _require_chunks(self.chunks)

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner without policies, or whose inner steps cannot be told apart."""
        adapted.require_policies(learner)
        adapted.require_inner_steps(learner)

    def init(self, params: Params) -> dict[str, Any]:
        """Adam's moments, and no penalty weights yet: there is one for each inner step of the first experience."""
        return adam_state(params) | {"coefficients": None}

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take ``epochs`` Adam steps on the clipped surrogate plus the inner-KL penalty (the paper's eq. 14).

        Raises:
            ValueError: the data are not rollouts, or chunks exceeds the number of tasks.
        """
        parts = adapted.split(experience, self.chunks)
        with torch.no_grad():
            old = [adapted.policy_outputs(learner, params, part) for part in parts]
        coefficients = state["coefficients"]
        if coefficients is None:
            coefficients = state["first"].new_full((len(experience.supports),), self.inner_kl_coefficient)

        def loss(candidate: Params, index: int) -> Tensor:
            part, outputs = parts[index], adapted.policy_outputs(learner, candidate, parts[index])
            query = adapted.rollout_of(part.query)
            surrogate = objectives.clipped_surrogate(learner.spec.kind, outputs[-1], query, self.clip).sum()
            return surrogate + torch.dot(coefficients, _inner_kls(learner, old[index], outputs, part))

        moved, moments = params, {name: state[name] for name in ("count", "first", "second")}
        checked = list[Tensor]()
        for _ in range(self.epochs):
            gradient = adapted.mean_gradient(loss, moved, parts)
            checked.append(torch.isfinite(gradient).all())
            moved, moments = adam_step(moved, moments, gradient, self.learning_rate)
        inner_kls, measured = self._measure(learner, params, moved, parts, old)
        # A GPU is waited for whenever a number is read: once, here.
        start, surrogate, kl, inner_kl, *finite = torch.stack([*measured, *checked]).tolist()
        if not all(finite):
            return Update(params, state, {}, finite=False)
        metrics = {
            "outer/surrogate": start - surrogate,
            "outer/kl": kl,
            "outer/inner_kl": inner_kl / max(len(inner_kls), 1),
        }
        return Update(moved, moments | {"coefficients": self._adapt(coefficients, inner_kls)}, metrics)

    def _measure(
        self, learner: Learner, params: Params, moved: Params, parts: list[Experience], old: list[list[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the inner KLs; and the surrogate before and after, the KL, and the inner KLs' sum."""
        with torch.no_grad():
            sums = [
                _inner_kls(learner, before, adapted.policy_outputs(learner, moved, part), part)
                for before, part in zip(old, parts, strict=True)
            ]
        inner_kls = sum_of(sums) / sum(len(part.descriptors) for part in parts)
        queries = [before[-1] for before in old]
        start, _ = adapted.surrogate_and_kl(learner, params, parts, queries)
        surrogate, kl = adapted.surrogate_and_kl(learner, moved, parts, queries)
        return inner_kls, [start, surrogate, kl, inner_kls.sum()]

    def _adapt(self, coefficients: Tensor, inner_kls: Tensor) -> Tensor:
        coefficients = torch.where(inner_kls < self.inner_kl_target / 1.5, coefficients / 2, coefficients)
        return torch.where(inner_kls > self.inner_kl_target * 1.5, coefficients * 2, coefficients)


def _inner_kls(learner: Learner, old: list[Tensor], new: list[Tensor], part: Experience) -> Tensor:
    """KL of the policies before each inner step from those that acted there, summed over tasks: ``[inner step]``."""
    triples = zip(old[:-1], new[:-1], part.supports, strict=True)
    kls = [adapted.mean_kl(learner, before, after, support).sum() for before, after, support in triples]
    return torch.stack(kls) if kls else new[-1].new_zeros(0)


@dataclass(frozen=True)
class Adam:
    """Adam on the meta-loss (arXiv 1412.6980); for control that is a policy gradient through adaptation."""

    learning_rate: float = 1e-3
    """Step size."""
    epochs: int = 1
    """Steps on one iteration's data; several of them want a meta-loss that is clipped, such as RL^2's (PPO)."""
    chunks: int | None = None
    """Groups of tasks handled one after another; by default as many as keep a group in a CPU's caches, 1 on a GPU."""

    def __post_init__(self) -> None:
        _require_positive(self, "learning_rate", "epochs")
        _require_chunks(self.chunks)

    def check(self, learner: Learner) -> None:
        """Raise ValueError for meta-parameters of which some are running averages."""
        if learner.averages:
            raise ValueError(
                "the meta-parameters hold running averages (Reptile's --algorithm.carry-moments), which adam would "
                "not average: use sgd, or --algorithm.no-carry-moments"
            )

    def init(self, params: Params) -> dict[str, Any]:
        """Adam's moments, all zero."""
        return adam_state(params)

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take ``epochs`` steps; the metrics are those before the first.

        Raises:
            ValueError: chunks exceeds the number of tasks, or the meta-parameters hold running averages.
        """
        self.check(learner)
        moved, moments, told = params, state, dict[str, Tensor | float]()
        for _ in range(self.epochs):
            gradient, metrics = _meta_gradient(learner, moved, experience, self.chunks)
            told = told or metrics | {"outer/gradient_norm": gradient.norm()}
            if not torch.isfinite(gradient).all():
                return Update(params, state, told, finite=False)
            moved, moments = adam_step(moved, moments, gradient, self.learning_rate)
        return Update(moved, moments, told)


@dataclass(frozen=True)
class SGD:
    """Gradient descent on the meta-loss; with Reptile, a step towards the mean of the adapted parameters."""

    learning_rate: float = 1.0
    """Step size; with Reptile, 1 goes all the way."""
    anneal: bool = True
    """Let the step size fall linearly, to 0 at the end of training."""
    chunks: int | None = None
    """Groups of tasks handled one after another; by default as many as keep a group in a CPU's caches, 1 on a GPU."""

    def __post_init__(self) -> None:
        _require_positive(self, "learning_rate")
        _require_chunks(self.chunks)

    def init(self, params: Params) -> dict[str, Any]:
        """Nothing is kept from one update to the next."""
        return {}

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Take one step.

        Raises:
            ValueError: chunks exceeds the number of tasks.
        """
        gradient, metrics = _meta_gradient(learner, params, experience, self.chunks)
        if not torch.isfinite(gradient).all():
            return Update(params, state, metrics, finite=False)
        step_size = self.learning_rate * (1 - experience.progress if self.anneal else 1.0)
        moved = unflatten(flatten(params.values()) - step_size * gradient, params)
        told = {"outer/gradient_norm": gradient.norm(), "outer/step_size": step_size}
        return Update(moved, state, metrics | told)


def _meta_gradient(
    learner: Learner, params: Params, experience: Experience, chunks: int | None
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Flat gradient of the mean meta-loss, and the means of its metrics."""
    parts = adapted.split(experience, chunks)
    shares = [len(part.descriptors) / len(experience.descriptors) for part in parts]
    metrics: dict[str, Tensor | float] = {}

    def loss(candidate: Params, index: int) -> Tensor:
        mean, told = learner.meta_loss(candidate, parts[index])
        for name, value in {"outer/loss": mean.detach(), **told}.items():
            metrics[name] = metrics.get(name, 0.0) + shares[index] * value
        return mean * len(parts[index].descriptors)

    return adapted.mean_gradient(loss, params, parts), metrics


OUTER_UPDATES: dict[str, type[Any]] = {"trpo": TRPO, "promp": ProMP, "adam": Adam, "sgd": SGD}
"""Outer updates by the name that users type."""


def default_outer(algorithm: Algorithm, spec: Spec) -> Outer:
    """Return the outer update that an algorithm states by ``default_outer()``; else TRPO, or Adam for examples."""
    stated = getattr(algorithm, "default_outer", None)
    if stated is not None:
        outer: Outer = stated()
        return outer
    return TRPO() if spec.control else Adam()


def _require_positive(options: Any, *names: str) -> None:
    for name in names:
        if not getattr(options, name) > 0:
            raise ValueError(f"{type(options).__name__}: {name}={getattr(options, name)} must be positive")


def _require_chunks(chunks: int | None) -> None:
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks={chunks}: give at least one group of tasks, or leave it out")
