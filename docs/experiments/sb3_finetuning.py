"""PPO on one held-out goal: from the meta-learnt policy, from that policy adapted by MAML, and from scratch.

    python docs/experiments/sb3_finetuning.py --seeds 0 1 2 3 4

It meta-trains MAML on 2-D navigation (RUNS/sb3-maml-2, a quarter of an hour of one core), exports the policy to
Stable-Baselines3, before adaptation and after one gradient step on the goal, and trains PPO from each start with the
same settings: Stable-Baselines3's, and others that let the policy move far. What was trained is taken as it is:
interrupt it at any time. It writes sb3-finetuning.json and sb3-finetuning.png.
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

from metarl import open_run, runs, sb3, train
from metarl.algorithms.maml import MAML
from metarl.control.tasks import ControlTasks
from metarl.evaluation import summary
from metarl.files import write_json
from metarl.networks.options import Network
from metarl.outer.trpo import TRPO
from metarl.pictures.plotting import COLOURS, MARKERS
from metarl.trained import Trained
from metarl.training.settings import Settings
from metarl_envs.navigation import PointNavigation

FAMILY = PointNavigation()
WIDTHS = (64, 64)
"""Of all starts, with tanh between them: Stable-Baselines3's own network."""
ALGORITHM = MAML(step_size=0.5, learn_step_sizes=True, network=Network(hidden=WIDTHS, activation="tanh"))
STARTS = {"scratch": "from scratch", "meta": "from the meta-learnt policy", "adapted": "from it, after one MAML step"}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"learning_rate": 3e-4, "batch_size": 500, "n_epochs": 10, "clip_range": 0.2},
    "large": {"learning_rate": 1e-2, "batch_size": 2000, "n_epochs": 1, "clip_range": 10.0},
}
"""Of PPO: Stable-Baselines3's defaults, but for larger mini-batches; and one large step for each batch, unclipped."""
TITLES = {"default": "default step size 0.0003, clip 0.2, 10 epochs", "large": "one step of 0.01 an update, no clip"}
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
    meta_seed: int = 2
    """Seed of the meta-learnt policy."""
    iterations: int = 240
    """Meta-iterations."""
    meta_batch_size: int = 40
    """Tasks of a meta-iteration."""
    updates: int = 20
    """PPO updates of 2000 environment steps."""
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
        f"{start} {setting}": {seed: curve(learnt, task, start, setting, seed, options) for seed in options.seeds}
        for setting in SETTINGS
        for start in STARTS
    }
    adapted = [learnt.adapt(task, 3, seed) for seed in options.seeds]
    maml = {
        str(step): summary([_returned(found[step].rollout) for found in adapted]) for step in range(len(adapted[0]))
    }
    for label, found in curves.items():
        print(f"{label:<16} {' '.join(f'{value:6.1f}' for value in np.mean(list(found.values()), 0))}")
    record = {"options": asdict(options), "goal": task.parameters["goal"].tolist(), "maml": maml, "curves": curves}
    plain = json.loads(json.dumps(record | {"versions": runs.versions()}, default=str))
    write_json(options.out / "sb3-finetuning.json", plain)
    draw(curves, maml, options, options.out / "sb3-finetuning.png")


def meta_learnt(options: Options) -> Trained:
    """Return the meta-learnt policy, trained to its end if it was not. Raises ValueError for another run's folder."""
    folder = options.runs / f"sb3-maml-{options.meta_seed}"
    settings = Settings(options.iterations, options.meta_batch_size, options.meta_seed, device="cpu")
    train(ALGORITHM, FAMILY, TRPO(max_kl=0.03), settings, folder, quiet=False, resume=True)
    return open_run(folder, "best")


def curve(learnt: Trained, task: ControlTasks, start: str, setting: str, seed: int, options: Options) -> Curve:
    """Return the learning curve of one PPO run, trained if it was not."""
    path = options.runs / f"sb3-ppo-{start}-{setting}-{seed}.json"
    if path.exists():
        told: Curve = json.loads(path.read_text(encoding="utf-8"))
        return told
    env = sb3.TaskVecEnv(FAMILY, FAMILY.sampling.episodes, task, seed=seed)
    keywords = {**SETTINGS[setting], "n_steps": FAMILY.sampling.horizon, "seed": seed, "device": "cpu"}
    if start == "scratch":
        model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": list(WIDTHS)}, **keywords)
    else:
        file = options.out / f"{start}-{seed}.zip"
        sb3.to_ppo(learnt, task, int(start == "adapted"), seed).save(file)
        model = PPO.load(file, env=env, **keywords)
        model.set_random_seed(seed)
    watch = Watch(task, seed)
    model.learn(options.updates * BATCH, callback=watch)
    found = [*watch.returns, watch.returned()]
    write_json(path, found)
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
    """Draw mean returns with 95 % intervals over seeds, a panel for each of PPO's settings."""
    figure = Figure(figsize=(12.4, 4.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(SETTINGS), sharey=True)
    for axes, setting in zip(panels, SETTINGS, strict=True):
        for index, (start, label) in enumerate(STARTS.items()):
            found = [summary(list(column)) for column in zip(*curves[f"{start} {setting}"].values(), strict=True)]
            # MAML's step has seen one batch before PPO begins.
            steps = BATCH * (np.arange(len(found)) + (start == "adapted")) / 1000
            low, mean, high = (np.array([point[name] for point in found]) for name in ("low", "mean", "high"))
            axes.fill_between(steps, low, high, color=COLOURS[index], alpha=0.15, linewidth=0)
            axes.plot(steps, mean, color=COLOURS[index], marker=MARKERS[index], markersize=3, label=f"PPO {label}")
        points = [point["mean"] for point in maml.values()]
        steps = BATCH * np.arange(len(points)) / 1000
        axes.plot(steps, points, "--*", color="black", markersize=8, label="MAML's own steps, of 2000 each")
        axes.set(xlabel="environment steps on the goal (thousands)", title=f"PPO: {TITLES[setting]}")
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("return per episode (sum of rewards)")
    figure.suptitle(f"mean and 95 % interval over {len(options.seeds)} seeds", fontsize="small", color="0.35")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
