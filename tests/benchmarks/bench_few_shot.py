"""Time one meta-iteration of MAML on labelled examples against the same mathematics in other people's hands.

    python tests/benchmarks/bench_few_shot.py sinusoid [--repeats 20] [--threads 1 2] [--json PATH]
    python tests/benchmarks/bench_few_shot.py omniglot [--shots 5] [--network mlp] [--device cuda] [--json PATH]

An iteration samples tasks, differentiates through one inner step, and takes a step of Adam. ``metarl`` is what a run
does, with all its book-keeping. ``higher`` and ``torchopt`` (``pip install -e ".[bench]"``) are written as in their
own few-shot examples, ``functional`` with torch.func.functional_call: loops over tasks, as the examples of all three
are; ``vmap`` maps torch.func.grad over tasks, which gives a wrong meta-gradient through batch norm (PyTorch 2.13: 1e-4
to 5e-2 away) and so is left out there. Everybody samples with metarl's family, whose share is told too.

All must give the same meta-gradient on the same data, in float64, before they are timed. They take turns within one
run, so that a busy machine slows all of them; medians are reported, and ratios are what to quote. Each contestant's own
best number of threads counts. On a machine that others keep busy, ``--threads 1 --clock cpu`` tells more: the processor
seconds of one thread, which do not count the time in which others run.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

os.environ["GOMP_SPINCOUNT"] = "2000"  # as metarl's commands do: threads that wait do not keep a busy machine busy

import torch
from contestants import CONTESTANTS, LOOPS, Backward, Loss
from torch import nn
from torch.nn import functional

from metarl import adapted, runs
from metarl.algorithms.maml import MAML
from metarl.convolutional import conv4
from metarl.experience import gather
from metarl.fewshot import NWayKShot
from metarl.memory import keep_freed_memory
from metarl.networks import Network, mlp
from metarl.numerics import flatten
from metarl.outer import Adam
from metarl.seeding import stream
from metarl.training import Run, Settings
from metarl.types import Examples, Family
from metarl_plugins.sinusoid import Sinusoid

TOLERANCE = 1e-8
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Problem(NamedTuple):
    family: Family
    network: Network
    module: Callable[[], nn.Module]  # the same network
    loss: Loss
    step_size: float
    tasks: int
    against: tuple[str, ...]


def sinusoid() -> Problem:
    """The MAML paper's regression: 25 tasks, 10 support and 10 query points, 40-40 relu."""
    family, hidden = Sinusoid(shots=10), (40, 40)
    return Problem(
        family,
        Network(hidden=hidden),
        lambda: mlp(family.spec, hidden),
        functional.mse_loss,
        0.01,
        25,
        (*LOOPS, "vmap"),
    )


def omniglot(shots: int, architecture: str) -> Problem:
    """The paper's classification: 5 ways, 32 tasks, with noise for images, which takes as long."""
    images = torch.randint(256, (1200, 20, 1, 28, 28), dtype=torch.uint8, generator=stream(0, "images"))
    labels = torch.arange(1200).repeat_interleave(20)
    family = NWayKShot(images.flatten(0, 1), labels, ways=5, shots=shots, rotations="train")
    hidden = (256, 128, 64, 64)
    if architecture == "mlp":
        network, module = Network(hidden=hidden, normalise=True), lambda: mlp(family.spec, hidden, normalise=True)
    else:
        network, module = Network(architecture="conv4"), lambda: conv4(family.spec)
    return Problem(family, network, module, functional.cross_entropy, 0.4, 32, LOOPS)


def prepared(problem: Problem, device: str) -> Run:
    algorithm = MAML(step_size=problem.step_size, network=problem.network)
    return Run(algorithm, problem.family, Adam(), Settings(meta_batch_size=problem.tasks, device=device))


def drawn(problem: Problem, device: str, number: int) -> tuple[Examples, Examples]:
    """Support and query of fresh tasks, as metarl draws them."""
    tasks = problem.family.sample(problem.tasks, "train", stream(0, "tasks", number))
    support = tasks.draw(None, None, "support", stream(0, "support", number, device=device))
    return support, tasks.draw(None, None, "query", stream(0, "query", number, device=device))


