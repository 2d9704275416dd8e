"""One meta-iteration of second-order MAML on labelled examples: what a run does, and the same with other libraries.

An iteration samples tasks, differentiates through one inner step, and takes a step of Adam. ``higher`` and ``torchopt``
are used as in their own few-shot examples, which loop over tasks. Everybody samples with metarl's family, save JAX. All
must give metarl's meta-gradient on the same data in float64, or they do not take part.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from entrant import Entrant
from operators import operators_of
from support.precision import dtype
from torch import Tensor, nn
from torch.nn import functional

from metarl.algorithms.maml import MAML
from metarl.fewshot.classification import NWayKShot
from metarl.networks.convolutional import conv4
from metarl.networks.options import Network, mlp
from metarl.numerics import flatten
from metarl.outer import adapted
from metarl.outer.gradient import Adam
from metarl.seeding import stream
from metarl.speed.allocator import keep_freed_memory
from metarl.training.iteration import gather
from metarl.training.loop import Run
from metarl.training.progress import Progress
from metarl.training.settings import Settings
from metarl.types import Examples, Experience, Family, Params
from metarl_plugins.sinusoid import Sinusoid

TOLERANCE = 1e-8
Loss = Callable[[Tensor, Tensor], Tensor]
LEARNING_RATE = 1e-3


class Problem(NamedTuple):
    family: Family
    network: Network
    module: Callable[[], nn.Module]  # the same network
    loss: Loss
    step_size: float
    tasks: int
    device: str
    steps: int


def problem(
    what: str, tasks: int, shots: int, device: str, hidden: list[int] = (), filters: int = 64, steps: int = 1
) -> Problem:
    """``sinusoid``; or Omniglot, 5 ways, with noise for images: ``conv4``, or ``mlp`` with batch norm."""
    if what == "sinusoid":
        family, loss, step_size = Sinusoid(shots=shots), functional.mse_loss, 0.01
        network, module = Network(hidden=tuple(hidden)), lambda: mlp(family.spec, tuple(hidden))
    else:
        images, labels = noise()
        family = NWayKShot(images.flatten(0, 1), labels, ways=5, shots=shots, rotations="train")
        loss, step_size = functional.cross_entropy, 0.4
        network, module = Network(architecture="conv4", filters=filters), lambda: conv4(family.spec, filters)
    if what == "mlp":
        network = Network(hidden=tuple(hidden), normalise=True)
        module = lambda: mlp(family.spec, tuple(hidden), normalise=True)  # noqa: E731
    if device == "cpu":
        keep_freed_memory()
    return Problem(family, network, module, loss, step_size, tasks, device, steps)


def noise() -> tuple[Tensor, Tensor]:
    """1200 classes of 20 images ``[class, item, 1, 28, 28]``, and the class of each: noise takes as long as letters."""
    images = torch.randint(256, (1200, 20, 1, 28, 28), dtype=torch.uint8, generator=stream(0, "images"))
    return images, torch.arange(1200).repeat_interleave(20)


def prepared(found: Problem, **settings: Any) -> Run:
    algorithm = MAML(step_size=found.step_size, network=found.network, steps=found.steps)
    outer = Adam(learning_rate=LEARNING_RATE)
    options = {"meta_batch_size": found.tasks, "device": found.device} | settings
    return Run(algorithm, found.family, outer, Settings(**options))


def ours(**what: Any) -> Entrant:
    """What a run does, with all its book-keeping."""
    found = problem(**what)
    run = prepared(found)
    progress, _ = run.iterate(run.first())
    return Entrant(_iterating(run, progress), {"operators": operators_of(lambda: run.iterate(progress))}, found.device)


def compiled(torch_threads: int | None, **what: Any) -> Entrant:
    """The same with --compile, whose kernels keep the number of threads that they were made for."""
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    found = problem(**what)
    run = prepared(found, compile=True)
    with warnings.catch_warnings(category=UserWarning, action="error"):  # that it cannot be compiled
        progress, _ = run.iterate(run.first())
    return Entrant(_iterating(run, progress), device=found.device)


def _iterating(run: Run, progress: Progress) -> Callable[[int], None]:
    def work(number: int) -> None:
        nonlocal progress
        progress, _ = run.iterate(progress)

    return work


def drawn(found: Problem, number: int) -> tuple[Examples, Examples]:
    """Support and query of fresh tasks, as metarl draws them."""
    tasks = found.family.sample(found.tasks, "train", stream(0, "tasks", number))
    support = tasks.draw("support", stream(0, "support", number, device=found.device))
    return support, tasks.draw("query", stream(0, "query", number, device=found.device))


def sampling_alone(**what: Any) -> Entrant:
    """The share of sampling in the others."""
    found = problem(**what)

    def work(number: int) -> None:
        drawn(found, number)

    return Entrant(work, device=found.device)


def library(name: str, **what: Any) -> Entrant:
    """Another library's way to the meta-gradient, and torch's Adam."""
    from libraries import CONTESTANTS

    found, backward = problem(**what), CONTESTANTS[name]
    network = found.module().to(found.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)

    def gradient(params: Params, experience: Experience) -> Tensor:
        judged = found.module().to(found.device)
        judged.load_state_dict(params)
        backward(judged, found.loss, found.step_size, experience.supports[0], experience.query)
        return flatten(value.grad for value in judged.parameters())

    def work(number: int) -> None:
        support, query = drawn(found, number)
        optimiser.zero_grad()
        backward(network, found.loss, found.step_size, support, query)
        optimiser.step()

    return Entrant(work, {"disagreement": disagreement(found, gradient)}, found.device)


def disagreement(found: Problem, gradient: Callable[[Params, Experience], Tensor]) -> float:
    """How far a flat meta-gradient is from metarl's, relative to its norm, on the same data in float64.

    Raises:
        ValueError: too far.
    """
    with dtype(torch.float64):
        run = prepared(found)
        params = run.first().params
        tasks = found.family.sample(found.tasks, "train", stream(0, "tasks"))
        draws = (stream(0, "draw", index, device=found.device) for index in range(2))
        experience, _ = gather(run.learner, params, tasks, draws)
        mine = adapted.mean_gradient(
            lambda candidate, _: run.learner.meta_loss(candidate, experience)[0].sum(),
            params,
            [experience],
        )
        far = float((gradient(params, experience) - mine).norm() / mine.norm())
    if not far < TOLERANCE:
        raise ValueError(f"this is another meta-gradient: {far:.1e} of its norm away")
    return far
