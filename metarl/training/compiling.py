"""Meta-iterations compiled by ``torch.compile``: few kernels instead of hundreds of small operations.

``metarl.speed.tracing`` makes the graph. Where an iteration takes another way than the one that was compiled, or cannot
be compiled, the plain one runs.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from metarl.numerics import flatten, near
from metarl.speed.tracing import device_of, fused, tensor
from metarl.training.iteration import Iterate, Outcome
from metarl.training.traced import Traced, groups, trace
from metarl.types import Params

MAX_MISSED, MAX_COMPILED = 3, 4
"""Iterations in a row that go another way than the one compiled, before it is compiled anew; and how often it is."""
TRACED, COMPILED = 1e-3, 1e-2
"""Largest distance from the plain iteration's results, relative to their norm: of the graph, where a task drawn
differently would make more; and of the compiled graph's losses, which are rounded differently. (Its gradients are not
compared: where the loss is steep, rounding changes them by more.)"""


class NotCompiledError(RuntimeError):
    """An iteration cannot be compiled."""


class Compiling:
    """An iteration that is compiled when it first runs, and again where it has come to take another way."""

    def __init__(self, plain: Iterate, streams: Callable[[int], Iterator[Generator]]) -> None:
        self.plain, self.streams = plain, streams
        self.compiled: Traced | None = None
        self.possible, self.times, self.missed = True, 0, 0

    def __call__(self, params: Params, state: dict[str, Any], progress: float, number: int) -> Outcome:
        """Run iteration ``number``, compiled if that is possible; a warning tells why it is not."""
        if self.possible and (self.compiled is None or self.missed >= MAX_MISSED):
            self._compile(params, state, progress, number)
        outcome = self.compiled(params, state, progress, self.streams(number)) if self.compiled else None
        self.missed = self.missed + 1 if outcome is None else 0
        return outcome or self.plain(params, state, progress, self.streams(number))

    def _compile(self, params: Params, state: dict[str, Any], progress: float, number: int) -> None:
        self.compiled, self.missed, self.times = None, 0, self.times + 1
        try:
            if self.times > MAX_COMPILED:
                raise NotCompiledError("what it does depends on its numbers, and changes too often")
            self.compiled = compile_iteration(self.plain, params, state, progress, self.streams, number)
        except NotCompiledError as error:
            self.possible = False
            warnings.warn(f"the iteration is not compiled, which changes its speed only: {error}", stacklevel=4)


def compile_iteration(
    iterate: Iterate,
    params: Params,
    state: dict[str, Any],
    progress: float,
    streams: Callable[[int], Iterator[Generator]],
    number: int,
) -> Traced:
    """Compile what ``iterate`` does (see ``traced.trace``), and compare it with itself in iteration ``number``.

    Another iteration is traced, so that numbers that the graph should not hold come to light.

    Raises:
        NotCompiledError: it cannot be traced, torch.compile fails, or the graph does something else.
    """
    try:
        plain = iterate(params, state, progress, streams(number))
        graph = trace(iterate, params, state, progress, streams(number + 1))
        kernels = fused(graph.graph.kernels, device_of(params))
        compiled = replace(graph, graph=replace(graph.graph, kernels=kernels))
        found, rounded = (each(params, state, progress, streams(number)) for each in (graph, compiled))
    except Exception as error:
        raise NotCompiledError(str(error).strip().partition("\n")[0]) from error
    if found is not None:
        _compare_all(found, plain)
    if rounded is not None:
        _compare("the compiled loss", _losses(rounded), _losses(plain), COMPILED)
    return compiled


def _losses(outcome: Outcome) -> list[Any]:
    return [value for name, value in outcome.update.metrics.items() if "loss" in name]


def _compare_all(outcome: Outcome, plain: Outcome) -> None:
    """Raise NotCompiledError where results are not the plain iteration's.

    Parameters are compared all together: Adam makes whole steps of a slope that is zero but for rounding.
    """
    (moved, kept, *found), (moved_plainly, kept_plainly, *expected) = groups(outcome), groups(plain)
    _compare("the parameters", moved.values(), moved_plainly.values(), TRACED)
    _compare("the outer update's state", kept.values(), kept_plainly.values(), TRACED)
    for ours, theirs in zip(found, expected, strict=True):
        for name in theirs:
            _compare(name, [ours[name]], [theirs[name]], TRACED)


def _compare(name: str, found: Iterable[Any], expected: Iterable[Any], tolerance: float) -> None:
    if not near(_vector(found), _vector(expected), tolerance):
        raise NotCompiledError(f"{name} would differ: the iteration depends on more than its parameters and streams")


def _vector(values: Iterable[Any]) -> Tensor:
    """Join numbers and tensors; what is not a number counts as 0."""
    joined = flatten([torch.zeros(0, dtype=torch.float64), *(tensor(value).double().cpu() for value in values)])
    return joined.nan_to_num()
