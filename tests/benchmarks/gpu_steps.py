"""One step of ``gpu_day.py``: python tests/benchmarks/gpu_steps.py NAME [ARGUMENT ...] [--device cpu] [--small].

The last line of standard output is what was found, as JSON.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import entrant
import numpy as np
import torch
from ceilings import ceilings
from iteration import Problem, ours, split
from machine import machine
from parts import PAPER
from sampling import Size

from metarl.algorithms.maml import MAML
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.seeding import stream
from metarl.training.loop import Run
from metarl.training.settings import Settings
from metarl_envs.mujoco import Simulation
from metarl_envs.robots.ant import AntVelocity
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity
from metarl_plugins.sinusoid import Sinusoid

ROBOTS = {"half-cheetah": HalfCheetahVelocity, "ant": AntVelocity}
Found = dict[str, Any]


def main() -> None:
    """Run a step and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STEPS)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = STEPS[options.name](options.device, options.small, *options.arguments)
    print(json.dumps(found | {"warnings": sorted({str(warning.message)[:500] for warning in told})}))


def of_machine(device: str, small: bool) -> Found:
    """Versions, and the card."""
    return machine(device)


def of_ceilings(device: str, small: bool) -> Found:
    """Rates of matrix products, copies, launches and reads."""
    side, copied, least = (128, 1 << 20, 0.01) if small else (8192, 4096 << 20, 0.2)
    batches = [[2, 40, 64]] if small else [[40, 4000, 64], [40, 4000, 100]]
    return dict(ceilings(device, side, copied, batches, least).work(0) or {})


def of_warp(device: str, small: bool) -> Found:
    """Whether Warp loads, how long its first step takes, and how far one step is from the processor's."""
    import warp

    began = time.perf_counter()
    warp.init()
    found: Found = {"init_seconds": time.perf_counter() - began}
    for name, kind in ROBOTS.items():
        began = time.perf_counter()
        found[name] = _one_step(kind(), device)
        found[f"{name}_seconds"] = time.perf_counter() - began
    return found


def _one_step(family: Any, device: str) -> float:
    """Return the largest difference of an observation after one control step from the same states."""
    lanes = {
        backend: replace(family, simulation=Simulation(backend)).environment(8, torch.device(where))
        for backend, where in (("native", "cpu"), ("warp", device))
    }
    actions = 2 * torch.rand(8, lanes["native"].single_action_space.shape[0], generator=stream(0, "actions")) - 1
    for env in lanes.values():
        env.reset(seed=0)
    ours, theirs = lanes["native"].simulator, lanes["warp"].simulator
    states = [torch.as_tensor(np.array(values)) for values in (ours.qpos, ours.qvel)]
    for place, values in zip((theirs.qpos, theirs.qvel), states, strict=True):
        place.copy_(values.to(place))
    seen = lanes["native"].step(actions.numpy())[0]
    other = lanes["warp"].step(actions.to(device))[0]
    return float((torch.as_tensor(seen) - other.cpu()).abs().max())


def of_capture(device: str, small: bool, what: str) -> Found:
    """Whether a graph of something can be had: warnings say why not. On the processor, what has none is plain."""
    if what == "robot-step":
        env = replace(HalfCheetahVelocity(), simulation=Simulation("warp")).environment(8, torch.device(device))
        env.reset(seed=0)
        seen = [env.step(torch.zeros(8, 6, device=device))[0] for _ in range(3)]
        return {"finite": bool(torch.stack(seen).isfinite().all()), "captured": env._graph not in (None, env._advance)}
    if what == "iteration":
        run = Run(MAML(), Sinusoid(), Adam(), Settings(iterations=1, meta_batch_size=4, device=device, compile=True))
        progress = run.first()
    else:
        family = {"policy": "half-cheetah", "update": "navigation"}[what]
        size = {"tasks": 2, "episodes": 2, "horizon": 5} if small else {"tasks": 20, "episodes": 20, "horizon": 100}
        problem = Problem(**PAPER, **size, family=family, device=device)
        compiled = device == "cuda" or family == "navigation"  # on a processor, nothing of a robot's iteration is
        run = problem.run(problem.network, TRPO(), compile=compiled)
        progress = run.first()
    for _ in range(4):
        progress, row = run.iterate(progress)
    return {name: float(value) for name, value in row.items() if name.startswith(("loss/", "outer/"))}


def of_lanes(device: str, small: bool, robot: str, lanes: str) -> Found:
    """Steps a second of a robot's lanes with policies, on the device."""
    tasks = 4 if small else 40
    return _rate(Size(robot, tasks, max(1, int(lanes) // tasks), 5 if small else 50, device))


def of_processor(device: str, small: bool, robot: str, lanes: str) -> Found:
    """The same on the processors, beside the device."""
    return of_lanes("cpu", small, robot, lanes)


def _rate(size: Size) -> Found:
    collecting = size.collecting(size.environment())
    first, _ = entrant.timed(collecting, 0)
    timed = [entrant.timed(collecting, 1 + number) for number in range(3)]
    rates = sorted(numbers["steps"] / seconds for seconds, numbers in timed)
    return {"lanes": size.lanes, "first_seconds": first, "steps_per_second": rates[1], "all": rates}


def of_iteration(device: str, small: bool, what: str) -> Found:
    """Seconds of MAML's iterations at the paper's size, whole and in parts."""
    sizes = (
        {"tasks": 40, "episodes": 20, "horizon": 200}
        if what != "navigation"
        else {"tasks": 20, "episodes": 20, "horizon": 100}
    )
    if small:
        sizes = {"tasks": 3, "episodes": 2, "horizon": 5}
    family = "navigation" if what == "navigation" else "half-cheetah"
    if what == "promp":
        return {"seconds": _seconds(_promp(family, sizes, device), device)}
    problem = {"family": family, **sizes, **PAPER, "device": device}
    whole, parts = ours(**problem), split(**problem)
    timed = [entrant.timed(whole, number)[0] for number in range(2 if small else 6)][1:]
    return {"seconds": timed, "parts": dict(parts.work(0) or {}), "told": parts.told}


def _promp(family: str, sizes: dict[str, int], device: str) -> Callable[[], object]:
    problem = Problem(**PAPER, family=family, **sizes, device=device)
    algorithm = MAML(network=Network(hidden=(100, 100), activation="relu"))
    settings = Settings(iterations=1, meta_batch_size=sizes["tasks"], device=device)
    run = Run(algorithm, problem.size.family, ProMP(), settings)
    progress = run.first()
    return lambda: run.iterate(progress)


def _seconds(work: Callable[[], object], device: str) -> list[float]:
    timed = entrant.Entrant(lambda number: work() and None, device=device)
    return [entrant.timed(timed, number)[0] for number in range(3)][1:]


def of_profile(device: str, small: bool, robot: str) -> Found:
    """What an iteration spends its time on, by PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    sizes = {"tasks": 2, "episodes": 2, "horizon": 5} if small else {"tasks": 40, "episodes": 20, "horizon": 50}
    whole = ours(family=robot, **sizes, **PAPER, device=device)
    whole.work(0)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiled:
        whole.work(1)
        entrant.synchronise(device)
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    return {"table": profiled.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)}


STEPS: dict[str, Callable[..., Found]] = {
    "machine": of_machine,
    "ceilings": of_ceilings,
    "warp": of_warp,
    "capture": of_capture,
    "lanes": of_lanes,
    "processor": of_processor,
    "iteration": of_iteration,
    "profile": of_profile,
}

if __name__ == "__main__":
    main()
