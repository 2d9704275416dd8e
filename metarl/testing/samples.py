"""Small synthetic families of every kind and a small algorithm. They need no data and no simulator."""

import dataclasses

import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl.algorithms import MAML
from metarl.control import ControlTasks, Sampling
from metarl.environments.mdp import MDP, MDPVectorEnv, Parameters, box
from metarl.fewshot import NWayKShot, Regression
from metarl.networks import Network
from metarl.seeding import uniform
from metarl.types import Algorithm, Family, Kind, Spec, Split


def small_algorithm() -> Algorithm:
    """Return an algorithm that supports every kind of task. Its learners' meta-loss is smooth."""
    return MAML(step_size=0.1, network=Network(hidden=(8,), activation="tanh"))


def small_family(kind: Kind) -> Family:
    """Return a small synthetic family of a kind."""
    if kind == "regression":
        return Regression(lambda inputs, slope: slope * inputs, {"slope": (-1.0, 1.0)}, shots=5)
    if kind == "classification":
        items = torch.randn(120, 3, generator=Generator().manual_seed(0))
        return NWayKShot(items, torch.arange(120) % 20, ways=3, shots=2)
    return Points(kind == "discrete")


@dataclasses.dataclass(frozen=True)
class Points:
    """A point on a line. The reward is minus its distance to a goal that it does not observe."""

    discrete: bool
    """Move one step left, stay, or move one step right; else move by any length."""
    sampling: Sampling = dataclasses.field(default_factory=lambda: Sampling(episodes=3, horizon=4))
    """Options for sampling episodes."""

    @property
    def spec(self) -> Spec:
        """Input: position. Output: move. Descriptor: goal."""
        return Spec((1,), 3, "discrete", 1) if self.discrete else Spec((1,), 1, "continuous", 1)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample goals in [-1, 1]. Raises ValueError for fewer than one task."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        goals = 2 * uniform(generator, num_tasks, 1) - 1
        return ControlTasks(self.spec, {"goal": goals}, goals, self.environment, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> MDPVectorEnv:
        """Return the lanes."""
        acted = spaces.Discrete(3) if self.discrete else box(-1, 1, (1,))
        goals = spaces.Dict(goal=box(-1, 1, (1,)))
        dynamics = MDP(box(-10, 10, (1,)), acted, goals, torch.zeros(1), self._step, lambda position: position)
        return MDPVectorEnv(dynamics, {"goal": [0.0]}, num_envs, self.sampling.horizon, device)

    def _step(
        self, parameters: Parameters, position: Tensor, action: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        move = (action.unsqueeze(-1) - 1) / 2 if self.discrete else action.clamp(-1, 1) / 2
        following = position + move
        distance = (following - parameters["goal"]).abs().squeeze(-1)
        return following, -distance, torch.zeros_like(distance, dtype=torch.bool)
