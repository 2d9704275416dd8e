"""Baselines: Stable-Baselines3's algorithms, trained on a family's tasks."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from metarl import plugins
from metarl.control import ControlFamily, ControlTasks, SuccessWatch
from metarl.networks import ACTIVATIONS, Activation
from metarl.runs import logger
from metarl.sb3.environments import TaskVecEnv
from metarl.training import stop_on_interrupt


class Baseline(Protocol):
    """A frozen dataclass with an algorithm's options, under the names of Stable-Baselines3."""

    def build(self, env: TaskVecEnv, seed: int, device: str) -> BaseAlgorithm:
        """Return an untrained model. Raises ValueError if it cannot act in env."""


@dataclass(frozen=True)
class PPOBaseline:
    """PPO, proximal policy optimisation (arXiv 1707.06347), with Stable-Baselines3's defaults."""

    learning_rate: float = 3e-4
    """Step size of Adam."""
    n_steps: int = 256
    """Steps in each lane between updates."""
    batch_size: int = 64
    """Mini-batch size, in steps."""
    n_epochs: int = 10
    """Passes over the data in each update."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation (GAE)."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, the same for actor and critic."""
    activation: Activation = "tanh"
    """Activation of the hidden layers."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, env: TaskVecEnv, seed: int, device: str) -> PPO:
        """Return an untrained model."""
        return PPO("MlpPolicy", env, seed=seed, device=device, **_keywords(self))


@dataclass(frozen=True)
class SACBaseline:
    """SAC, soft actor-critic (arXiv 1801.01290), with Stable-Baselines3's defaults. For continuous actions."""

    learning_rate: float = 3e-4
    """Step size of Adam."""
    buffer_size: int = 1_000_000
    """Size of the replay buffer, in transitions."""
    learning_starts: int = 1000
    """Environment steps before the first update."""
    batch_size: int = 256
    """Mini-batch size, in transitions."""
    gradient_steps: int = -1
    """Updates after each step of all lanes. -1: as many as there are lanes."""
    gamma: float = 0.99
    """Discount factor."""
    tau: float = 0.005
    """Coefficient of the soft update of the target critic (Polyak averaging)."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers, the same for actor and critics."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, env: TaskVecEnv, seed: int, device: str) -> SAC:
        """Return an untrained model. Raises ValueError if actions are discrete."""
        if not env.action_space.shape:
            raise ValueError(f"sac needs continuous actions, but the action space is {env.action_space}; use ppo")
        return SAC("MlpPolicy", env, seed=seed, device=device, **_keywords(self))


def _check(options: PPOBaseline | SACBaseline) -> None:
    for name, value in plugins.checked_fields(options).items():
        object.__setattr__(options, name, value)  # NumPy's numbers, as Python's
    if options.activation not in get_args(Activation):
        raise ValueError(f"activation={options.activation!r}: expected one of {', '.join(get_args(Activation))}")
    if not options.learning_rate > 0:
        raise ValueError(f"learning_rate={options.learning_rate} must be positive")
    if not 0 <= options.gamma <= 1:
        raise ValueError(f"gamma={options.gamma}: expected a number in [0, 1]")
    if min(options.batch_size, *options.hidden) < 1:
        raise ValueError(f"batch_size={options.batch_size} and hidden={options.hidden} must be at least 1")


def _keywords(options: PPOBaseline | SACBaseline) -> dict[str, Any]:
    keywords = asdict(options)
    activation = type(ACTIVATIONS[keywords.pop("activation")]())
    return keywords | {"policy_kwargs": {"net_arch": list(keywords.pop("hidden")), "activation_fn": activation}}


BASELINES: dict[str, Baseline] = {"ppo": PPOBaseline(), "sac": SACBaseline()}


def train(model: BaseAlgorithm, timesteps: int, folder: Path, quiet: bool = True) -> bool:
    """Train a model and log to a run folder. Return whether Ctrl-C stopped the training.

    Rows of progress.csv hold Stable-Baselines3's metrics: one row for each update on fresh data, or for SAC after an
    episode in every lane. They also have metarl's columns: ``iteration``, the number of the row, and ``return/step_0``,
    the mean return of the last 100 episodes.
    """
    formats = logger.open_files(folder, 0).output_formats
    log = _RowLogger(str(folder), formats if quiet else [*formats, HumanOutputFormat(sys.stdout)])
    model.set_logger(log)
    try:
        with stop_on_interrupt() as stop:
            # SB3 logs off-policy algorithms every so many episodes, counted over all lanes.
            interval = model.n_envs if isinstance(model, OffPolicyAlgorithm) else 1
            model.learn(timesteps, callback=lambda *_: not stop.is_set(), log_interval=interval)
            return stop.is_set()
    finally:
        log.close()


class _RowLogger(Logger):
    """A logger that adds metarl's columns to every row."""

    rows = 0

    def dump(self, step: int = 0) -> None:
        self.rows += 1
        self.record("iteration", self.rows)
        if "rollout/ep_rew_mean" in self.name_to_value:
            self.record("return/step_0", self.name_to_value["rollout/ep_rew_mean"])
        super().dump(step)


def returns(
    model: Any, family: ControlFamily, tasks: ControlTasks, seed: int = 0, deterministic: bool = False
) -> list[float]:
    """Return the mean return of each task, over as many episodes as its sampling has. ``model`` needs ``predict``."""
    return scores(model, family, tasks, seed, deterministic)["return"]


def scores(
    model: Any,
    family: ControlFamily,
    tasks: ControlTasks,
    seed: int = 0,
    deterministic: bool = False,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, list[float]]:
    """Return the mean scores of each task by name: ``return``, and ``success`` where the environments report it.

    ``progress`` is called with the share of the work that is done.
    """
    number, episodes = len(tasks.descriptors), tasks.sampling.episodes
    env = TaskVecEnv(family, number * episodes, tasks, seed=seed)
    env._lanes = watched = SuccessWatch(env._lanes)
    observations: Any = env.reset()
    # Of each lane's first episode; nan until it ends.
    lane_returns, lane_successes = np.full(env.num_envs, np.nan), np.zeros(env.num_envs)
    steps = 0
    while (running := np.isnan(lane_returns)).any():
        progress(min(1.0, steps / tasks.sampling.horizon))
        steps += 1
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, _, infos = env.step(actions)
        if watched.succeeded is not None:
            lane_successes[running] = watched.succeeded.cpu().numpy()[running]
        for lane in np.flatnonzero(running):
            if "episode" in infos[lane]:
                lane_returns[lane] = infos[lane]["episode"]["r"]
    env.close()
    found = {"return": lane_returns} | ({"success": lane_successes} if watched.succeeded is not None else {})
    # Lane i has task i % n.
    return {name: values.reshape(episodes, number).mean(0).tolist() for name, values in found.items()}
