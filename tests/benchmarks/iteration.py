"""One MAML-TRPO iteration, sampling and all: metarl's, its parts, and the same mathematics written in plainer ways."""

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from entrant import Entrant, synchronise
from operators import operators_of
from sampling import Size, compile_all
from support import loop_reference
from torch import Tensor, nn

from metarl import objectives
from metarl.algorithms.maml import MAML
from metarl.control.tasks import ControlTasks
from metarl.networks.options import Network, mlp
from metarl.numerics import conjugate_gradient, flatten, unflatten
from metarl.outer import adapted
from metarl.outer.trpo import TRPO
from metarl.seeding import stream
from metarl.training import iteration
from metarl.training.iteration import gather
from metarl.training.loop import Run
from metarl.training.settings import Settings
from metarl.types import Experience, Learner, Params, Spec

STEP_SIZE = 0.1


class Problem:
    """What all contestants solve: the sizes of the data, and the network."""

    def __init__(self, hidden: list[int], activation: str, steps: int = 1, **size: Any) -> None:
        self.size, self.steps = Size(**size), steps
        self.network = Network(hidden=tuple(hidden), activation=activation)  # type: ignore[arg-type]

    def run(self, network: Network, outer: TRPO, compile: bool = False) -> Run:
        algorithm = MAML(network=network, step_size=STEP_SIZE, steps=self.steps, surrogate="log_likelihood")
        settings = Settings(iterations=1, meta_batch_size=self.size.tasks, device=self.size.device, compile=compile)
        return Run(algorithm, self.size.family, outer, settings)

    def opaque(self) -> Network:
        """The same network, which metarl does not look into: functional_call under vmap, autograd's derivatives."""

        def make(spec: Spec) -> nn.Module:
            network = mlp(spec, self.network.hidden, self.network.activation)
            return Opaque(OrderedDict(network.named_children()))

        return Network(architecture=make)


class Opaque(nn.Sequential):
    """A module of a type of its own."""


def ours(**problem: Any) -> Entrant:
    """What a run does."""
    solved = Problem(**problem)
    return whole(solved, solved.run(solved.network, TRPO()))


def compiled(**problem: Any) -> Entrant:
    """The same with --compile."""
    solved = Problem(**problem)
    run = solved.run(solved.network, TRPO(), compile=True)
    progress = run.first()
    compile_all(lambda: run.iterate(progress))
    return whole(solved, run)


def autograd(**problem: Any) -> Entrant:
    """metarl's outer update on all tasks in one piece, with autograd's derivatives of the network."""
    solved = Problem(**problem)
    return whole(solved, solved.run(solved.opaque(), TRPO(chunks=1)))


def whole(problem: Problem, run: Run) -> Entrant:
    progress = run.first()

    def work(number: int) -> dict[str, float]:
        _, row = run.iterate(progress)
        return {"tries": float(row["outer/line_search_steps"])}

    told = {"parameters": sum(value.numel() for value in progress.params.values())}
    return Entrant(work, told, problem.size.device)


def split(**problem: Any) -> Entrant:
    """The same iteration with a watch on its parts: the device is waited for between them."""
    solved = Problem(**problem)
    run = solved.run(solved.network, TRPO())
    progress = run.first()
    run.iterate(progress)
    told = {"operators": operators_of(lambda: run.iterate(progress))}

    def work(number: int) -> dict[str, float]:
        watch = Watch(solved.size.device)
        began = time.perf_counter()
        with watch.watching():
            run.iterate(progress)
        synchronise(solved.size.device)
        return watch.parts(time.perf_counter() - began)

    return Entrant(work, told, solved.size.device)


