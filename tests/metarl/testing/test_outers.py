"""The contract of outer updates: each case breaks one promise of an update that keeps the others."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import testing
from metarl.algorithms.protonet import ProtoNet
from metarl.algorithms.reptile import Reptile
from metarl.numerics import flatten, unflatten
from metarl.outer.adapted import split
from metarl.outer.gradient import SGD, Adam, meta_gradient
from metarl.outer.trpo import TRPO
from metarl.testing.checks import ContractError
from metarl.testing.findings import Outcome
from metarl.testing.samples import small_algorithm, small_family
from metarl.types import Experience, Learner, Params, Update

LINES, POINTS = small_family("regression"), small_family("continuous")


def failures(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return what was told by the checks that failed."""
    return {outcome.check: "\n".join(outcome.messages) for outcome in outcomes if outcome.verdict == "FAILED"}


@dataclass(frozen=True)
class Descent:
    """Gradient descent with momentum."""

    rate: float = 0.1

    def init(self, params: Params) -> dict[str, Any]:
        return {"velocity": torch.zeros_like(flatten(params.values())), "count": 0}

    def gradient(self, learner: Learner, params: Params, experience: Experience) -> Any:
        return meta_gradient(learner, params, experience)

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        gradient, metrics = self.gradient(learner, params, experience)
        if not torch.isfinite(gradient).all():
            return Update(params, state, metrics, finite=False)
        velocity = 0.5 * state["velocity"] - self.rate * gradient
        moved = unflatten(flatten(params.values()) + velocity, params)
        return Update(moved, {"velocity": velocity, "count": state["count"] + 1}, metrics)


def checked(check: Callable[[Learner], Any]) -> Descent:
    class Checked(Descent):
        def check(self, learner: Learner) -> Any:
            return check(learner)

    return Checked()


def beginning(init: Callable[[Params, dict[str, Any]], Any]) -> Descent:
    class Beginning(Descent):
        def init(self, params: Params) -> Any:
            return init(params, super().init(params))

    return Beginning()


def changed(change: Callable[..., Any], refused: bool = False) -> Descent:
    """Return an update whose result is changed; where a step is ``refused``, or else where it is taken."""

    class Changed(Descent):
        def update(self, learner: Learner, *inputs: Any) -> Any:
            update = super().update(learner, *inputs)
            return update if refused == update.finite else change(update, learner, *inputs)

    return Changed()


def with_params(change: Callable[[Params], Params]) -> Descent:
    return changed(lambda update, *_: update._replace(params=change(update.params)))


def with_state(**more: Any) -> Descent:
    return changed(lambda update, *_: update._replace(state=update.state | more))


def with_metrics(**more: Any) -> Descent:
    return changed(lambda update, *_: update._replace(metrics={**update.metrics, **more}))


def scored_afterwards(update: Update, learner: Learner, params: Params, state: Any, experience: Experience) -> Update:
    _, told = learner.meta_loss(update.params, experience)
    return update._replace(metrics={**update.metrics, **{name: value.detach().mean() for name, value in told.items()}})


def writing(write: Callable[..., Any]) -> Descent:
    def change(update: Update, learner: Learner, *inputs: Any) -> Update:
        write(*inputs)
        return update

    return changed(change)


def first(params: Params) -> Tensor:
    return next(iter(params.values()))


def counted(params: Params, state: dict[str, Any], experience: Experience) -> None:
    state["count"] += 1


def reordered(params: Params) -> Params:
    return dict(reversed(params.items()))


def refuse_silently(learner: Learner) -> None:
    if learner.averages:
        raise ValueError


def refuse_loudly(learner: Learner) -> None:
    if learner.averages:
        raise TypeError("no averages, please")


def write_ones(params: Params, state: dict[str, Any]) -> dict[str, Any]:
    first(params).fill_(1)
    return state


def draw(params: Params, state: dict[str, Any]) -> dict[str, Any]:
    return state | {"velocity": torch.rand_like(state["velocity"])}


class Remembering(Descent):
    """It counts its updates in the object."""

    times: list[int] = []  # noqa: RUF012  # which is what is wrong

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        self.times.append(1)
        return replace(self, rate=self.rate / len(self.times))._stepped(learner, params, state, experience)

    def _stepped(self, *inputs: Any) -> Update:
        return Descent(self.rate).update(*inputs)


@dataclass(frozen=True)
class Recognising(Descent):
    """It knows the states that it made, and begins anew from others."""

    made: list[Any] = field(default_factory=list)

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        known = any(state is other for other in self.made)
        update = super().update(learner, params, state if known else self.init(params), experience)
        self.made.append(update.state)
        return update


@dataclass(frozen=True)
class Uneven(Descent):
    """It takes the mean of the groups' means, however many tasks each has."""

    chunks: int | None = None

    def gradient(self, learner: Learner, params: Params, experience: Experience) -> Any:
        gradients = [meta_gradient(learner, params, part)[0] for part in split(experience, self.chunks)]
        return torch.stack(gradients).mean(0), meta_gradient(learner, params, experience)[1]