def disagreements(problem: Problem, against: Sequence[str], device: str) -> dict[str, float]:
    """How far the meta-gradients of the contestants are from metarl's, relative to its norm, on the same data."""
    with doubles():
        run = prepared(problem, device)
        params = run.first().params
        tasks = problem.family.sample(problem.tasks, "train", stream(0, "tasks"))
        draws = (stream(0, "draw", index, device=device) for index in range(2))
        experience, _ = gather(run.learner, params, tasks, draws)
        ours = adapted.mean_gradient(
            lambda candidate, _: problem.tasks * run.learner.meta_loss(candidate, experience)[0], params, [experience]
        )
        found = {}
        for name in against:
            network = problem.module().to(device)
            network.load_state_dict(params)
            CONTESTANTS[name](network, problem.loss, problem.step_size, experience.supports[0], experience.query)
            theirs = flatten(value.grad for value in network.parameters())
            found[name] = float((theirs - ours).norm() / ours.norm())
    return found


@contextmanager
def doubles() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def iterations(problem: Problem, against: Sequence[str], device: str) -> dict[str, Callable[[int], object]]:
    """What to time: one whole meta-iteration of each contestant, by its number."""
    run = prepared(problem, device)
    progress = run.first()

    def iterate(number: int) -> None:
        nonlocal progress
        progress, _ = run.iterate(progress)

    def other(backward: Backward) -> Callable[[int], None]:
        network = problem.module().to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)

        def iterate(number: int) -> None:
            support, query = drawn(problem, device, number)
            optimiser.zero_grad()
            backward(network, problem.loss, problem.step_size, support, query)
            optimiser.step()

        return iterate

    others = {name: other(CONTESTANTS[name]) for name in against}
    return {"metarl": iterate, "sampling alone": lambda number: drawn(problem, device, number), **others}


def measure(
    work: dict[str, Callable[[int], object]],
    repeats: int,
    turns: int,
    threads: list[int],
    device: str,
    clock: Callable[[], float],
) -> dict[str, dict[int, list[float]]]:
    """Seconds of an iteration by contestant and number of threads, one median of ``turns`` for each repetition."""
    seconds: dict[str, dict[int, list[float]]] = {name: {count: [] for count in threads} for name in work}
    for repeat in range(repeats):
        for count in threads:
            torch.set_num_threads(count)
            for name, iterate in work.items():
                iterate(0)  # unmeasured: threads start
                series = [timed(iterate, repeat * turns + turn, device, clock) for turn in range(turns)]
                seconds[name][count].append(statistics.median(series))
    return seconds


def timed(iterate: Callable[[int], object], number: int, device: str, clock: Callable[[], float]) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = clock()
    iterate(number)
    wait()
    return clock() - began


def report(seconds: dict[str, dict[int, list[float]]]) -> dict[str, dict[str, float]]:
    """Each contestant at its best number of threads, and how many times faster metarl is, round by round."""
    best = {name: min(series.items(), key=lambda item: statistics.median(item[1])) for name, series in seconds.items()}
    rows = {}
    for name, (threads, series) in best.items():
        ratio = statistics.median(b / a for a, b in zip(best["metarl"][1], series, strict=True))
        rows[name] = {"milliseconds": 1e3 * statistics.median(series), "threads": threads, "metarl_is_faster": ratio}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sinusoid", "omniglot"])
    parser.add_argument("--shots", type=int, default=1, help="shots of omniglot")
    parser.add_argument("--network", choices=["conv4", "mlp"], default="conv4", help="network of omniglot")
    parser.add_argument("--against", nargs="*", choices=list(CONTESTANTS), help="default: all that are right")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--turns", type=int, help="iterations in a row; default: 20 for sinusoid, 1 for omniglot")
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: this process's own, if busy")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    problem = sinusoid() if options.what == "sinusoid" else omniglot(options.shots, options.network)
    against = problem.against if options.against is None else options.against
    if options.device == "cpu":
        keep_freed_memory()
    far = disagreements(problem, against, options.device)
    print("meta-gradients away from metarl's:", ", ".join(f"{name} {value:.1e}" for name, value in far.items()))
    if not all(value < TOLERANCE for value in far.values()):
        sys.exit("the contestants do not compute the same meta-gradient")
    turns = options.turns or (20 if options.what == "sinusoid" else 1)
    work, clock = iterations(problem, against, options.device), CLOCKS[options.clock]
    seconds = measure(work, options.repeats, turns, options.threads, options.device, clock)
    rows = report(seconds)
    for name, row in rows.items():
        print(f"{name:<16} {row['milliseconds']:>9.2f} ms   {row['threads']} threads   {row['metarl_is_faster']:>7.2f}")
    if options.json:
        machine = {
            "versions": runs.versions(),
            "device": options.device,
            "clock": options.clock,
            "torch_threads": options.threads,
        }
        found = {"what": options.what, "shots": options.shots, "network": options.network, "contestants": rows}
        options.json.write_text(json.dumps({**found, "disagreements": far, **machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
