"""The edge to Stable-Baselines3: families to train its algorithms on, policies with its ``predict``, and its models.

Nothing else in the toolkit knows of Stable-Baselines3, but for the logger.
"""

from metarl.sb3.actors import import_actor, saved, to_ppo
from metarl.sb3.baselines import BASELINES, PPOBaseline, SACBaseline, returns, train
from metarl.sb3.environments import TaskVecEnv
from metarl.sb3.policies import MetaPolicy, policy

__all__ = [
    "BASELINES",
    "MetaPolicy",
    "PPOBaseline",
    "SACBaseline",
    "TaskVecEnv",
    "import_actor",
    "policy",
    "returns",
    "saved",
    "to_ppo",
    "train",
]
