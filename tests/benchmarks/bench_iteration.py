"""Time one MAML-TRPO iteration: against the plain loop on point navigation, and at the paper's half-cheetah size.

    python tests/benchmarks/bench_iteration.py navigation [--repeats 5] [--json PATH]
    python tests/benchmarks/bench_iteration.py half-cheetah [--repeats 3] [--chunks 10 20] [--json PATH]

Contestants take turns within one run, so that a busy machine slows all of them; medians are reported, and ratios are
what to quote.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import loop_reference

from metarl import adapted, parallel, runs
from metarl.algorithms.maml import MAML
from metarl.experience import gather
from metarl.memory import keep_freed_memory
from metarl.networks import Network, mlp
from metarl.numerics import flatten
from metarl.outer import TRPO
from metarl.seeding import stream
from metarl.training import Run, Settings
from metarl_envs.half_cheetah import HalfCheetahVelocity
from metarl_envs.navigation import PointNavigation


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def navigation(repeats: int) -> dict[str, float]:
    """20 tasks x 20 episodes x 100 steps, 64-64 tanh, one inner step, 10 conjugate-gradient iterations."""
    run = Run(
        MAML(network=Network(hidden=(64, 64), activation="tanh"), step_size=0.5, surrogate="log_likelihood"),
        PointNavigation(),
        TRPO(),
        Settings(iterations=1, meta_batch_size=20),
    )
    progress = run.first()
    goals = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2))
    run.iterate(progress)
    ours, loop = [], []
    for _ in range(repeats):
        ours.append(seconds(lambda: run.iterate(progress)))
        loop.append(seconds(lambda: loop_reference.iteration(progress.params, goals, 20, 100, 0.5)))
    found = {"metarl_seconds": statistics.median(ours), "loop_seconds": statistics.median(loop)}
    return found | {"times_faster": statistics.median(b / a for a, b in zip(ours, loop, strict=True))}


def half_cheetah(repeats: int, chunks: list[int | None], exact: bool) -> dict[str, float]:
    """The paper's 40 tasks x 20 episodes x 200 steps, 100-100 relu: sampling once, then the parts of the update."""
    family, learner = HalfCheetahVelocity(), MAML().build(HalfCheetahVelocity().spec)
    params = learner.init(stream(0, "initialisation"))
    tasks = family.sample(40, "train", stream(0, "tasks"))
    draws = (stream(0, "draw", index) for index in range(2))
    sampling, experience = timed(lambda: gather(learner, params, tasks, draws)[0])
    found = {"sampling_seconds": sampling}
    rows: dict[str, list[float]] = {}
    for _ in range(repeats):
        if exact:
            for name, value in exact_hessian_parts(params, experience).items():
                rows.setdefault(f"exact/{name}", []).append(value)
        for count in chunks:
            for name, value in update_parts(learner, params, experience, count).items():
                rows.setdefault(f"chunks_{count or 'default'}/{name}", []).append(value)
    found |= {name: statistics.median(values) for name, values in rows.items()}
    return found | {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def update_parts(learner, params, experience, chunks) -> dict[str, float]:
    """Seconds of TRPO's update as a whole, and of its parts measured apart."""
    update = TRPO(chunks=chunks)
    total, result = timed(lambda: update.update(learner, params, {}, experience))
    parts = adapted.split(experience, chunks)
    linearise, lines = timed(lambda: parallel.each(lambda part: adapted.linearise(learner, params, part), parts))
    _, vector, old = adapted.surrogate_gradient(lines)
    product, _ = timed(lambda: adapted.kl_hessian_product(learner, lines, vector))
    evaluation, _ = timed(lambda: adapted.surrogate_and_kl(learner, params, parts, old))
    lines.clear()
    tried = result.metrics["outer/line_search_steps"]
    return {
        "update_seconds": total,
        "gradient_and_graph_seconds": linearise,
        "one_product_seconds": product,
        "one_evaluation_seconds": evaluation,
        "line_search_steps": tried,
        "gradient_norm": float(vector.norm()),
        "parameters": float(flatten(params.values()).numel()),
    }


class Opaque(nn.Sequential):
    """A network that metarl does not look into: it runs by functional_call under vmap, with autograd's derivatives."""


def opaque(spec) -> nn.Module:
    return Opaque(OrderedDict(mlp(spec).named_children()))


def exact_hessian_parts(params, experience) -> dict[str, float]:
    """Seconds of the textbook way: all tasks in one piece, the KL's Hessian by double backward on a kept graph."""
    learner = MAML(network=Network(architecture=opaque)).build(HalfCheetahVelocity().spec)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    values = list(leaves.values())

    def first() -> torch.Tensor:
        outputs = adapted.adapted_outputs(learner, leaves, experience)
        kl = adapted.mean_kl(learner, outputs.detach(), outputs, experience.query).mean()
        return flatten(torch.autograd.grad(kl, values, create_graph=True))

    graph_seconds, gradient = timed(first)
    vector = torch.randn(gradient.shape, generator=stream(0, "vector"))
    product_seconds, _ = timed(lambda: torch.autograd.grad(gradient @ vector, values, retain_graph=True))
    return {"graph_seconds": graph_seconds, "one_product_seconds": product_seconds}


def timed(work):
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["navigation", "half-cheetah"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunks", type=int, nargs="*", default=[None])
    parser.add_argument("--exact", action="store_true", help="time the exact Hessian too (it needs more memory)")
    parser.add_argument("--default-malloc", action="store_true", help="leave glibc's settings as they are")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.default_malloc:
        keep_freed_memory()
    small = options.what == "navigation"
    found = navigation(options.repeats) if small else half_cheetah(options.repeats, options.chunks, options.exact)
    for name, value in found.items():
        print(f"{name:<42} {value:.4g}")
    if options.json:
        machine = {"versions": runs.versions(), "torch_threads": torch.get_num_threads()}
        options.json.write_text(json.dumps({"what": options.what, **found, **machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
