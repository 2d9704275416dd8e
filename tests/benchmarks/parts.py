"""What the speed suite measures: the groups of contestants of each part, at full size and at a small one.

Standard library only, as ``contest.py``.
"""

import os
from typing import Any

from contest import Contestant, Group

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MIB = 1 << 20
PAPER, PEER = {"hidden": [100, 100], "activation": "relu"}, {"hidden": [64, 64], "activation": "tanh"}
"""Networks of the MAML paper (arXiv 1703.03400, app. A.2) and of pytorch-maml-rl's configuration files."""


def ceilings(device: str, small: bool) -> list[Group]:
    if small:
        sizes = {"square": 128, "copied": MIB, "batches": [[2, 40, 64], [2, 40, 100]], "least": 0.01}
    elif device == "cuda":
        batches = [[40, 4000, 64], [40, 4000, 100]]
        sizes = {"square": 8192, "copied": 4096 * MIB, "batches": batches, "least": 0.2}
    else:
        batches = [[40, 4000, 64], [40, 4000, 100]]
        sizes = {"square": 2048, "copied": 256 * MIB, "batches": batches, "least": 0.3}
    contestant = Contestant("ceilings", "ceilings:ceilings", {"device": device, **sizes})
    return [Group("ceilings", sizes, [contestant], rounds=1 if small else 3)]


def sampling(device: str, small: bool) -> list[Group]:
    if small:
        horizons = {("half-cheetah", 2): 5, ("navigation", 2): 5}
    elif device == "cuda":
        horizons = {(family, count): 200 for family in ("half-cheetah", "ant", "navigation") for count in (20, 200)}
    else:  # fewer steps where they take long: rates do not depend on it much
        horizons = {("half-cheetah", 20): 100, ("half-cheetah", 200): 10, ("ant", 20): 25, ("ant", 200): 4}
        horizons |= {("navigation", 20): 100, ("navigation", 200): 100}
    return [_sampled(family, 3 if small else 40, *size, device, small) for (family, *size) in _flat(horizons)]


def _flat(horizons: dict[tuple[str, int], int]) -> list[tuple[Any, ...]]:
    return [(*key, horizon) for key, horizon in horizons.items()]


def _sampled(family: str, tasks: int, episodes: int, horizon: int, device: str, small: bool) -> Group:
    sizes = {"family": family, "tasks": tasks, "episodes": episodes, "horizon": horizon, "device": device}
    slow = sizes | {"horizon": min(horizon, 25) if device == "cuda" else horizon}  # Gymnasium stays on the processor
    many = episodes > 20
    objects = many and family != "navigation"
    compiled = [] if family != "navigation" else [Contestant("the same, compiled", "sampling:compiled", sizes)]
    return Group(
        f"{family}, {tasks} tasks x {episodes} episodes",
        sizes,
        [
            Contestant("simulator alone", "sampling:raw", sizes),
            Contestant("metarl's vector environment, no policy", "sampling:lanes", sizes),
            Contestant("metarl.control.collect, MAML's policies", "sampling:collected", sizes),
            *compiled,
            Contestant(
                "Gymnasium's SyncVectorEnv, same policies",
                "sampling:gymnasium_sync",
                slow,
                absent="so many environments take 9 GB; a step takes as long as with fewer" if objects else None,
            ),
            Contestant(
                f"Gymnasium's AsyncVectorEnv, {tasks} lanes, same policies",
                "sampling:gymnasium_async",
                slow | {"episodes": 1},
                absent="a process for each lane; see the smaller size" if many else None,
            ),
        ],
        rounds=1 if small else 3 if device == "cuda" else 5,
    )


def iteration(device: str, small: bool) -> list[Group]:
    if small:
        return [_iterated("navigation, small", "navigation", 3, 2, 5, PEER, device, 1)]
    return [
        _iterated("navigation, pytorch-maml-rl's size", "navigation", 20, 20, 100, PEER, device, 5),
        _iterated("navigation, the paper's size", "navigation", 20, 20, 100, PAPER, device, 5),
        _iterated("half-cheetah, pytorch-maml-rl's size", "half-cheetah", 40, 20, 100, PEER, device, 3),
        _iterated("half-cheetah, the paper's size", "half-cheetah", 40, 20, 200, PAPER, device, 3),
    ]


def _iterated(
    name: str, family: str, tasks: int, episodes: int, horizon: int, network: dict[str, Any], device: str, rounds: int
) -> Group:
    size = {"family": family, "tasks": tasks, "episodes": episodes, "horizon": horizon, "device": device}
    problem = {**size, **network, "steps": 1}
    looped = (
        family == "navigation" and network["activation"] == "tanh"
    )  # what tests/support/loop_reference.py is written for
    compiled = device == "cuda" or family == "navigation"  # on a CPU, nothing of a robot's iteration is
    untuned = device == "cpu" and family == "navigation"
    contestants = [
        Contestant("metarl", "iteration:ours", problem),
        *([Contestant("metarl, compiled", "iteration:compiled", problem)] if compiled else []),
        Contestant("metarl, its parts watched", "iteration:split", problem),
        Contestant("plain batched: vmap, exact Hessian", "iteration:plain", problem),
        Contestant("plain batched, J'FJ by autograd", "iteration:autograd", problem),
    ]
    if untuned:
        default = problem | {"keep_memory": False}
        contestants.append(Contestant("plain batched, glibc's default memory", "iteration:plain", default))
    if looped:
        contestants.append(Contestant("plain loop over tasks and episodes", "iteration:loop", problem))
    return Group(name, problem, contestants, rounds)


