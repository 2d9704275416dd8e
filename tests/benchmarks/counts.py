"""Operations and bytes of what the suite measures, counted by formula, against the ceilings that it measured.

Matrix products only. One of ``[rows, in] x [in, out]`` takes 2 rows in out operations and moves its three matrices, in
float32; so do both of its derivatives, in which two of the three matrices make the third. With A the sum of this over
all layers and B that over all but the first (nobody asks for the derivative in the data),
``networks/derivatives/perceptron.py`` takes

- forward: A
- pull, the product with the transposed Jacobian: A for the weights' gradients, B for the hidden layers'
- push, the product with the Jacobian: A for the tangents of the weights, B for those of the hidden layers
- bend, the product with the Hessian of the loss: a push; then for the weights A with the tangents of the layers'
  cotangents and B with those of their inputs; and for the hidden layers B and B again: 2 A + 4 B; where inputs are few,
  repeated bends leave two products of the second layer out, for what they have in common, which is computed once

Convolutions are counted alike, with their 9 in out operations for each place of the output.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

FLOAT = 4
NARROW = 8
"""Inputs that are few: as ``metarl/networks/derivatives/perceptron.py`` has it."""
PRODUCTS = 10
"""Conjugate-gradient iterations: products with the KL's Hessian."""
SPACES = {"navigation": (2, 2), "half-cheetah": (17, 6), "ant": (27, 8)}
PAPER_NETWORK = (100, 100)
PARTS = ("adaptation", "gradient", "conjugate gradient", "line search")


class Cost(NamedTuple):
    operations: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(self.operations + other.operations, self.bytes + other.bytes)

    def __rmul__(self, times: float) -> "Cost":  # type: ignore[override]
        return Cost(times * self.operations, times * self.bytes)


class Passes(NamedTuple):
    """What a network's passes over its data cost."""

    forward: Cost
    pull: Cost
    push: Cost
    bend: Cost
    shared: Cost
    """What repeated bends have in common, once."""
    again: Cost
    """A bend beside that."""


def passes(layers: list[Cost], shared: Cost | None = None) -> Passes:
    every, later = total(layers), total(layers[1:])
    bend = 2 * every + 4 * later
    again = bend if shared is None else bend + -2 * layers[1]
    return Passes(every, every + later, every + later, bend, shared or Cost(0, 0), again)


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, start=Cost(0, 0))


def perceptron(tasks: int, rows: int, widths: tuple[int, ...], tanh: bool = True) -> Passes:
    """A network of its own for each task, on ``rows`` rows of each."""

    def product(ins: int, outs: int) -> Cost:
        return Cost(2 * tasks * rows * ins * outs, FLOAT * tasks * (rows * (ins + outs) + ins * outs))

    layers, inputs = [product(*pair) for pair in pairwise(widths)], widths[0] + 1
    if len(layers) == 1 or widths[0] > NARROW:
        return passes(layers)
    bends = product(inputs**2, widths[1]) if tanh else Cost(0, 0)
    return passes(layers, inputs * layers[1] + bends)


def conv4(tasks: int, images: int, filters: int, ways: int = 5, side: int = 28) -> Passes:
    """Four strided 3x3 convolutions, and a head."""
    layers, ins = list[Cost](), 1
    for _ in range(4):
        half = (side + 1) // 2
        moved = images * (ins * side**2 + filters * half**2) + 9 * ins * filters
        layers.append(Cost(2 * 9 * tasks * images * half**2 * ins * filters, FLOAT * tasks * moved))
        ins, side = filters, half
    head = Cost(2 * tasks * images * filters * ways, FLOAT * tasks * (images * (filters + ways) + filters * ways))
    return passes([*layers, head])


def trpo_parts(sizes: dict[str, Any], tries: float) -> dict[str, Cost]:
    """The parts of a MAML-TRPO update: see ``metarl/outer/adapted.py``."""
    ins, outs = SPACES[sizes["family"]]
    widths, steps = (ins, *sizes["hidden"], outs), sizes["steps"]
    one = perceptron(sizes["tasks"], sizes["episodes"] * sizes["horizon"], widths, sizes["activation"] == "tanh")
    adaptation = steps * (one.forward + one.pull) + one.forward
    # J is pushed through the inner steps, each of which bends the tangents, and the adapted policies; J' goes back.
    product = 2 * steps * one.again + one.push + one.pull
    products = steps * one.shared + PRODUCTS * product
    parts = (adaptation, one.pull + steps * one.bend, products, tries * adaptation)
    return dict(zip(PARTS, parts, strict=True))