@dataclass(frozen=True)
class Worded(Descent):
    chunks: Any = "few"


class Unguarded(Descent):
    """It takes every step."""

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        gradient, metrics = self.gradient(learner, params, experience)
        return Update(unflatten(flatten(params.values()) - self.rate * gradient, params), state, metrics)


CASES: dict[str, tuple[Any, str, str]] = {
    "refused by TypeError": (checked(refuse_loudly), "refusal", r"check\(learner\) raised TypeError: no averages"),
    "refused by False": (checked(lambda learner: not learner.averages), "refusal", "returned True, which is ignored"),
    "refused silently": (checked(refuse_silently), "refusal", "raised a ValueError without a message"),
    "state: tuple": (beginning(lambda params, state: ()), "state", "init returned tuple as the state"),
    "state: nested": (
        beginning(lambda params, state: state | {"all": {"one": 1}}),
        "state",
        "init returned a state in which 'all' is dict: expected tensors and numbers by name",
    ),
    "state: NumPy": (beginning(lambda params, state: state | {"rate": np.float64(1)}), "state", "'rate' is float64"),
    "state: not a name": (beginning(lambda params, state: state | {1: 1}), "state", "in which 1 is int"),
    "state: graph": (
        beginning(lambda params, state: {**state, "velocity": state["velocity"].requires_grad_()}),
        "state",
        "'velocity' requires a gradient",
    ),
    "update: tuple": (changed(lambda update, *_: tuple(update)), "update", "update returned tuple"),
    "update: refused": (
        changed(lambda update, *_: update._replace(finite=False)),
        "update",
        "a finite meta-gradient was refused",
    ),
    "update: order": (with_params(reordered), "update", "the new parameters are head.*, in this order"),
    "update: lost": (with_params(lambda params: dict(list(params.items())[1:])), "update", "the new parameters are"),
    "update: shape": (
        with_params(lambda params: {name: value[None] for name, value in params.items()}),
        "update",
        r"new \S+: found torch.float32 \(1, .*expected torch.float32",
    ),
    "update: dtype": (
        with_params(lambda params: {name: value.double() for name, value in params.items()}),
        "update",
        "new .* found torch.float64",
    ),
    "update: nan": (
        with_params(lambda params: {name: value / 0 for name, value in params.items()}),
        "update",
        "new .*: found numbers that are not finite",
    ),
    "update: graph": (
        with_params(lambda params: {name: value.clone().requires_grad_() for name, value in params.items()}),
        "update",
        "new .* requires a gradient",
    ),
    "update: state": (with_state(history=[1]), "update", "update returned a state in which 'history' is list"),
    "metrics: vector": (with_metrics(**{"outer/norms": torch.ones(2)}), "metrics", r"a tensor of shape \(2,\)"),
    "metrics: word": (with_metrics(**{"outer/mood": "good"}), "metrics", "'outer/mood' is str: expected one number"),
    "metrics: name": (with_metrics(norm=1.0), "metrics", "'norm' is no metric of the meta-loss: expected .* outer/"),
    "metrics: taken": (
        with_metrics(**{"outer/refused": 1.0}),
        "metrics",
        "'outer/refused' is reserved for the training loop",
    ),
    "metrics: graph": (
        with_metrics(**{"outer/norm": torch.ones((), requires_grad=True)}),
        "metrics",
        "'outer/norm' requires a gradient",
    ),
    "metrics: lost": (
        changed(lambda update, *_: update._replace(metrics={})),
        "metrics",
        "the metrics lack loss/step_1: pass on all metrics",
    ),
    "metrics: late": (changed(scored_afterwards), "metrics", "'loss/step_1' is .* before the step: report that of"),
    "purity: parameters": (
        writing(lambda params, *_: first(params).add_(1)),
        "purity",
        "changed the parameters in place:",
    ),
    "purity: names": (writing(lambda params, *_: params.popitem()), "purity", "changed the parameters in place:"),
    "purity: state": (writing(counted), "purity", "changed the state in place: make new tensors and dictionaries"),
    "purity: data": (
        writing(lambda params, state, experience: experience.query.inputs.mul_(2)),
        "purity",
        "changed the experience in place:",
    ),
    "purity: init": (beginning(write_ones), "purity", "init changed the parameters in place"),
    "determinism: object": (Remembering(), "determinism", "differ: store everything that changes in the state"),
    "determinism: torch": (writing(lambda *_: torch.rand(1)), "determinism", "update drew from a global generator"),
    "determinism: NumPy": (writing(lambda *_: np.random.rand()), "determinism", "a global generator"),  # noqa: NPY002
    "determinism: Python": (writing(lambda *_: random.random()), "determinism", "a global generator"),
    "determinism: init": (beginning(draw), "determinism", "two initial states for the same parameters differ"),
    "checkpoint": (Recognising(), "checkpoint", "saving and loading the state, the next step is different"),
    "movement": (
        changed(lambda update, learner, params, *_: update._replace(params=params)),
        "movement",
        "the parameters did not change in 3 updates",
    ),
    "finite: not refused": (Unguarded(), "finite", "data with nan was not refused.*\n.*data with inf was not"),
    "finite: moved": (
        changed(lambda update, learner, params, *_: update._replace(params={**params, "w": first(params)}), True),
        "finite",
        "a refused update changed the parameters",
    ),
    "finite: state": (
        changed(lambda update, *_: update._replace(state={"velocity": torch.full((3,), torch.nan)}), True),
        "finite",
        "returned a state with numbers that are not finite",
    ),
    "finite: number": (
        changed(lambda update, *_: update._replace(state=update.state | {"loss": float("inf")}), True),
        "finite",
        "returned a state with numbers that are not finite",
    ),
    "finite: metrics": (
        changed(lambda update, *_: update._replace(metrics=None), True),
        "finite",
        "the metrics of a refused update are None",
    ),
    "chunks": (Uneven(), "chunks", "chunks=3 differs from that with chunks=1 by .* of its length: weight each group"),
    "chunks: word": (Worded(), "chunks", "chunks is 'few': expected a number of groups, or None"),
    "dtypes": (
        with_params(lambda params: {name: value.float() for name, value in params.items()}),
        "dtypes",
        "with torch.float64 as torch's default, the new .*: found torch.float32",
    ),
}
"""An outer update, the check that finds what is wrong with it, and what that says."""


