"""Meta-iterations compiled by ``torch.compile``: few kernels instead of hundreds of small operations.

``metarl.speed.tracing`` makes the graph. Where an iteration takes another way than the one that was compiled, or cannot
be compiled, the plain one runs.

A graph holds what the iteration was: a family or a learner that somebody changes later, such as a callback that makes
tasks harder, does not reach it. So the two are compared again in iterations 1, 2, 4, 8, ... and every ``EVERY``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from metarl.numerics import flatten
from metarl.speed import SubstituteError, is_comparison, made_or_warned, require_same
from metarl.speed.tracing import device_of, fused, tensor
from metarl.training.iteration import Iterate, Outcome
from metarl.training.traced import Traced, groups, trace
from metarl.types import Params

MAX_MISSED, MAX_COMPILED = 3, 4
"""Iterations in a row that go another way than the one compiled, before it is compiled anew; and how often it is."""
EVERY = 200
"""Iterations between comparisons, each of which takes as long as two plain iterations: 3 % of the time where compiled
ones are three times faster. (In iterations 2, 4, 8, ... there are few.)"""
TRACED, COMPILED = 1e-3, 1e-2
"""Largest distance from the plain iteration's results, relative to their norm: of the graph, where a task drawn
differently would make more; and of the compiled graph's losses, which are rounded differently. (Its gradients are not
compared: where the loss is steep, rounding changes them by more.)"""


class Compiled(NamedTuple):
    """An iteration as a graph, before and after torch.compile."""

    graph: Traced
    kernels: Traced


class Compiling:
    """An iteration that is compiled when it first runs, and again where it has come to take another way."""

    def __init__(self, plain: Iterate, streams: Callable[[int], Iterator[Generator]]) -> None:
        self.plain, self.streams = plain, streams
        self.compiled: Compiled | None = None
        self.possible, self.times, self.missed = True, 0, 0
        self.agreed = 0
        """Latest iteration in which the compiled one was found to do what the plain one does."""

    def __call__(self, params: Params, state: dict[str, Any], progress: float, number: int) -> Outcome:
        """Run iteration ``number``, compiled if that is possible; a warning tells why it is not."""
        if self.possible and (self.compiled is None or self.missed >= MAX_MISSED):
            self._compile(params, state, progress, number)
        outcome = self.compiled.kernels(params, state, progress, self.streams(number)) if self.compiled else None
        self.missed = self.missed + 1 if outcome is None else 0
        if outcome is None:
            return self.plain(params, state, progress, self.streams(number))
        again = is_comparison(number, EVERY) and number != self.agreed
        return self._compared(outcome, params, state, progress, number) if again else outcome

    def _compared(
        self, outcome: Outcome, params: Params, state: dict[str, Any], progress: float, number: int
    ) -> Outcome:
        """Return the compiled outcome, as in any other iteration, unless it has become wrong; then the plain one."""
        assert self.compiled is not None
        compiled, plain = self.compiled, self.plain(params, state, progress, self.streams(number))

        def compare() -> bool:
            traced = compiled.graph(params, state, progress, self.streams(number))
            _compare_outcomes(traced, outcome, plain)
            return True

        agrees = made_or_warned(
            compare,
            lambda why: (
                f"from iteration {number} on, iterations are not compiled: {why}; what was changed after iteration "
                f"{self.agreed} (a family's difficulty, say) was not seen until now"
            ),
            level=3,
        )
        if agrees is None:
            self.compiled, self.possible = None, False
            return plain
        self.agreed = number
        return outcome

    def _compile(self, params: Params, state: dict[str, Any], progress: float, number: int) -> None:
        self.compiled, self.missed, self.times = None, 0, self.times + 1

        def compiled() -> Compiled:
            if self.times > MAX_COMPILED:
                raise SubstituteError("what it does depends on its numbers, and changes too often")
            return compile_iteration(self.plain, params, state, progress, self.streams, number)

        self.compiled = made_or_warned(
            compiled, lambda why: f"the iteration is not compiled, which changes its speed only: {why}", level=3
        )
        self.possible = self.compiled is not None
        self.agreed = number if self.possible else self.agreed


def compile_iteration(
    iterate: Iterate,
    params: Params,
    state: dict[str, Any],
    progress: float,
    streams: Callable[[int], Iterator[Generator]],
    number: int,
) -> Compiled:
    """Compile what ``iterate`` does (see ``traced.trace``), and compare it with itself in iteration ``number``.

    Another iteration is traced, so that numbers that the graph should not hold come to light.

    Raises:
        SubstituteError: the graph does something else.
        Exception: what tracing or torch.compile raises where it cannot be a graph.
    """
    plain = iterate(params, state, progress, streams(number))
    graph = trace(iterate, params, state, progress, streams(number + 1))
    kernels = fused(graph.graph.kernels, device_of(params))
    compiled = replace(graph, graph=replace(graph.graph, kernels=kernels))
    found, rounded = (each(params, state, progress, streams(number)) for each in (graph, compiled))
    _compare_outcomes(found, rounded, plain)
    return Compiled(graph, compiled)


def _compare_outcomes(traced: Outcome | None, rounded: Outcome | None, plain: Outcome) -> None:
    """Raise SubstituteError where the graph's or the compiled graph's outcome, if any, is not the plain one."""
    if traced is not None:
        _compare_all(traced, plain)
    if rounded is not None:
        _compare("the compiled loss", _losses(rounded), _losses(plain), COMPILED)


def _losses(outcome: Outcome) -> list[Any]:
    return [value for name, value in outcome.update.metrics.items() if "loss" in name]


def _compare_all(outcome: Outcome, plain: Outcome) -> None:
    """Raise SubstituteError where results are not the plain iteration's.

    Parameters are compared all together: Adam makes whole steps of a slope that is zero but for rounding.
    """
    (moved, kept, *found), (moved_plainly, kept_plainly, *expected) = groups(outcome), groups(plain)
    _compare("the parameters", moved.values(), moved_plainly.values(), TRACED)
    _compare("the outer update's state", kept.values(), kept_plainly.values(), TRACED)
    for ours, theirs in zip(found, expected, strict=True):
        for name in theirs:
            _compare(name, [ours[name]], [theirs[name]], TRACED)


def _compare(name: str, found: Iterable[Any], expected: Iterable[Any], tolerance: float) -> None:
    difference = f"{name} would differ: the iteration depends on more than its parameters and streams"
    require_same([_vector(found)], [_vector(expected)], tolerance, difference)


def _vector(values: Iterable[Any]) -> Tensor:
    """Join numbers and tensors; what is not a number counts as 0."""
    joined = flatten([torch.zeros(0, dtype=torch.float64), *(tensor(value).double().cpu() for value in values)])
    return joined.nan_to_num()
