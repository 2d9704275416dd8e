"""Parts of an iteration as graphs: functions of tensors that run as few kernels, or as one launch.

Such a function is pure: what it reads stands in its arguments, tensors and plain values in any structure of tuples,
lists and dicts, or comes from its streams of random numbers; what it changes stands in its result. In a run that is not
compiled, and where there can be no graph of a function, it is called as it is.
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
"""Iterations in which a part is compared with itself: the first ones, for a number that the graph should not have kept
shows in a next; and every so many, see ``is_comparison``, for what somebody changes later does not reach a graph. One
call is compared, ten of an episode's steps, say: far below 1 % of the time on a CPU. On a GPU TRPO's update is done
once more, which is 2 % if it takes all of the time."""
FAR = 0.05
"""Largest distance of each result from the plain one's, relative to its norm. Rounding adds up along an episode, and in
conjugate gradients; a wrong number is farther away."""
MAX_PARTS = 16
"""Kinds of arguments of a function, such as one for each inner step, before it is called as it is."""
WARM_UP = 2
"""Times that a graph runs before it is captured: libraries allocate when they are first used."""


Runnable = Callable[[Sequence[Tensor], Sequence[Generator]], Sequence[Tensor]]
"""What stands for a function: ``(inputs, streams) -> results``."""
Make = Callable[[Function, Sequence[Tensor], Sequence[Generator]], tuple[Runnable, Sequence[Tensor]]]
_HOLE = object()
_USED: ContextVar["Graphs | None"] = ContextVar("graphs", default=None)


def run_is_compiled() -> bool:
    """Return whether this run is compiled."""
    return _USED.get() is not None


def run_compiled(
    name: str, function: Callable[..., Result], arguments: tuple[Any, ...], streams: Sequence[Generator]
) -> Result:
    """Return ``function(*arguments)``: in a compiled run by torch.compile's kernels, on a GPU as a CUDA graph.

    ``name`` tells the parts of a run apart, and stands in the warning that one is not compiled.
    """
    graphs = _USED.get()
    return function(*arguments) if graphs is None else graphs.run(graphs.fused, name, function, arguments, streams)


def run_captured(name: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Return ``function(*arguments)``: in a compiled run on a GPU by a CUDA graph, captured and replayed.

    For functions that draw nothing, of more operations than torch.compile has patience for.
    """
    graphs = _USED.get()
    if graphs is None or not _on_gpu(arguments):
        return function(*arguments)
    return graphs.run(captured, name, function, arguments, ())


class _Structure(NamedTuple):
    """Tensors and plain values in tuples, lists and dicts, without the tensors."""

    form: Form
    leaves: tuple[Any, ...]
    """Plain values; _HOLE where a tensor stood; the type of anything else."""

    def require_plain(self) -> None:
        """Raise TraceError for what is neither a tensor nor a plain value: it might hold tensors unseen."""
        if strange := [leaf for leaf in self.leaves if isinstance(leaf, type)]:
            raise TraceError(f"a {strange[0].__name__} is no tensor, plain value, tuple, list or dict of such")


@dataclass(frozen=True)
class _Part:
    """A function that has a graph."""

    graph: Runnable
    result: _Structure
    checks: int = 0
    """How often it was compared with itself."""
    agreed: int = 0
    """Iteration in which that was done last."""

    def wants_a_check(self, iteration: int) -> bool:
        return iteration != self.agreed and (self.checks < CHECKS or is_comparison(iteration, EVERY))


class Graphs:
    """The graphs of one run: of one learner, one family, one outer update."""

    def __init__(self) -> None:
        self.iteration = 0
        self.parts: dict[Any, _Part] = {}
        self.refused: set[str] = set()
        """Names of what cannot be compiled, and is called as it is."""
        self._kernels: dict[Any, Kernels] = {}

    @contextmanager
    def used(self, iteration: int) -> Iterator[None]:
        """Let ``run_compiled`` and ``run_captured`` use them, for one iteration."""
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
        """Return ``function(*arguments)``, by its graph if that can be; a warning tells why it cannot."""
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
        """Run a function as it is, and its graph, which is made if there is none yet; return what the graph does.

        Not what the function does: a run that is resumed is checked anew, and must not come out differently for it.
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
            raise TraceError("their arguments are of too many kinds")
        _rewind(streams, before)
        found = part.graph(inputs, streams)
        require_same(found, expected, FAR, "they depend on more than their arguments and streams")
        self.parts[key] = replace(part, checks=part.checks + 1, agreed=self.iteration)
        return _together(part.result, found)

    def fused(
        self, function: Function, inputs: Sequence[Tensor], streams: Sequence[Generator]
    ) -> tuple[Runnable, Sequence[Tensor]]:
        """Return a function traced and compiled, and what it returned as it is."""
        graph, results = tracing.trace_part(function, inputs, streams)
        traced: Any = graph.kernels
        # Equal graphs, such as those of two inner steps, share their kernels.
        key = traced.code, *map(_kind, (*graph.constants, *inputs))
        if key not in self._kernels:
            self._kernels[key] = fused(graph.kernels, inputs[0].device)
        return replace(graph, kernels=self._kernels[key]), results


def _refusal(name: str, why: str, iteration: int, part: _Part | None) -> str:
    if part is None or part.agreed >= iteration - 1:
        return f"{name} are not compiled, which changes their speed only: {why}"
    return (
        f"{name} are not compiled any more: {why}; what was changed after iteration {part.agreed} (a family's "
        f"difficulty, say) was not seen until now, in iteration {iteration}"
    )


def captured(
    function: Function, inputs: Sequence[Tensor], streams: Sequence[Generator]
) -> tuple[Runnable, Sequence[Tensor]]:
    """Return a function captured as a CUDA graph, and what it returned as it is."""
    device = inputs[0].device  # which need not be the current one
    aside, recorded = torch.cuda.Stream(device), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    places = [value.clone() for value in inputs]
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function(places, streams)
    torch.cuda.current_stream(device).wait_stream(aside)
    with torch.cuda.graph(recorded, stream=aside):  # the same, for which libraries have allocated by now
        results = [result.detach() for result in function(places, streams)]

    def replay(values: Sequence[Tensor], streams: Sequence[Generator]) -> list[Tensor]:
        for place, value in zip(places, values, strict=True):
            place.copy_(value)
        recorded.replay()
        return [result.clone() for result in results]  # whose memory the next replay takes

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
    """Return what a graph takes for granted of a tensor."""
    return tensor.shape, tensor.dtype, tensor.device


def _rewind(streams: Sequence[Generator], states: Sequence[Tensor]) -> None:
    for stream, state in zip(streams, states, strict=True):
        stream.set_state(state)