class Watch:
    """Takes the time of the functions that an iteration is made of. Groups of tasks may run them side by side."""

    def __init__(self, device: str) -> None:
        self.device, self._lock = device, threading.Lock()
        self.calls: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        update = ("adapted_outputs", "linearise", "kl_hessian_product", "surrogate_and_kl")
        watched = [(iteration, "_drawn"), (ControlTasks, "rollout"), *((adapted, name) for name in update)]
        with ExitStack() as stack:
            for module, name in watched:
                timed = self._timed(name, getattr(module, name))
                stack.enter_context(mock.patch.object(module, name, timed))
            yield

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            synchronise(self.device)
            began = time.perf_counter()
            result = function(*arguments, **keywords)
            synchronise(self.device)
            with self._lock:
                self.calls.setdefault(name, []).append((began, time.perf_counter()))
            return result

        return call

    def parts(self, total: float) -> dict[str, float]:
        """Seconds of the parts. Of linearising, the policies' forward pass is a share: groups run side by side."""
        began, ended = zip(*self.calls["linearise"], strict=True)
        linearising = max(ended) - min(began)
        inside = sum(end - start for start, end in self.calls["adapted_outputs"] if min(began) <= start <= max(ended))
        adaptation = linearising * inside / self._sum("linearise")
        found = {
            "sampling": self._sum("_drawn"),
            "adaptation": adaptation,
            "gradient": linearising - adaptation,
            "conjugate gradient": self._sum("kl_hessian_product"),
            "line search": self._sum("surrogate_and_kl"),
        }
        # Advantages and inner steps between the episodes: all that could run while other tasks' episodes are simulated.
        between = self._sum("_drawn") - self._sum("rollout")
        rest = total - sum(found.values())
        return found | {"rest": rest, "between episodes": between, "tries": float(len(self.calls["surrogate_and_kl"]))}

    def _sum(self, name: str) -> float:
        return sum(end - start for start, end in self.calls[name])


def loop(**problem: Any) -> Entrant:
    """A loop over tasks, one NumPy environment for each episode: navigation, tanh, one inner step."""
    solved = Problem(**problem)
    params = solved.run(solved.network, TRPO()).first().params
    goals = np.random.default_rng(0).uniform(-0.5, 0.5, (solved.size.tasks, 2))
    episodes = solved.size.lanes // solved.size.tasks

    def work(number: int) -> None:
        loop_reference.iteration(params, goals, episodes, solved.size.horizon, STEP_SIZE)

    return Entrant(work)


def plain(**problem: Any) -> Entrant:
    """Batched as one would first write it: all tasks in one piece, the KL's exact Hessian by double backward."""
    solved = Problem(**problem)
    run = solved.run(solved.opaque(), TRPO())
    params, device = run.first().params, solved.size.device

    def work(number: int) -> None:
        tasks = solved.size.family.sample(solved.size.tasks, "train", stream(0, "tasks/train", 1))
        draws = (stream(0, "draw", 1, step, device=device) for step in itertools.count())
        plain_update(run.learner, params, gather(run.learner, params, tasks, draws)[0], TRPO())

    return Entrant(work, device=device)


def plain_update(learner: Learner, params: Params, experience: Experience, trpo: TRPO) -> Params:
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    values = list(leaves.values())
    outputs = adapted.adapted_outputs(learner, leaves, experience)
    old = outputs.detach()
    surrogate, kl = judged(learner, experience, old, outputs)
    gradient = flatten(torch.autograd.grad(surrogate, values, retain_graph=True))
    slope = flatten(torch.autograd.grad(kl, values, create_graph=True))

    def product(vector: Tensor) -> Tensor:
        return flatten(torch.autograd.grad(slope @ vector, values, retain_graph=True)) + trpo.damping * vector

    direction, _ = conjugate_gradient(product, -gradient, trpo.cg_iterations)
    full_step = direction * (2 * trpo.max_kl / (direction @ product(direction))).sqrt()
    for attempt in range(trpo.max_backtracks):
        candidate = unflatten(flatten(params.values()) + trpo.backtrack**attempt * full_step, params)
        with torch.no_grad():
            new = adapted.adapted_outputs(learner, candidate, experience)
            reached, moved = judged(learner, experience, old, new)
        if reached < surrogate and moved <= trpo.max_kl:
            return candidate
    return params


def judged(learner: Learner, experience: Experience, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Mean surrogate loss of the adapted policies, and their mean KL from the old outputs."""
    surrogate = objectives.surrogate("likelihood_ratio", learner.spec.distribution, new, experience.query)
    return surrogate.mean(), adapted.mean_kl(learner, old, new, experience.query).mean()
