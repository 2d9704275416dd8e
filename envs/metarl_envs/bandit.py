"""Bernoulli bandits, as in RL^2 (https://arxiv.org/abs/1611.02779, sec. 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl.control import ControlTasks, Sampling
from metarl.mdp import MDP, MDPEnv, MDPVectorEnv, Parameters, box
from metarl.types import Spec, Split

DEFAULT_PROBABILITIES = (0.1, 0.3, 0.5, 0.7, 0.9)


def pull(probabilities: Tensor, arm: Tensor, uniform: Tensor) -> Tensor:
    """Return the reward of an arm ``[...]``: 1 where the uniform number is below the arm's probability, else 0."""
    chosen = probabilities.gather(-1, arm.unsqueeze(-1)).squeeze(-1)
    return (uniform < chosen).to(probabilities.dtype)


def optimal_returns(probabilities: Tensor, horizon: int) -> Tensor:
    """Return the expected sum of rewards of the best arm, ``[task]``, from probabilities ``[task, arm]``."""
    return horizon * probabilities.amax(-1)


def uniform_returns(probabilities: Tensor, horizon: int) -> Tensor:
    """Return the expected sum of rewards of arms chosen at random, ``[task]``, from probabilities ``[task, arm]``."""
    return horizon * probabilities.mean(-1)


def make_env(probabilities: Sequence[float] = DEFAULT_PROBABILITIES) -> MDPEnv:
    """Return one bandit with as many arms as probabilities; a pull pays 0 or 1, and the observation is always [1]."""
    return MDPEnv(bandit(len(probabilities)), {"probabilities": probabilities})


def make_vector_env(
    num_envs: int,
    horizon: int | None = None,
    device: torch.device | str | None = None,
    probabilities: Sequence[float] = DEFAULT_PROBABILITIES,
    max_episode_steps: int | None = None,
) -> MDPVectorEnv:
    """Return lanes of bandits; ``max_episode_steps`` is Gymnasium's name for the horizon."""
    horizon = max_episode_steps if horizon is None else horizon
    return MDPVectorEnv(bandit(len(probabilities)), {"probabilities": probabilities}, num_envs, horizon, device)


def bandit(arms: int) -> MDP:
    """Return the dynamics of bandits with so many arms. Raises ValueError for fewer than two."""
    if arms < 2:
        raise ValueError(f"a bandit needs at least two arms, not {arms}")
    parameters = spaces.Dict({"probabilities": box(0, 1, (arms,))})
    return MDP(box(0, 1, (1,)), spaces.Discrete(arms), parameters, torch.zeros(()), _step, _observe, _check)


def _step(parameters: Parameters, state: Tensor, action: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    uniform = torch.rand(state.shape, generator=generator, device=state.device)
    return state, pull(parameters["probabilities"], action, uniform), torch.zeros_like(state, dtype=torch.bool)


def _observe(state: Tensor) -> Tensor:
    return torch.ones_like(state).unsqueeze(-1)


def _check(parameters: Parameters) -> None:
    for probabilities in parameters.values():
        if ((probabilities < 0) | (probabilities > 1)).any():
            raise ValueError("probabilities lie in [0, 1]")


@dataclass(frozen=True)
class Bandit:
    """Bernoulli bandits: the probability that an arm pays 1 is uniform in [0, 1]; the observation is always 1.

    Task parameter and descriptor: ``probabilities`` ``[task, arm]``. By default an adaptation sees 100 pulls, each an
    episode of its own, as in pytorch-maml-rl; a policy with memory asks for one episode of 100 pulls instead.
    """

    arms: int = 5
    """Number of arms; RL^2 has 5, 10 and 50."""
    sampling: Sampling = field(default_factory=lambda: Sampling(episodes=100, horizon=1, discount=0.95))
    """How episodes are sampled: ``episodes`` times ``horizon`` pulls."""

    def __post_init__(self) -> None:
        bandit(self.arms)

    @property
    def spec(self) -> Spec:
        """A constant in, an arm out; described by the arms' probabilities."""
        return Spec(input_shape=(1,), output_size=self.arms, kind="discrete", descriptor_size=self.arms)

    @property
    def parameter_space(self) -> spaces.Dict:
        """Where probabilities come from."""
        return bandit(self.arms).parameter_space

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample probabilities; the splits share one distribution. Raises ValueError for fewer than one task."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        probabilities = torch.rand(num_tasks, self.arms, generator=generator)
        parameters = {"probabilities": probabilities}
        return ControlTasks(self.spec, parameters, probabilities, self.environment, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> MDPVectorEnv:
        """Return the lanes that episodes are sampled from."""
        return make_vector_env(num_envs, self.sampling.horizon, device, probabilities=[0.5] * self.arms)
