"""Stable-Baselines3's MlpPolicy for Discrete spaces that do not count from 0, which it takes for such that do.

A saved model holds this module's classes themselves, so that it can be loaded where metarl is not installed.
"""

import sys
from typing import Any

import cloudpickle
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class ShiftedCategorical(CategoricalDistribution):
    """A categorical distribution over ``start``, ``start + 1``, ..."""

    def __init__(self, action_dim: int, start: int) -> None:
        super().__init__(action_dim)
        self.start = start

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probability of actions."""
        return super().log_prob(actions - self.start)

    def sample(self) -> Tensor:
        """Draw actions."""
        return super().sample() + self.start

    def mode(self) -> Tensor:
        """Return the most likely actions."""
        return super().mode() + self.start


class ShiftedPolicy(ActorCriticPolicy):
    """An MlpPolicy whose Discrete observations and actions may begin at any number."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        observations, actions = self.observation_space, self.action_space
        self.first = int(observations.start) if isinstance(observations, spaces.Discrete) else 0
        if isinstance(actions, spaces.Discrete):
            self.action_dist = ShiftedCategorical(int(actions.n), int(actions.start))

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        """Return actions, values and log-probabilities."""
        return super().forward(obs - self.first, deterministic)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> Any:
        """Return values, log-probabilities and entropy."""
        return super().evaluate_actions(obs - self.first, actions)

    def get_distribution(self, obs: Any) -> Any:
        """Return the distribution of actions."""
        return super().get_distribution(obs - self.first)

    def predict_values(self, obs: Any) -> Tensor:
        """Return values."""
        return super().predict_values(obs - self.first)
