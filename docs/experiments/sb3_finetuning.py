"""PPO on one held-out goal: from the meta-learnt policy, from that policy adapted by MAML, and from scratch.

    python docs/experiments/sb3_finetuning.py --seeds 0 1 2 3 4

It meta-trains MAML on 2-D navigation (RUNS/sb3-maml), exports the policy to Stable-Baselines3, before adaptation and
after one gradient step on the goal, and trains PPO from each start, with the same settings and several step sizes. What
was trained is taken as it is: interrupt it at any time. It writes sb3-finetuning.json and sb3-finetuning.png.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from metarl import open_run, runs, sb3, training
from metarl.algorithms.maml import MAML
from metarl.control import ControlTasks, Sampling
from metarl.evaluation import summary
from metarl.networks import Network
from metarl.outer import TRPO
from metarl.plotting import COLOURS, MARKERS
from metarl.trained import Trained
from metarl.training import Settings, Source
from metarl_envs.navigation import PointNavigation

FAMILY = PointNavigation(sampling=Sampling(episodes=20, horizon=100))
WIDTHS, ACTIVATION = (64, 64), "tanh"
"""The network of all starts; Stable-Baselines3's own."""
STARTS = {"scratch": "from scratch", "meta": "from the meta-learnt policy", "adapted": "from it, after one MAML step"}
BATCH = FAMILY.sampling.episodes * FAMILY.sampling.horizon
"""Environment steps of a PPO update, and of a MAML step."""


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    runs: Path = Path("runs")
    """Folder of the runs."""
    out: Path = Path("runs/sb3-finetuning")
    """Folder of the results."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of PPO; there is one meta-learnt policy."""
    iterations: int = 100
    """Meta-iterations."""
    meta_batch_size: int = 20
    """Tasks of a meta-iteration."""
    updates: int = 25
    """PPO updates of 2000 environment steps."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)
    """Step sizes of PPO's Adam: 0.0003 is Stable-Baselines3's default."""
    goal: int = 0
    """Which of the held-out goals."""


Curve = list[float]
"""Mean return of 20 episodes, before each update and after the last."""


def main(options: Options) -> None:
    """Train what is absent, and draw everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    learnt = meta_learnt(options)
    task = learnt.task(goal=learnt.tasks(options.goal + 1).parameters["goal"][options.goal].tolist())
    curves = {
        f"{start} {rate:g}": {seed: curve(learnt, task, start, rate, seed, options) for seed in options.seeds}
        for start in STARTS
        for rate in options.learning_rates
    }
    adapted = [learnt.adapt(task, 3, seed) for seed in options.seeds]
    maml = {
        str(step): summary([_returned(found[step].rollout) for found in adapted]) for step in range(len(adapted[0]))
    }
    for label, found in curves.items():
        print(
            f"{label:<16} {', '.join(f'{value:.1f}' for value in np.mean(list(found.values()), 0)[[0, 1, 2, 5, -1]])}"
        )
    record = {"options": asdict(options), "goal": task.parameters["goal"].tolist(), "maml": maml, "curves": curves}
    plain = json.loads(json.dumps(record | {"versions": runs.versions()}, default=str))
    runs.write_json(options.out / "sb3-finetuning.json", plain)
    draw(curves, maml, options, options.out / "sb3-finetuning.png")


def meta_learnt(options: Options) -> Trained:
    """Return the meta-learnt policy, trained to its end if it was not."""
    folder = options.runs / "sb3-maml"
    if not (folder / runs.CONFIG).exists():
        algorithm = MAML(step_size=0.5, network=Network(hidden=WIDTHS, activation=ACTIVATION))
        settings = Settings(options.iterations, options.meta_batch_size, device="cpu")
        sources = Source(algorithm, "maml"), Source(FAMILY, "point-navigation")
        run = training.start(*sources, TRPO(), settings, folder)
        run.train(run.first(), quiet=False)
    path = folder / runs.CHECKPOINT
    if not path.exists() or open_run(folder).iteration < options.iterations:
        training.resume(folder, quiet=False)
    return open_run(folder, "best")


def curve(learnt: Trained, task: ControlTasks, start: str, rate: float, seed: int, options: Options) -> Curve:
    """Return the learning curve of one PPO run, trained if it was not."""
    path = options.runs / f"sb3-ppo-{start}-{rate:g}-{seed}.json"
    if path.exists():
        told: Curve = json.loads(path.read_text())
        return told
    env = sb3.TaskVecEnv(FAMILY, FAMILY.sampling.episodes, task, seed=seed)
    keywords: dict[str, Any] = {
        "n_steps": FAMILY.sampling.horizon, "batch_size": 100, "learning_rate": rate, "seed": seed, "device": "cpu"
    }  # fmt: skip
    if start == "scratch":
        network = {"net_arch": list(WIDTHS)}
        model = PPO("MlpPolicy", env, policy_kwargs=network, **keywords)
    else:
        file = options.out / f"{start}-{seed}.zip"
        sb3.to_ppo(learnt, task, int(start == "adapted"), seed).save(file)
        model = PPO.load(file, env=env, **keywords)
        model.set_random_seed(seed)
    watch = Watch(task, seed)
    model.learn(options.updates * BATCH, callback=watch)
    found = [*watch.returns, watch.returned()]
    runs.write_json(path, found)
    return found


class Watch(BaseCallback):
    """Scores the policy on episodes of its own before every update."""

    def __init__(self, task: ControlTasks, seed: int):
        super().__init__()
        self.task, self.seed, self.returns = task, seed, Curve()

    def returned(self) -> float:
        """Mean return over 20 episodes."""
        return sb3.returns(self.model, FAMILY, self.task, self.seed)[0]

    def _on_rollout_start(self) -> None:
        self.returns.append(self.returned())

    def _on_step(self) -> bool:
        return True


def _returned(rollout: Any) -> float:
    return float((rollout.rewards * rollout.mask).sum(-1).mean())


def draw(curves: Mapping[str, Mapping[int, Curve]], maml: Mapping[str, Any], options: Options, path: Path) -> None:
    """Draw mean returns with 95 % intervals over seeds, a panel for each step size of PPO."""
    figure = Figure(figsize=(4.6 * len(options.learning_rates) + 2.8, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(options.learning_rates), sharey=True, squeeze=False)[0]
    for axes, rate in zip(panels, options.learning_rates, strict=True):
        for index, (start, label) in enumerate(STARTS.items()):
            found = [summary(list(column)) for column in zip(*curves[f"{start} {rate:g}"].values(), strict=True)]
            # MAML's step has seen one batch before PPO begins.
            steps = BATCH * (np.arange(len(found)) + (start == "adapted")) / 1000
            low, mean, high = (np.array([point[name] for point in found]) for name in ("low", "mean", "high"))
            axes.fill_between(steps, low, high, color=COLOURS[index], alpha=0.15, linewidth=0)
            axes.plot(steps, mean, color=COLOURS[index], marker=MARKERS[index], markersize=3, label=f"PPO {label}")
        points = [point["mean"] for point in maml.values()]
        steps = BATCH * np.arange(len(points)) / 1000
        axes.plot(steps, points, "--*", color="black", markersize=8, label="MAML's own steps, of 2000 each")
        axes.set(xlabel="environment steps on the goal (thousands)", title=f"PPO's step size {rate:g}")
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("return per episode (sum of rewards)")
    figure.suptitle(f"mean and 95 % interval over {len(options.seeds)} seeds", fontsize="small", color="0.35")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
