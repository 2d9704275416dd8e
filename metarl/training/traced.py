"""A whole meta-iteration as a graph of elementary operations, with all derivatives in it.

Where an answer differs from the one that was traced (such as whether the meta-gradient is finite), the graph tells.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Generator, Tensor

from metarl.speed.tracing import Graph, Recorder, Replayer, device_of, graph_of, tensor
from metarl.training.iteration import Iterate, Outcome
from metarl.types import Params, Update


@dataclass(frozen=True)
class Traced:
    """A traced iteration."""

    graph: Graph
    """From ``_inputs`` to results, and whether they hold."""
    streams: int
    """How many streams it opens."""
    names: tuple[tuple[str, ...], ...]
    """Of parameters, of the outer update's state, of the update's metrics, of scores."""
    finite: bool
    """Whether the meta-gradient is finite on the way that was traced."""

    def __call__(
        self, params: Params, state: dict[str, Any], progress: float, streams: Iterator[Generator]
    ) -> Outcome | None:
        """Run it; None where the iteration takes another way than the one that was traced."""
        inputs = _inputs(self.names, params, state, progress)
        *found, held = self.graph(inputs, list(islice(streams, self.streams)))
        if not held:
            return None
        values = iter(found)
        moved, kept, metrics, scores = ({name: next(values) for name in names} for names in self.names)
        return Outcome(Update(moved, kept, metrics, self.finite), scores)


def trace(
    iterate: Iterate, params: Params, state: dict[str, Any], progress: float, streams: Iterator[Generator]
) -> Traced:
    """Trace what ``iterate`` does.

    Args:
        iterate: The iteration. What it keeps elsewhere, such as a count in a family, is lost.
        params: Meta-parameters ``[*shape]``, whose shapes and device stay.
        state: The outer update's state, tensors and numbers; numbers become tensors.
        progress: Share of the training that lies behind.
        streams: The streams of random numbers that the iteration opens, one after another.

    Raises:
        TraceError: random numbers are drawn from elsewhere, or depend on others.
        RuntimeError: the iteration depends on its own numbers in ways that a graph cannot hold.
    """
    device = device_of(params)
    recorder, kept = Recorder(streams), {name: tensor(value, device) for name, value in state.items()}
    share: Any = tensor(progress, device)
    with recorder:
        outcome = iterate(params, kept, share, recorder.watched())
        finite = bool(outcome.update.finite)
    names = tuple(tuple(group) for group in groups(outcome))
    inputs = _inputs(names, params, state, progress)
    graph = graph_of(_flat(iterate, names, recorder), inputs, recorder)
    return Traced(graph, len(recorder.opened), names, finite)


def groups(outcome: Outcome) -> tuple[Mapping[str, Any], ...]:
    """Return the numbers of an outcome: parameters, state, metrics, scores."""
    return outcome.update.params, outcome.update.state, outcome.update.metrics, outcome.scores


def _inputs(names: Sequence[Sequence[str]], params: Params, state: dict[str, Any], progress: float) -> list[Tensor]:
    numbers, device = [*(state[name] for name in names[1]), progress], device_of(params)
    return [*(params[name] for name in names[0]), *(tensor(number, device) for number in numbers)]


def _flat(
    iterate: Iterate, names: Sequence[Sequence[str]], recorder: Recorder
) -> Callable[[Sequence[Tensor], Replayer], list[Tensor]]:
    """Return an iteration as a function of tensors, to results in the order of names, and whether they hold."""
    parameters, kept = len(names[0]), len(names[1])

    def flat(values: Sequence[Tensor], replayer: Replayer) -> list[Tensor]:
        params = dict(zip(names[0], values[:parameters], strict=True))
        state = dict(zip(names[1], values[parameters : parameters + kept], strict=True))
        share: Any = values[-1]
        with replayer:
            outcome = iterate(params, state, share, iter(recorder.opened))
            bool(outcome.update.finite)  # asked as it was when it was recorded
        found = zip(groups(outcome), names, strict=True)
        return [*(tensor(group[name]).detach() for group, order in found for name in order), replayer.held()]

    return flat