def few_shot(device: str, small: bool) -> list[Group]:
    tasks, hidden, widths, filters = (2, [8, 8], [16, 8], 4) if small else (25, [40, 40], [256, 128, 64, 64], 64)
    waves = {"what": "sinusoid", "tasks": tasks, "shots": 10, "hidden": hidden, "device": device}
    images = {"tasks": 2 if small else 32, "shots": 1, "device": device}
    rounds, numbers = (1, (1,)) if small else (5, tuple(sorted({1, CPUS})))
    threads = numbers if device == "cpu" else (None,)
    conv4, mlp = {"what": "conv4", "filters": filters, **images}, {"what": "mlp", "hidden": widths, **images}
    groups = [
        _few_shot("sinusoid, 10 shots", waves, ("vmap",), "vmap", threads, rounds, 2 if small else 20),
        _few_shot("Omniglot 5-way 1-shot, Conv-4", conv4, (), "map", threads, rounds),
        _few_shot("the same, fully connected", mlp, (), "map", threads, rounds),
    ]
    return groups[:2] if small else groups


def _few_shot(
    name: str,
    problem: dict[str, Any],
    also: tuple[str, ...],
    mapping: str,
    threads: tuple[int | None, ...],
    rounds: int,
    count: int = 1,
) -> Group:
    # vmap of torch.func.grad through batch norm gives a wrong meta-gradient in PyTorch 2.13 (1e-4 to 5e-2 away).
    on_cpu = problem["device"] == "cpu"
    quickly = rounds == 1 and problem["what"] == "conv4"  # a process for each takes a minute on a busy machine
    loops = {"higher": "higher", "torchopt": "torchopt", "functional": "torch.func, loop over tasks", "vmap": "vmap"}
    contestants = [
        Contestant("metarl", "few_shot:ours", problem, threads),
        *(
            Contestant(_named("metarl, compiled", number), "few_shot:compiled", problem | {"torch_threads": number})
            for number in threads
        ),
        Contestant("sampling alone", "few_shot:sampling_alone", problem, threads),
        *(
            Contestant(label, "few_shot:library", problem | {"name": library}, threads)
            for library, label in loops.items()
            if library != "vmap" or "vmap" in also
        ),
    ]
    if quickly:
        contestants = contestants[:1]  # the others are in the first group
    if on_cpu:
        contestants.append(Contestant("JAX, jitted", "jax_contestant:jitted", problem | {"mapping": mapping}))
    return Group(name, problem, contestants, rounds, count)


def _named(name: str, threads: int | None) -> str:
    return name if threads is None else f"{name} for {threads} thread{'s' if threads > 1 else ''}"


TASKS, STEPS, WIDTHS = (10, 30, 100, 300, 1000), (1, 2, 3, 4, 5), (64, 128, 256, 512)
BASE = (30, 1, 64)
"""Tasks, inner steps and width of the two hidden layers: where the axes of growth cross."""


def growth(device: str, small: bool) -> list[Group]:
    tasks, steps, widths, base = ((2, 4), (1, 2), (8, 16), (2, 1, 8)) if small else (TASKS, STEPS, WIDTHS, BASE)
    points = [(value, *base[1:]) for value in tasks]
    points += [(base[0], value, base[2]) for value in steps if value != base[1]]
    points += [(*base[:2], value) for value in widths if value != base[2]]
    families = ("navigation", "sinusoid")
    return [_grown(family, *point, device, small, base) for family in families for point in points]


def _grown(
    family: str, tasks: int, steps: int, width: int, device: str, small: bool, base: tuple[int, int, int]
) -> Group:
    problem = {"tasks": tasks, "steps": steps, "hidden": [width, width], "device": device}
    if family == "navigation":
        make, count = "iteration:ours", 1
        problem |= {"family": family, "episodes": 2 if small else 5, "horizon": 5 if small else 20}
        problem |= {"activation": "tanh"}
    else:
        make, count = "few_shot:ours", 1 if small else 10
        problem |= {"what": family, "shots": 10}
    name = f"{family}, {tasks} tasks, {steps} inner steps, {width}-{width}"
    return Group(name, problem | {"base": base}, [Contestant("metarl", make, problem)], 1 if small else 3, count)


PARTS = {
    "ceilings": ceilings,
    "sampling": sampling,
    "iteration": iteration,
    "few-shot": few_shot,
    "growth": growth,
}
