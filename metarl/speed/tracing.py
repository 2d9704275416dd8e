"""Graphs (``torch.fx``) of elementary operations on tensors, derivatives included.

Tracing first runs the function normally and records which random numbers it draws and which values it reads from
tensors for control flow (its questions, and their answers). Random numbers are drawn outside the graph, by the same
calls from the same streams, so they equal those of the normal run. A part of an iteration must not ask questions.
``metarl.training`` traces whole iterations; their graphs report when an answer differs from the recorded one.
"""

import warnings
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
    """The function cannot be traced as a graph."""


class Draw(NamedTuple):
    """A call that draws random numbers."""

    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    stream: int  # index of its stream, in the order in which streams are opened

    def __call__(self, streams: Sequence[Generator]) -> Tensor:
        """Draw from its stream."""
        return self.function(*self.arguments, **self.options, generator=streams[self.stream])


@dataclass(frozen=True)
class Graph:
    """A traced function of tensors and streams of random numbers."""

    kernels: Kernels
    constants: tuple[Tensor, ...]
    """Tensors that it reads besides its inputs, such as images."""
    draws: tuple[Draw, ...]

    def __call__(self, inputs: Sequence[Tensor], streams: Sequence[Generator]) -> list[Tensor]:
        """Draw the random numbers and run the graph. No gradients are recorded."""
        drawn = [draw(streams) for draw in self.draws]
        with torch.no_grad():
            return list(self.kernels(*self.constants, *inputs, *drawn))


def trace_part(
    function: Function, inputs: Sequence[Tensor], streams: Sequence[Generator]
) -> tuple[Graph, list[Tensor]]:
    """Trace a function; return its graph and the results of its normal run.

    Raises:
        TraceError: it draws random numbers that do not come from the streams, or that depend on other tensors; or it
            reads a bool or an integer from a tensor.
        RuntimeError: its control flow depends on tensor values in other ways.
    """
    recorder = Recorder(iter(streams))
    opened = list(recorder.watched())
    with recorder:
        results = list(function(inputs, opened))
    if recorder.answers:
        raise TraceError("it reads a bool or an integer from a tensor")

    def flat(values: Sequence[Tensor], replayer: Replayer) -> list[Tensor]:
        with replayer:
            return [result.detach() for result in function(values, opened)]

    return graph_of(flat, inputs, recorder), results


def tensor(value: Any, device: torch.device | None = None) -> Tensor:
    """Return a number as a float64 scalar tensor, which adopts the precision of the tensors it is combined with."""
    # Filled on the device, not copied to it: nothing blocks.
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=torch.float64, device=device)


def device_of(params: Params) -> torch.device:
    """Return the device that all parameters live on."""
    return next(iter(params.values())).device


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the random numbers drawn, their streams, and the answers to questions."""

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
        # The generator arrives here as a different object, but with the same seed: that identifies its stream.
        seeds = [opened.initial_seed() for opened in self.opened]
        if generator is None or generator.initial_seed() not in seeds:
            raise TraceError(f"{function} draws random numbers from another generator than the iteration's")
        if any(isinstance(value, Tensor) for value in (*arguments, *options.values())):
            raise TraceError(f"{function} draws random numbers that depend on others")
        return Draw(function, arguments, options, seeds.index(generator.initial_seed()))


class Replayer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces random draws by numbers that were drawn elsewhere, and questions by the recorded answers."""

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
        """Return whether all recorded answers still hold, as a bool tensor on the CPU."""
        # Combined on each device first, so that only one number per device is copied.
        held = torch.ones((), dtype=torch.bool)
        devices = {agreed.device for agreed in self.agreed}
        per_device = [torch.stack([agreed for agreed in self.agreed if agreed.device == one]).all() for one in devices]
        return torch.stack([held, *(one.cpu() for one in per_device)]).all()


def graph_of(
    flat: Callable[[Sequence[Tensor], Replayer], list[Tensor]], inputs: Sequence[Tensor], recorder: Recorder
) -> Graph:
    """Trace a function that ran under ``recorder``; a Replayer repeats the draws and answers of that run."""

    def drawn_outside(*values: Tensor) -> list[Tensor]:
        return flat(values[: len(inputs)], Replayer(values[len(inputs) :], recorder.answers))

    graph = make_fx(drawn_outside)(*inputs, *recorder.drawn)
    return Graph(graph, _lifted(graph), tuple(recorder.draws))


def _lifted(graph: GraphModule) -> tuple[Tensor, ...]:
    """Turn the constants of a graph into its first inputs, and return them."""
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
    """Return a graph that torch.compile compiles at its first run; on a GPU, it becomes a CUDA graph."""
    if device.type == "cpu":
        # A small network's kernels take no longer than Python needs to launch them, so C++ launches them.
        return torch.compile(graph, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
    # As a CUDA graph.
    replayed = _first_without_advice(torch.compile(graph, fullgraph=True, dynamic=False, mode="reduce-overhead"))

    def run(*values: Tensor) -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return [value.clone() for value in replayed(*values)]  # the next run overwrites the memory of the results

    return run


def _first_without_advice(compiled: Kernels) -> Kernels:
    """Drop the compiler's advice to switch TF32 on, which it gives in the first call: here it is off by intent."""
    first = True

    def run(*values: Tensor) -> Sequence[Tensor]:
        nonlocal first
        if not first:
            return compiled(*values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
            results = compiled(*values)
        first = False
        return results

    return run
