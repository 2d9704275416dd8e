"""iMAML's meta-gradient: what it keeps in memory beside MAML's, and how exact it is.

    python docs/experiments/imaml.py                         a minute of one core

After figure 2 of Rajeswaran et al., 2019 (arXiv 1909.04630). The first table has the bytes of all tensors that graphs
keep for the meta-gradient of one task, at the most, by inner steps: Conv-4 on random images, in float32. The second has
the error of iMAML's meta-gradient, by inner steps and by steps of conjugate gradients: a small network on sinusoids, in
float64. The error is the norm of the difference from the meta-gradient after a long solve, as a share of the norm of
that. It prints both tables and writes imaml.json. Nothing is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import tyro
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from metarl import runs
from metarl.algorithms import IMAML, MAML
from metarl.files import write_json
from metarl.networks.options import Network
from metarl.numerics import flatten
from metarl.seeding import stream
from metarl.testing.batches import default_dtype
from metarl.types import Examples, Experience, Learner, Params, Role, Spec
from metarl_plugins.sinusoid import Sinusoid

STEP_SIZE, MOMENTUM, STRENGTH = 0.01, 0.8, 2.0
"""Of the inner problems on sinusoids."""


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    out: Path = Path("runs/imaml")
    """Folder of the results."""
    steps: tuple[int, ...] = (1, 4, 16, 64)
    """Inner steps whose memory is measured."""
    filters: int = 64
    """Filters of Conv-4."""
    size: int = 28
    """Width and height of its images, of one channel."""
    ways: int = 5
    """Classes of the task."""
    shots: int = 1
    """Support images of each class, and as many query images."""
    inner_steps: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    """Inner steps of which the error is measured."""
    solver_steps: tuple[int, ...] = (1, 2, 5, 20, 80)
    """Steps of conjugate gradients of which the error is measured."""
    long: tuple[int, int] = (5000, 500)
    """Inner steps and steps of conjugate gradients of the meta-gradient that counts as exact."""
    tasks: int = 10
    """Sinusoids, of ten points each."""
    hidden: tuple[int, ...] = (20, 20)
    """Widths of the small network, which has tanh."""
    seed: int = 0
    """Seed of networks and data."""


class Kept:
    """A tensor that a graph keeps. Counts the bytes of all of them: now, and at the most."""

    owners: dict[int, int] = {}  # noqa: RUF012  # graphs that keep a storage, by its address
    now = most = 0

    def __init__(self, value: Tensor) -> None:
        self.value = value
        storage = value.untyped_storage()
        self.address, self.bytes = storage.data_ptr(), storage.nbytes()
        if self.owners.get(self.address, 0) == 0:
            Kept.now += self.bytes
            Kept.most = max(Kept.now, Kept.most)
        self.owners[self.address] = self.owners.get(self.address, 0) + 1

    def __del__(self) -> None:
        self.owners[self.address] -= 1
        if self.owners[self.address] == 0:
            Kept.now -= self.bytes


def main(options: Options) -> None:
    """Measure and print both tables."""
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {
        name: [memory(algorithm, steps, options) for steps in options.steps]
        for name, algorithm in {"maml": MAML, "imaml": IMAML}.items()
    }
    wrong = gradient_errors(options)
    told = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    record = {"options": told, "bytes": kept, **wrong, "versions": runs.versions()}
    write_json(options.out / "imaml.json", record)
    print("\n\n".join(tables(record)))
    print("left by the long solve: " + ", ".join(f"{name} {value:.1e}" for name, value in wrong["long solve"].items()))


def tables(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return memory and errors as tables for a page."""
    steps, inner_steps = (record["options"][name] for name in ("steps", "inner_steps"))
    mib = {f"`{name}`": [f"{each / 2**20:.1f} MiB" for each in row] for name, row in record["bytes"].items()}
    shares = {f"{solver} of the solver": [f"{each:.2g}" for each in row] for solver, row in record["errors"].items()}
    return table("inner steps", steps, mib), table("inner steps", inner_steps, shares)


def memory(algorithm: Any, steps: int, options: Options) -> int:
    """Return the bytes that graphs keep at the most for the meta-gradient of one task of images."""
    spec = Spec((1, options.size, options.size), options.ways, "classification")
    learner = algorithm(steps, network=Network("conv4", filters=options.filters)).build(spec)
    generator = stream(options.seed, "images")
    items = options.ways * options.shots
    targets = torch.arange(options.ways).repeat(1, options.shots)
    support, query = (
        Examples(inputs=torch.rand(1, items, *spec.input_shape, generator=generator), targets=targets) for _ in range(2)
    )
    params = learner.init(stream(options.seed, "network"))
    Kept.most = Kept.now
    before = Kept.now
    with saved_tensors_hooks(Kept, lambda kept: kept.value):
        meta_gradient(learner, params, experience(learner, support, query))
    return Kept.most - before


def gradient_errors(options: Options) -> dict[str, Any]:
    """Return the relative errors of the meta-gradient by inner steps, for each number of the solver's steps.

    Beside them is what the long solve leaves of its two problems, in the worst task: the norm of the inner problem's
    gradient, and the residual of the conjugate gradients.
    """
    with default_dtype(torch.float64):
        exact, left = solved(*options.long, options)
        errors = {
            str(solver): [
                float((solved(steps, solver, options)[0] - exact).norm() / exact.norm())
                for steps in options.inner_steps
            ]
            for solver in options.solver_steps
        }
    return {"errors": errors, "long solve": left}


def solved(steps: int, solver_steps: int, options: Options) -> tuple[Tensor, dict[str, float]]:
    """Return iMAML's meta-gradient on sinusoids as one vector, and what its solvers leave."""
    family = Sinusoid(shots=10, queries=10)
    tasks = family.sample(options.tasks, "train", stream(options.seed, "tasks"))
    support, query = (tasks.draw(role, stream(options.seed, role)) for role in get_args(Role))
    network = Network(hidden=options.hidden, activation="tanh")
    algorithm = IMAML(
        steps, STEP_SIZE, momentum=MOMENTUM, strength=STRENGTH, solver_steps=solver_steps, network=network
    )
    learner = algorithm.build(family.spec)
    params = learner.init(stream(options.seed, "network"))
    gradient, metrics = meta_gradient(learner, params, experience(learner, support, query))
    left = {name: float(metrics[name].max()) for name in ("inner/gradient", "inner/residual")}
    return flatten(gradient.values()), left


def experience(learner: Learner, support: Examples, query: Examples) -> Experience:
    """Return what a meta-iteration learns from: the same support set for every inner step."""
    nothing = torch.zeros(len(support.inputs), 0)
    return Experience(descriptors=nothing, supports=(support,) * learner.adaptations, query=query, progress=0.0)


def meta_gradient(learner: Learner, params: Params, found: Experience) -> tuple[Params, dict[str, Tensor]]:
    """Return the gradient of the mean meta-loss of all tasks, and the learner's metrics."""
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    losses, metrics = learner.meta_loss(leaves, found)
    return dict(zip(leaves, torch.autograd.grad(losses.mean(), list(leaves.values())), strict=True)), metrics


def table(corner: str, columns: Sequence[int], rows: dict[str, list[str]]) -> str:
    """Return a table for a page."""
    lines = [f"| {corner} | " + " | ".join(map(str, columns)) + " |", "|---" * (1 + len(columns)) + "|"]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(row) + " |" for name, row in rows.items())])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
