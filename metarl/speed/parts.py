"""Compile parts of an iteration: functions of tensors run as a few fused kernels, or as one CUDA graph.

Such a function must be pure. It may read only its arguments (tensors and plain values in nested tuples, lists and
dicts) and draw only from the given random generators, and it returns everything that it changes. If the run is not
compiled, or a function cannot be compiled, the function is called as usual.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

from metarl.speed import tracing
from metarl.speed.internals import Form, leaves_of, put_together, take_apart
from metarl.speed.substitutes import is_comparison, made_or_warned, require_same
from metarl.speed.tracing import Function, Kernels, TraceError, fused

Result = TypeVar("Result")
CHECKS, EVERY = 2, 50
"""Iterations in which a compiled part is compared with the plain function: the first ``CHECKS``, because a number that
was wrongly compiled as a constant shows in a later iteration; and some later ones (``is_comparison`` with ``EVERY``),
because a compiled part does not see what is changed during training. Each time, one call is compared, such as ten steps
of the episodes. On a CPU, this takes far less than 1 % of the time. On a GPU, TRPO's update runs a second time, which
is at most 2 %."""
FAR = 1e-3
"""Largest distance of a compiled result from the plain one, relative to its norm. Measured on a CPU, in float32: at
most 5e-7 for ten steps of an environment, and 1.4e-5 for TRPO's step if its sums are taken in another order."""
MAX_PARTS = 16
"""A function is compiled for at most so many kinds of arguments, such as one for each inner step."""
WARM_UP = 2
"""Calls of a function before its graph is captured, because libraries allocate memory in their first calls."""


Runnable = Callable[[Sequence[Tensor], Sequence[Generator]], Sequence[Tensor]]
"""A compiled function: ``(inputs, streams) -> results``."""
Make = Callable[[Function, Sequence[Tensor], Sequence[Generator]], tuple[Runnable, Sequence[Tensor]]]
_HOLE = object()
_USED: ContextVar["Graphs | None"] = ContextVar("graphs", default=None)


def run_is_compiled() -> bool:
    """Return whether this run is compiled."""
    return _USED.get() is not None


def run_compiled(
    name: str, function: Callable[..., Result], arguments: tuple[Any, ...], streams: Sequence[Generator]
) -> Result:
    """Return ``function(*arguments)``. In a compiled run, use kernels of torch.compile, on a GPU in a CUDA graph.

    ``name`` identifies the part in the run, and in the warning if it cannot be compiled.
    """
    graphs = _USED.get()
    return function(*arguments) if graphs is None else graphs.run(graphs.fused, name, function, arguments, streams)


