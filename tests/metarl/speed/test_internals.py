"""What metarl relies on in parts of torch that are not public: a new version of torch is judged here."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Generator, Tensor

from metarl.speed import internals


class Pair(NamedTuple):
    one: Any
    other: Any


class Watch(internals.TorchDispatchMode):
    """Takes down the operations below it, with what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[tuple[Any, Any, dict[str, Any]]] = []

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
        self.met.append((function, arguments, dict(options or {})))
        return function(*arguments, **(options or {}))


def watched(action: Any) -> list[tuple[Any, Any, dict[str, Any]]]:
    with Watch() as watch:
        action()
    return watch.met


def test_structures_are_taken_apart_and_put_together() -> None:
    values = {"a": Pair(torch.ones(2), 3), "b": [None, (torch.zeros(1), "text")]}
    leaves, form = internals.take_apart(values)
    assert [leaf for leaf in leaves if not isinstance(leaf, Tensor)] == [3, None, "text"]
    assert internals.leaves_of(values) == leaves
    again = internals.put_together(leaves, form)
    assert type(again["a"]) is Pair
    assert again["b"][0] is None
    assert form == internals.take_apart(again)[1]
    assert hash(form) == hash(internals.take_apart(again)[1])
    doubled = internals.on_leaves(lambda leaf: leaf * 2 if isinstance(leaf, Tensor) else leaf, values)
    assert doubled["a"].one.tolist() == [2, 2]


def whole_numbers(size: int, generator: Generator) -> Tensor:
    return torch.randint(9, (size,), generator=generator)


@pytest.mark.parametrize("draw", [torch.randn, torch.rand, whole_numbers])
def test_operations_that_draw_are_known_with_their_generator(draw: Any) -> None:
    """It may come as another object, but with the seed of the one that was given."""
    generator = Generator().manual_seed(2**62 + 5)
    met = watched(lambda: draw(3, generator=generator))
    ((function, _, options),) = [one for one in met if internals.is_random(one[0])]
    assert options["generator"].initial_seed() == generator.initial_seed()
    assert "Generator" in str(function._schema)


def test_operations_that_do_not_draw_are_not_taken_for_such() -> None:
    assert not any(internals.is_random(function) for function, *_ in watched(lambda: torch.ones(3).sum()))


@pytest.mark.parametrize(
    ("action", "questions"),
    [
        (lambda: bool(torch.tensor(True)), 1),
        (lambda: int(torch.tensor(3)), 1),
        (lambda: float(torch.tensor(3.0)), 0),
        (lambda: torch.tensor(True).logical_not(), 0),
    ],
)
def test_questions_are_told_from_numbers_that_are_read(action: Any, questions: int) -> None:
    assert sum(internals.is_question(function, arguments) for function, arguments, _ in watched(action)) == questions


def test_graphs_hold_derivatives_and_call_nothing_of_python() -> None:
    def function(value: Tensor) -> list[Tensor]:
        leaf = value.detach().requires_grad_()
        (slope,) = torch.autograd.grad((leaf**3).sum(), leaf, create_graph=True)
        return [torch.autograd.grad(slope.sum(), leaf)[0]]

    graph = internals.make_fx(function)(torch.ones(2))
    assert {node.op for node in graph.graph.nodes} <= {"placeholder", "get_attr", "call_function", "output"}
    assert graph(torch.tensor([1.0, 2.0]))[0].tolist() == [6.0, 12.0]