def meta_gradient(sizes: dict[str, Any]) -> Cost:
    """One inner step on the support items, the query loss, and back through both."""
    what, tasks = sizes["what"], sizes["tasks"]
    if what == "sinusoid":
        one = perceptron(tasks, sizes["shots"], (1, *sizes["hidden"], 1))
    elif what == "mlp":
        one = perceptron(tasks, 5 * sizes["shots"], (28 * 28, *sizes["hidden"], 5))
    else:
        one = conv4(tasks, 5 * sizes["shots"], sizes["filters"])
    return one.forward + one.pull + one.forward + one.pull + one.bend


def limits(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Set what was counted against the ceilings, for metarl's rows; empty where the ceilings were not measured."""
    if "numbers" not in (ceilings := parts.get("ceilings", {}).get("ceilings", {}).get("rows", {}).get("ceilings", {})):
        return []
    rates, rows = ceilings["numbers"], list[dict[str, Any]]()
    for name, group in parts.get("sampling", {}).items():
        rows += [judged(f"sampling {name}", *sampled(group), rates)]
    for name, group in parts.get("iteration", {}).items():
        rows += [judged(f"{name}: {part}", *told, rates) for part, told in iterated(group).items()]
    for name, group in parts.get("few-shot", {}).items():
        row = group["rows"]["metarl"]
        rows += [judged(name, row, meta_gradient(group["sizes"]), width(group["sizes"]), rates)]
    return [row for row in rows if row]


def sampled(group: dict[str, Any]) -> tuple[dict[str, Any], Cost, int]:
    """The policies' products, while the simulator waits."""
    sizes, row = group["sizes"], group["rows"]["metarl.control.collect, MAML's policies"]
    ins, outs = SPACES[sizes["family"]]
    step = perceptron(sizes["tasks"], sizes["episodes"], (ins, *PAPER_NETWORK, outs)).forward
    told = row | {"simulator": 1 / row["ratio"]} if "ratio" in row else row
    return told, sizes["horizon"] * step, PAPER_NETWORK[0]


def iterated(group: dict[str, Any]) -> dict[str, tuple[dict[str, Any], Cost, int]]:
    """The parts of the update, and all of them together."""
    watched, sizes = group["rows"]["metarl, its parts watched"], group["sizes"]
    if "numbers" not in watched:
        return {}
    numbers, costs = watched["numbers"], trpo_parts(sizes, watched["numbers"]["tries"])
    found = {part: ({"seconds": numbers[part]}, cost, width(sizes)) for part, cost in costs.items()}
    update = {"seconds": sum(numbers[part] for part in costs), "told": watched["told"]}
    return found | {"the update": (update, total(costs.values()), width(sizes))}


def width(sizes: dict[str, Any]) -> int:
    return sizes["hidden"][0] if sizes.get("what") != "mlp" and sizes.get("hidden") else 0


def judged(name: str, row: dict[str, Any], cost: Cost, layer: int, rates: dict[str, float]) -> dict[str, Any]:
    """Return how near a row comes to each ceiling; the nearest is what limits it."""
    if "seconds" not in row:
        return {}
    seconds = row["seconds"]
    gemm = {100: rates["gemm_100"], 64: rates["gemm_64"], 40: rates["gemm_64"]}.get(layer, rates["gemm"])
    shares = {
        "matrix products": cost.operations / seconds / gemm,
        "memory": cost.bytes / seconds / rates["copy"],
    }
    if "operators" in row.get("told", {}):
        shares["operations one after another"] = row["told"]["operators"] * rates["operator"] / seconds
    if "simulator" in row:
        shares["the simulator"] = row["simulator"]
    nearest = max(shares, key=lambda ceiling: shares[ceiling])
    return {"row": name, "seconds": seconds, **cost._asdict(), "shares": shares, "nearest": nearest}
