"""Environment steps per second on HalfCheetah: MuJoCo alone, our lanes, our lanes with a policy, Gymnasium's lanes.

Run by hand: ``python tests/benchmarks/bench_sampling.py --json sampling.json``. All rows are measured in turn, in one
process, with the same number of lanes, steps and threads, from fresh resets, with the actions that the policy
takes; the table shows the median over repetitions. One step is 0.05 s of simulated time, five steps of MuJoCo.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch

from metarl_envs.half_cheetah import HalfCheetahVelocity
from metarl_envs.mujoco import RobotEnv, RobotVectorEnv
from metarl_envs.robots import starting_state
from metarl_envs.simulator import Simulation, load_model

Run = Callable[[], Any]


def main() -> None:
    """Measure, print the table, and write JSON if asked to."""
    options = parse()
    runs = {
        "mujoco.batch.Batch, no policy": step_batch(options),
        "metarl VectorEnv, no policy": step_lanes(options),
        "metarl.control.collect, MAML policy": collect_with_policy(options, metarl_lanes(options)),
        "gymnasium SyncVectorEnv, MAML policy": collect_with_policy(options, gymnasium_lanes(options)),
    }
    rates = measure(runs, options)
    report(rates)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"steps_per_second": rates, **vars(options), **machine()}, file, indent=2)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=20, help="per task")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", help="where to write the numbers")
    options = parser.parse_args()
    options.lanes = options.tasks * options.episodes
    return options


def measure(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return environment steps per second by run, one number per repetition; a first one warms up and is left out."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(options.repetitions + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repetition:
                rates[name].append(options.lanes * options.steps / (time.perf_counter() - start))
    return rates


def report(rates: dict[str, list[float]]) -> None:
    """Print medians, ranges and ratios to the first row."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = next(iter(medians.values()))
    print(f"{'':38}{'steps/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>8}")
    for name, median in medians.items():
        print(f"{name:38}{median:10.0f}{min(rates[name]):10.0f}{max(rates[name]):10.0f}{median / first:8.3f}")


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    versions = {module.__name__: module.__version__ for module in (gymnasium, mujoco, np, torch)}
    return {"cpus": os.cpu_count(), "processor": platform.processor(), "python": platform.python_version(), **versions}


def actions(options: argparse.Namespace) -> np.ndarray[Any, Any]:
    """Return the actions, ``[step, lane, 6]``, that the policy takes: the cost of physics depends on them."""
    trajectory = collect_with_policy(options, metarl_lanes(options))()
    return trajectory.actions.flatten(0, 1).transpose(0, 1).contiguous().numpy()


def family(options: argparse.Namespace) -> HalfCheetahVelocity:
    """Return the family on as many threads as asked for."""
    return HalfCheetahVelocity(simulation=Simulation(threads=options.threads))


def step_batch(options: argparse.Namespace) -> Run:
    """Return MuJoCo's own pool under the same controls: what no environment can exceed."""
    from mujoco.batch import Batch

    model, robot, rng = load_model("half_cheetah.xml"), family(options).robot, np.random.default_rng(0)
    batch = Batch(model, options.lanes, options.threads)
    qpos, qvel, control = (batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
    controls = np.clip(actions(options), -1, 1)

    def run() -> None:
        batch.reset()
        qpos[...], qvel[...] = starting_state(robot, model, rng, (options.lanes,))
        for row in controls:
            control[...] = row
            batch.step(nstep=robot.substeps)

    return run


def step_lanes(options: argparse.Namespace) -> Run:
    """Return our lanes under the same actions: observations, rewards, checks."""
    env, rows = RobotVectorEnv(family(options), options.lanes), actions(options)

    def run() -> None:
        env.reset(seed=0)
        for row in rows:
            env.step(row)

    return run


def metarl_lanes(options: argparse.Namespace) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """Return our lanes."""
    return RobotVectorEnv(family(options), options.lanes)


def gymnasium_lanes(options: argparse.Namespace) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """Return Gymnasium's lanes, one after another in this process, of our single environment."""
    mode = gymnasium.vector.AutoresetMode.DISABLED
    return gymnasium.vector.SyncVectorEnv(
        [lambda: RobotEnv(family(options))] * options.lanes, copy=False, autoreset_mode=mode
    )


def collect_with_policy(options: argparse.Namespace, env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> Run:
    """Return episodes collected as training does it, by MAML's policies, one for each task."""
    from metarl.algorithms.maml import MAML
    from metarl.control import collect

    generator = torch.Generator().manual_seed(0)
    tasks = family(options).sample(options.tasks, "train", generator)
    learner = MAML().build(tasks.spec)
    state = learner.begin(learner.init(generator), tasks.descriptors)
    return lambda: collect(env, learner, state, options.tasks, options.steps, generator)


if __name__ == "__main__":
    main()
