"""What a GPU is worth: times sampling, whole iterations and few-shot learning, runs the tests marked gpu, writes JSON.

    python tests/benchmarks/gpu.py [--json gpu.json] [--device cpu --small]

Nothing is downloaded, and metarl need not be installed: PYTHONPATH may hold the repository's root, ``envs`` and
``plugins``. The first seconds of each row are told apart: Warp compiles its kernels then, for minutes on a clean
machine. Measuring comes before testing so that the tests find them compiled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from metarl import runs
from metarl.algorithms.maml import MAML
from metarl.outer import TRPO
from metarl.seeding import stream
from metarl.training import Run, Settings
from metarl_envs.ant import AntVelocity
from metarl_envs.half_cheetah import HalfCheetahVelocity
from metarl_envs.navigation import PointNavigation
from metarl_envs.simulator import Simulation

ROOT = Path(__file__).parents[2]
FAMILIES = {"half-cheetah": HalfCheetahVelocity, "ant": AntVelocity, "navigation": PointNavigation}
FEW_SHOT = (["sinusoid"], ["omniglot"], ["omniglot", "--network", "mlp"])


def main() -> int:
    """Measure, test, and write JSON; the exit code is that of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="few tasks and steps, to see that all of it runs")
    parser.add_argument("--skip", nargs="*", choices=["few-shot", "tests"], default=[])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    tasks, episodes, horizon = (3, (2,), 5) if options.small else (40, (20, 100), 200)
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(), **machine(device), "tasks": tasks}

    def keep(name: str, row: Any) -> None:
        found[name] = row
        print(f"{name}: {json.dumps(row)}", flush=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")  # so that nothing is lost when time runs out

    for name, family in FAMILIES.items():
        for count in episodes:
            keep(f"sampling/{name}/{count} episodes", sampling(sized(family(), count, horizon), tasks, device))
    for name, family in FAMILIES.items():
        keep(f"iteration/{name}", iteration(sized(family(), episodes[0], horizon), tasks, device))
    for arguments in () if "few-shot" in options.skip else FEW_SHOT:
        keep(f"few-shot/{' '.join(arguments)}", few_shot(arguments, options.device))
    if "tests" not in options.skip:
        keep("tests", tests())
    return found.get("tests", {}).get("exit_code", 0)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers depend on."""
    told = {
        "device": str(device),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "versions": runs.versions(),
    }
    if device.type == "cuda":
        chip = torch.cuda.get_device_properties(device)
        told |= {"chip": chip.name, "memory_gib": round(chip.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return told


def sized(family: Any, episodes: int, horizon: int) -> Any:
    """Return the family with so many episodes of so many steps; MuJoCo's under MuJoCo Warp, whatever the device."""
    family = replace(family, sampling=replace(family.sampling, episodes=episodes, horizon=horizon))
    return replace(family, simulation=Simulation("warp")) if hasattr(family, "simulation") else family


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that some work takes, until the device is done."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sampling(family: Any, tasks: int, device: torch.device, repeats: int = 5) -> dict[str, float]:
    """Steps per second of a draw, policies and baseline and all; and of the environment alone, at one fixed action."""
    learner, sampled = MAML().build(family.spec), family.sample(tasks, "train", stream(0, "tasks"))
    params = {name: value.to(device) for name, value in learner.init(stream(0, "initialisation")).items()}
    state, generator = learner.begin(params, sampled.descriptors.to(device)), stream(0, "draw", device=device)
    lanes, horizon = tasks * family.sampling.episodes, family.sampling.horizon
    first = timed(lambda: sampled.draw(learner, state, "support", generator), device)
    draws = [timed(lambda: sampled.draw(learner, state, "support", generator), device) for _ in range(repeats)]
    env, actions = sampled.environment(lanes, device), torch.zeros(lanes, family.spec.output_size, device=device)
    env.reset(seed=0)
    env.step(actions)
    steps = timed(lambda: [env.step(actions) for _ in range(horizon)], device)
    return {
        "lanes": lanes,
        "first_draw_seconds": first,
        "draw_seconds": statistics.median(draws),
        "steps_per_second": lanes * horizon / statistics.median(draws),
        "steps_per_second_without_policy": lanes * horizon / steps,
    }


def iteration(family: Any, tasks: int, device: torch.device, repeats: int = 3) -> dict[str, float]:
    """Seconds of one MAML-TRPO iteration, and of the sampling in it."""
    kind: Any = "cpu" if device.type == "cpu" else "cuda"
    run = Run(MAML(), family, TRPO(), Settings(iterations=repeats + 1, meta_batch_size=tasks, device=kind))
    progress, rows = run.first(), []
    for _ in range(repeats + 1):  # the first one warms up
        began = time.perf_counter()
        progress, row = run.iterate(progress)
        synchronise(device)
        rows.append((time.perf_counter() - began, float(row["time/sampling_seconds"])))
    names = ("seconds", "sampling_seconds")
    return {name: statistics.median(row[index] for row in rows[1:]) for index, name in enumerate(names)}


def few_shot(arguments: list[str], device: str) -> Any:
    """Return what bench_few_shot.py finds, or how it failed: the libraries that it compares may not be there."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        script = Path(__file__).with_name("bench_few_shot.py")
        command = [sys.executable, str(script), *arguments, "--device", device, "--json", str(out)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        return json.loads(out.read_text()) if ended.returncode == 0 else {"failed": ended.stderr.splitlines()[-1:]}


def tests() -> dict[str, Any]:
    """Run the tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "timeout=1200", "tests"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = ended.stdout.splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": ended.returncode, "summary": lines[-1:], "failures": failures}


if __name__ == "__main__":
    sys.exit(main())
