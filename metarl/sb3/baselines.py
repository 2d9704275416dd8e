"""Stable-Baselines3's own algorithms, trained on a family's tasks for comparison."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from metarl.control import ControlFamily, ControlTasks
from metarl.networks import ACTIVATIONS, Activation
from metarl.runs import logger
from metarl.sb3.environments import TaskVecEnv
from metarl.training import stop_on_interrupt


class Baseline(Protocol):
    """A frozen dataclass: an algorithm's options, by the names that Stable-Baselines3 gives them."""

    def build(self, env: TaskVecEnv, seed: int, device: str) -> BaseAlgorithm:
        """Return the model, untrained. Raises ValueError where it cannot act in env."""


@dataclass(frozen=True)
class PPOBaseline:
    """Proximal policy optimisation (arXiv 1707.06347), with Stable-Baselines3's defaults."""

    learning_rate: float = 3e-4
    """Step size of Adam."""
    n_steps: int = 256
    """Steps of every lane between updates."""
    batch_size: int = 64
    """Steps in a mini-batch."""
    n_epochs: int = 10
    """Passes over the steps in an update."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of actor and critic each."""
    activation: Activation = "tanh"
    """Their activation."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, env: TaskVecEnv, seed: int, device: str) -> PPO:
        """Return the model, untrained."""
        return PPO("MlpPolicy", env, seed=seed, device=device, **_keywords(self))


@dataclass(frozen=True)
class SACBaseline:
    """Soft actor-critic (arXiv 1801.01290), with Stable-Baselines3's defaults; for continuous actions."""

    learning_rate: float = 3e-4
    """Step size of Adam."""
    buffer_size: int = 1_000_000
    """Transitions that are remembered."""
    learning_starts: int = 1000
    """Environment steps before the first update."""
    batch_size: int = 256
    """Transitions in a mini-batch."""
    gradient_steps: int = -1
    """Updates after each step of all lanes; -1: as many as there are lanes."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.005
    """Share of the critic that its target takes over at each update."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers, of actor and critics each."""
    activation: Activation = "relu"
    """Their activation."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, env: TaskVecEnv, seed: int, device: str) -> SAC:
        """Return the model, untrained. Raises ValueError where actions are discrete."""
        if not env.action_space.shape:
            raise ValueError(f"sac needs continuous actions, and these are {env.action_space}; take ppo")
        return SAC("MlpPolicy", env, seed=seed, device=device, **_keywords(self))


def _check(options: PPOBaseline | SACBaseline) -> None:
    if options.activation not in get_args(Activation):
        raise ValueError(f"activation={options.activation!r}: expected one of {', '.join(get_args(Activation))}")
    if not options.learning_rate > 0:
        raise ValueError(f"learning_rate={options.learning_rate} must be positive")
    if not 0 <= options.gamma <= 1:
        raise ValueError(f"gamma={options.gamma} lies in [0, 1]")
    if min(options.batch_size, *options.hidden) < 1:
        raise ValueError(f"batch_size={options.batch_size} and hidden={options.hidden} are at least 1")


def _keywords(options: PPOBaseline | SACBaseline) -> dict[str, Any]:
    keywords = asdict(options)
    activation = type(ACTIVATIONS[keywords.pop("activation")]())
    return keywords | {"policy_kwargs": {"net_arch": list(keywords.pop("hidden")), "activation_fn": activation}}


BASELINES: dict[str, Baseline] = {"ppo": PPOBaseline(), "sac": SACBaseline()}


def train(model: BaseAlgorithm, timesteps: int, folder: Path, quiet: bool = True) -> bool:
    """Train a model, with its progress in a run folder, and return whether Ctrl-C stopped it.

    A row of progress.csv is Stable-Baselines3's, of an update on fresh data or of an episode in every lane, and besides
    ``iteration``, its number, and ``return/step_0``, the mean return of the last 100 episodes, as other runs have them.
    """
    formats = logger.open_files(folder, 0).output_formats
    told = _Told(str(folder), formats if quiet else [*formats, HumanOutputFormat(sys.stdout)])
    model.set_logger(told)
    try:
        with stop_on_interrupt() as stop:
            interval = model.n_envs if isinstance(model, OffPolicyAlgorithm) else 1
            model.learn(timesteps, callback=lambda *_: not stop.is_set(), log_interval=interval)
            return stop.is_set()
    finally:
        told.close()


class _Told(Logger):
    """Tells what it logs under metarl's names too."""

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
    """Mean return of each task, over the episodes of one draw of it; anything with ``predict`` acts."""
    number, episodes = len(tasks.descriptors), tasks.sampling.episodes
    env = TaskVecEnv(family, number * episodes, tasks, seed=seed)
    observations: Any = env.reset()
    found = np.full(env.num_envs, np.nan)
    while np.isnan(found).any():
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, _, infos = env.step(actions)
        for lane, info in enumerate(infos):
            if "episode" in info and np.isnan(found[lane]):
                found[lane] = info["episode"]["r"]
    env.close()
    # Lane i has task i % n.
    means: list[float] = found.reshape(episodes, number).mean(0).tolist()
    return means