def run_captured(name: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Return ``function(*arguments)``. In a compiled run on a GPU, capture it as a CUDA graph and replay that.

    For functions that draw no random numbers and have too many operations for torch.compile.
    """
    graphs = _USED.get()
    if graphs is None or not _on_gpu(arguments):
        return function(*arguments)
    return graphs.run(captured, name, function, arguments, ())


class _Structure(NamedTuple):
    """A nested structure of tuples, lists and dicts, without its tensors."""

    form: Form
    leaves: tuple[Any, ...]
    """Plain values; _HOLE in place of each tensor; the type of anything else."""

    def require_plain(self) -> None:
        """Raise TraceError for anything but tensors and plain values: it might contain tensors."""
        if strange := [leaf for leaf in self.leaves if isinstance(leaf, type)]:
            raise TraceError(f"a {strange[0].__name__} is not a tensor, plain value, tuple, list or dict")


@dataclass(frozen=True)
class _Part:
    """A compiled function."""

    graph: Runnable
    result: _Structure
    checks: int = 0
    """Number of comparisons with the plain function so far."""
    agreed: int = 0
    """Iteration of the last comparison."""

    def wants_a_check(self, iteration: int) -> bool:
        return iteration != self.agreed and (self.checks < CHECKS or is_comparison(iteration, EVERY))


class Graphs:
    """The compiled parts of one run: of its learner, family and outer update."""

    def __init__(self) -> None:
        self.iteration = 0
        self.parts: dict[Any, _Part] = {}
        self.refused: set[str] = set()
        """Names of parts that cannot be compiled. The plain functions are called instead."""
        self._kernels: dict[Any, Kernels] = {}

    @contextmanager
    def used(self, iteration: int) -> Iterator[None]:
        """Let ``run_compiled`` and ``run_captured`` use these graphs inside the ``with`` block, for one iteration."""
        self.iteration = iteration
        token = _USED.set(self)
        try:
            yield
        finally:
            _USED.reset(token)

    def run(
        self,
        make: Make,
        name: str,
        function: Callable[..., Result],
        arguments: tuple[Any, ...],
        streams: Sequence[Generator],
    ) -> Result:
        """Return ``function(*arguments)`` from its graph. If that is impossible, warn and call the plain function."""
        if name in self.refused:
            return function(*arguments)
        given, inputs = _apart(arguments)
        key = name, given, *map(_kind, inputs)
        part = self.parts.get(key)
        if part is not None and not part.wants_a_check(self.iteration):
            result: Result = _together(part.result, part.graph(inputs, streams))
            return result
        before = [stream.get_state() for stream in streams]
        checked: tuple[Result] | None = made_or_warned(
            lambda: (self._check(key, make, function, inputs, streams),),
            lambda why: _refusal(name, why, self.iteration, part),
            level=2,
        )
        if checked is not None:
            return checked[0]
        self.refused.add(name)
        _rewind(streams, before)
        return function(*arguments)

    def _check(
        self, key: Any, make: Make, function: Callable[..., Any], inputs: list[Tensor], streams: Sequence[Generator]
    ) -> Any:
        """Compare a function with its graph, which is made if there is none yet; return the graph's results.

        It does not return the function's results: a resumed run compares in other iterations, and must get the same
        numbers.
        """
        name, given, *_ = key
        given.require_plain()
        results, before = list[_Structure](), [stream.get_state() for stream in streams]

        def flat(values: Sequence[Tensor], streams: Sequence[Generator]) -> list[Tensor]:
            structure, tensors = _apart(function(*_together(given, values)))
            structure.require_plain()
            results.append(structure)
            return tensors

        part = self.parts.get(key)
        if part is not None:
            expected: Sequence[Tensor] = flat(inputs, streams)
        elif sum(known[0] == name for known in self.parts) < MAX_PARTS:
            graph, expected = make(flat, inputs, streams)
            part = _Part(graph, results[-1])
        else:
            raise TraceError("they are called with too many kinds of arguments")
        _rewind(streams, before)
        found = part.graph(inputs, streams)
        require_same(found, expected, FAR, "they depend on more than their arguments and random generators")
        self.parts[key] = replace(part, checks=part.checks + 1, agreed=self.iteration)
        return _together(part.result, found)

    def fused(
        self, function: Function, inputs: Sequence[Tensor], streams: Sequence[Generator]
    ) -> tuple[Runnable, Sequence[Tensor]]:
        """Trace and compile a function. Return it with the results of the plain function."""
        graph, results = tracing.trace_part(function, inputs, streams)
        traced: Any = graph.kernels
        # Equal graphs, such as those of two inner steps, share kernels.
        key = traced.code, *map(_kind, (*graph.constants, *inputs))
        if key not in self._kernels:
            self._kernels[key] = fused(graph.kernels, inputs[0].device)
        return replace(graph, kernels=self._kernels[key]), results


def _refusal(name: str, why: str, iteration: int, part: _Part | None) -> str:
    if part is None or part.agreed >= iteration - 1:
        return f"{name} are not compiled, which affects only speed: {why}"
    return (
        f"{name} are no longer compiled: {why}; a change after iteration {part.agreed} (such as of a family's "
        f"difficulty) had no effect until now, iteration {iteration}"
    )


def captured(
    function: Function, inputs: Sequence[Tensor], streams: Sequence[Generator]
) -> tuple[Runnable, Sequence[Tensor]]:
    """Capture a function as a CUDA graph. Return its replay with the results of the plain function.

    The graph reads its inputs from fixed memory, so each replay copies them there first (torch.cuda.CUDAGraph).
    """
    device = inputs[0].device  # which need not be the current one
    aside, recorded = torch.cuda.Stream(device), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    places = [value.clone() for value in inputs]
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function(places, streams)
    torch.cuda.current_stream(device).wait_stream(aside)
    # The stream of the warm-up, for which libraries have allocated. Other threads may use the GPU meanwhile.
    with torch.cuda.graph(recorded, stream=aside, capture_error_mode="thread_local"):
        results = [result.detach() for result in function(places, streams)]

    def replay(values: Sequence[Tensor], streams: Sequence[Generator]) -> list[Tensor]:
        for place, value in zip(places, values, strict=True):
            place.copy_(value)
        recorded.replay()
        return [result.clone() for result in results]  # copies, because the next replay overwrites them

    return replay, function(inputs, streams)


def _on_gpu(values: Any) -> bool:
    return all(tensor.device.type == "cuda" for tensor in _tensors(leaves_of(values)))


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _apart(values: Any) -> tuple[_Structure, list[Tensor]]:
    leaves, form = take_apart(values)
    return _Structure(form, tuple(map(_without_tensors, leaves))), _tensors(leaves)


def _without_tensors(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return _HOLE
    return leaf if isinstance(leaf, int | float | str | None) else type(leaf)


def _together(structure: _Structure, tensors: Sequence[Tensor]) -> Any:
    values = iter(tensors)
    leaves = [next(values) if leaf is _HOLE else leaf for leaf in structure.leaves]
    return put_together(leaves, structure.form)


def _kind(tensor: Tensor) -> Any:
    """Return the properties of a tensor that a graph is compiled for."""
    return tensor.shape, tensor.dtype, tensor.device


def _rewind(streams: Sequence[Generator], states: Sequence[Tensor]) -> None:
    for stream, state in zip(streams, states, strict=True):
        stream.set_state(state)
