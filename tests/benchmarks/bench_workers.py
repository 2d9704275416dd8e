"""Steps per second of Gymnasium's environments in this process, in worker processes, and with a process for each.

Run by hand: ``python tests/benchmarks/bench_workers.py CartPole-v1 Pendulum-v1 HalfCheetah-v5``. The
contestants take turns, step for step the same actions; finished episodes are restarted. The table shows medians over
repetitions, and the ratio to our lanes in this process.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from metarl.environments.lanes import LaneOptions
from metarl.environments.spaces import spec_of
from metarl.environments.workers import on_workers, usable_cpus

NO_TASK = spaces.Dict(nothing=spaces.Discrete(1))


def main() -> None:
    """Measure every environment, print a table of each, and write JSON if asked to."""
    options = parse()
    rates = {name: measure(contestants(name, options), options) for name in options.environments}
    for name, found in rates.items():
        report(name, found)
    if options.json:
        machine = {"machine": platform.machine(), "python": platform.python_version(), "cpus": usable_cpus()}
        with open(options.json, "w") as file:
            json.dump({"steps_per_second": rates, **vars(options), **machine}, file, indent=2)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environments", nargs="+")
    parser.add_argument("--lanes", type=int, default=40)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=usable_cpus())
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", help="where to write the numbers")
    return parser.parse_args()


def make(name: str, **nothing: Any) -> gymnasium.Env[Any, Any]:
    """Make an environment, without the warnings that MuJoCo 4 writes for each of Gymnasium's models."""
    mujoco.set_mju_user_warning(lambda message: None)
    return gymnasium.make(name, disable_env_checker=True)


def contestants(name: str, options: argparse.Namespace) -> dict[str, VectorEnv[Any, Any, Any]]:
    """Return the vector environments by name."""
    one = partial(make, name)
    lanes = LaneOptions(one, NO_TASK, "keyword", spec_of(one(), NO_TASK), options.lanes)
    return {
        "lanes in this process": on_workers(1, lanes),
        f"{options.workers} workers": on_workers(options.workers, lanes),
        "gymnasium SyncVectorEnv": SyncVectorEnv([one] * options.lanes),
        "gymnasium AsyncVectorEnv": AsyncVectorEnv([one] * options.lanes),
    }


def measure(envs: dict[str, VectorEnv[Any, Any, Any]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return steps per second, one number per repetition; a first one warms up and is left out."""
    rates: dict[str, list[float]] = {name: [] for name in envs}
    for repetition in range(options.repetitions + 1):
        for name, env in envs.items():
            run = partial(restarted if name == next(iter(envs)) or "workers" in name else autoreset, env)
            seconds = timed(run, repetition, options)
            if repetition:
                rates[name].append(options.lanes * options.steps / seconds)
    for env in envs.values():
        env.close()
    return rates


def timed(run: Callable[[Any], None], seed: int, options: argparse.Namespace) -> float:
    """Return the seconds of one run under random policy actions, in [-1, 1] or of two kinds."""
    env = run.args[0]  # type: ignore[attr-defined]
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (options.steps, *env.action_space.shape)).astype(env.action_space.dtype)
    if isinstance(env.single_action_space, spaces.Discrete):
        actions = rng.integers(env.single_action_space.n, size=(options.steps, options.lanes))
    start = time.perf_counter()
    run(actions)
    return time.perf_counter() - start


def restarted(env: VectorEnv[Any, Any, Any], actions: Any) -> None:
    """Step lanes, and restart those that have finished."""
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if (done := terminated | truncated).any():
            env.reset(options={"reset_mask": done})


def autoreset(env: VectorEnv[Any, Any, Any], actions: Any) -> None:
    """Step Gymnasium's vector environments, which restart episodes themselves."""
    for action in actions:
        env.step(action)


def report(name: str, rates: dict[str, list[float]]) -> None:
    """Print medians, ranges and ratios to the first row."""
    medians = {contestant: statistics.median(values) for contestant, values in rates.items()}
    first = next(iter(medians.values()))
    print(f"{name:28}{'steps/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>8}")
    for contestant, median in medians.items():
        values = rates[contestant]
        print(f"{contestant:28}{median:10.0f}{min(values):10.0f}{max(values):10.0f}{median / first:8.2f}")


if __name__ == "__main__":
    main()