@pytest.mark.parametrize("case", CASES)
def test_broken_outer_updates_are_found_by_one_check(case: str) -> None:
    outer, check, message = CASES[case]
    found = failures(testing.outer_outcomes(outer, LINES))
    assert set(found) == {check}
    assert re.search(message, found[check])
    for line in found[check].splitlines():
        assert re.search(r" \(\S*test_outers\.py:\d+, \S+\)$", line), line


@pytest.mark.parametrize("family", [LINES, POINTS], ids=["lines", "points"])
def test_an_outer_update_without_more_members_passes(family: Any) -> None:
    outcomes = testing.outer_outcomes(Descent(), family)
    assert failures(outcomes) == {}
    assert {outcome.check: outcome.messages for outcome in outcomes if outcome.verdict == "skipped"}["chunks"] == (
        "the outer update has no field chunks",
    )


@pytest.mark.parametrize("by", ["count", "progress"])
def test_a_step_size_that_rises_from_zero_passes(by: str) -> None:
    class Warming(Descent):
        def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
            share = experience.progress if by == "progress" else state["count"] / 3
            return Descent(self.rate * share).update(learner, params, state, experience)

    assert failures(testing.outer_outcomes(Warming(), LINES)) == {}


@pytest.mark.parametrize("family", [LINES, POINTS], ids=["lines", "points"])
def test_steps_up_the_gradient_are_noted(family: Any) -> None:
    outcomes = {outcome.check: outcome for outcome in testing.outer_outcomes(Descent(rate=-0.01), family)}
    assert failures(list(outcomes.values())) == {}
    assert outcomes["movement"].verdict == "note"
    assert outcomes["movement"].messages == ("the step increases the meta-loss: is its sign right?",)


def test_what_an_update_raises_is_told_with_its_line() -> None:
    def raising(update: Update, learner: Learner, *inputs: Any) -> Update:
        raise ValueError("no such luck")

    line = raising.__code__.co_firstlineno + 1
    with pytest.raises(
        ContractError, match=rf"with synthetic continuous tasks: ValueError: no such luck .*:{line}, "
    ) as caught:
        testing.check_outer(changed(raising))
    assert isinstance(caught.value.__cause__, ValueError)


def test_kinds_that_are_refused_are_passed_over() -> None:
    testing.check_outer(TRPO(cg_iterations=5))
    with pytest.raises(ValueError, match="needs rollouts; for labelled examples use adam"):
        testing.check_outer(TRPO(), LINES)


def test_one_kind_at_least_must_be_served() -> None:
    def refuse(learner: Learner) -> None:
        raise ValueError(f"not {learner.spec.kind}")

    with pytest.raises(
        ValueError, match=r"Checked supports no kind of task; regression: not reg.*; continuous: not continuous"
    ):
        testing.check_outer(checked(refuse))


def test_other_learners_may_be_asked_for() -> None:
    testing.check_outer(SGD(), LINES, Reptile())
    with pytest.raises(ValueError, match="running averages"):
        testing.check_outer(Adam(), LINES, Reptile())
    with pytest.raises(ValueError, match="protonet tells classes apart"):
        testing.check_outer(Adam(), LINES, ProtoNet())


def test_the_small_algorithm_serves_every_kind() -> None:
    for family in (LINES, POINTS, small_family("discrete"), small_family("classification")):
        testing.check_algorithm(small_algorithm(), family)


@pytest.mark.gpu
def test_parameters_on_another_device_are_found() -> None:
    outer = with_params(lambda params: {name: value.cpu() for name, value in params.items()})
    assert set(failures(testing.outer_outcomes(outer, LINES))) == {"device"}
