"""Graphs of elementary operations on tensors, ``torch.fx``'s, with all derivatives in them.

What is traced is run once as it is, to learn which random numbers it draws and what it asks of its numbers. Random
numbers are drawn outside of the graph, by the same calls from the same streams, so they are those of the plain run. A
part of an iteration may ask its numbers nothing; ``metarl.training`` traces whole iterations, whose graphs tell where
an answer differs from the one that was traced.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.fx import GraphModule

from metarl.speed.internals import TorchDispatchMode, is_question, is_random, make_fx
from metarl.types import Params

Kernels = Callable[..., Sequence[Tensor]]
"""Tensors to tensors: constants, inputs and random numbers to results."""
Function = Callable[[Sequence[Tensor], Sequence[Generator]], Sequence[Tensor]]
"""``(inputs, streams) -> results``"""


class TraceError(RuntimeError):
    """An iteration is not a graph."""


class Draw(NamedTuple):
    """A call that draws random numbers."""

    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    stream: int  # in the order in which streams are opened

    def __call__(self, streams: Sequence[Generator]) -> Tensor:
        """Draw from it."""
        return self.function(*self.arguments, **self.options, generator=streams[self.stream])


@dataclass(frozen=True)
class Graph:
    """A function of tensors and streams of random numbers, traced."""

    kernels: Kernels
    constants: tuple[Tensor, ...]
    """What it reads beside its inputs, such as images."""
    draws: tuple[Draw, ...]

    def __call__(self, inputs: Sequence[Tensor], streams: Sequence[Generator]) -> list[Tensor]:
        """Draw, and run it. No gradients are kept."""
        drawn = [draw(streams) for draw in self.draws]
        with torch.no_grad():
            return list(self.kernels(*self.constants, *inputs, *drawn))


def trace_part(
    function: Function, inputs: Sequence[Tensor], streams: Sequence[Generator]
) -> tuple[Graph, list[Tensor]]:
    """Trace a function; return its graph, and what it returned when it was run as it is.

    Raises:
        TraceError: it draws random numbers from elsewhere than the streams, or such as depend on others; or it asks its
            numbers for yes or no, or for a whole number.
        RuntimeError: it depends on its own numbers in other ways.
    """
    recorder = Recorder(iter(streams))
    opened = list(recorder.watched())
    with recorder:
        results = list(function(inputs, opened))
    if recorder.answers:
        raise TraceError("it asks its numbers for yes or no, or for a whole number")

    def flat(values: Sequence[Tensor], replayer: Replayer) -> list[Tensor]:
        with replayer:
            return [result.detach() for result in function(values, opened)]

    return graph_of(flat, inputs, recorder), results


def tensor(value: Any, device: torch.device | None = None) -> Tensor:
    """Return a number as a double, which takes on the precision of what it meets."""
    # Filled there, not copied to there: nothing waits.
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=torch.float64, device=device)


def device_of(params: Params) -> torch.device:
    """Return the device that all parameters live on."""
    return next(iter(params.values())).device


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down which random numbers are drawn, from which stream, and the answers to questions."""

    def __init__(self, streams: Iterator[Generator]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.streams = streams
        self.opened: list[Generator] = []
        self.draws: list[Draw] = []
        self.drawn: list[Tensor] = []
        self.answers: list[int] = []

    def watched(self) -> Iterator[Generator]:
        """Hand out the streams."""
        for generator in self.streams:
            self.opened.append(generator)
            yield generator

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        if is_random(function):
            self.draws.append(self._draw(function, arguments, dict(options or {})))
            self.drawn.append(result)
        elif is_question(function, arguments):
            self.answers.append(result)
        return result

    def _draw(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Draw:
        generator = options.pop("generator", None)
        # A generator comes here as another object than it was handed out as, but with its seed.
        seeds = [opened.initial_seed() for opened in self.opened]
        if generator is None or generator.initial_seed() not in seeds:
            raise TraceError(f"{function} draws random numbers from another generator than the iteration's")
        if any(isinstance(value, Tensor) for value in (*arguments, *options.values())):
            raise TraceError(f"{function} draws random numbers that depend on others")
        return Draw(function, arguments, options, seeds.index(generator.initial_seed()))


class Replayer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands out random numbers that were drawn elsewhere, and gives the answers that were recorded."""

    def __init__(self, drawn: Iterable[Tensor], answers: Iterable[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn, self.answers = iter(drawn), iter(answers)
        self.agreed: list[Tensor] = []

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
        if is_random(function):
            return next(self.drawn)
        if is_question(function, arguments):
            answer = next(self.answers)
            self.agreed.append(arguments[0] == answer)
            return answer
        return function(*arguments, **(options or {}))

    def held(self) -> Tensor:
        """Return whether all answers are those that the numbers give, a bool."""
        devices = {agreed.device for agreed in self.agreed}
        there = [torch.stack([agreed for agreed in self.agreed if agreed.device == one]).all() for one in devices]
        # One number is read from each device, whatever was asked there.
        return torch.stack([torch.ones((), dtype=torch.bool), *(one.cpu() for one in there)]).all()


def graph_of(
    flat: Callable[[Sequence[Tensor], Replayer], list[Tensor]], inputs: Sequence[Tensor], recorder: Recorder
) -> Graph:
    """Trace a function that was run under ``recorder``; a Replayer gives it what was drawn and answered then."""

    def drawn_outside(*values: Tensor) -> list[Tensor]:
        return flat(values[: len(inputs)], Replayer(values[len(inputs) :], recorder.answers))

    graph = make_fx(drawn_outside)(*inputs, *recorder.drawn)
    return Graph(graph, _lifted(graph), tuple(recorder.draws))


def _lifted(graph: GraphModule) -> tuple[Tensor, ...]:
    """Let the tensors that a graph holds be its first inputs instead, and return them."""
    nodes = list(graph.graph.nodes)
    passed: dict[str, Any] = {}
    for node in [node for node in nodes if node.op == "get_attr"]:
        if node.target not in passed:
            with graph.graph.inserting_before(nodes[0]):
                passed[node.target] = graph.graph.placeholder(node.target)
        node.replace_all_uses_with(passed[node.target])
        graph.graph.erase_node(node)
    graph.recompile()
    return tuple(getattr(graph, name) for name in passed)


def fused(graph: Kernels, device: torch.device) -> Kernels:
    """Return a graph compiled by torch.compile when it first runs; on a GPU, a CUDA graph."""
    if device.type == "cpu":
        # The kernels of a small network take no longer than Python takes to start them: C++ starts them here.
        return torch.compile(graph, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
    replayed = torch.compile(graph, fullgraph=True, dynamic=False, mode="reduce-overhead")  # as a CUDA graph

    def run(*values: Tensor) -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return [value.clone() for value in replayed(*values)]  # whose memory the next run takes

    return run
