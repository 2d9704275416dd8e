"""Integration with Stable-Baselines3: environments to train its algorithms on, policies with ``predict``, and models.

Only this package and the writers of logs import Stable-Baselines3.
"""

try:
    from metarl.sb3.actors import import_actor, saved, to_ppo
    from metarl.sb3.baselines import BASELINES, PPOBaseline, SACBaseline, returns, scores, train
    from metarl.sb3.environments import TaskVecEnv
    from metarl.sb3.policies import MetaPolicy, policy
except ImportError as error:
    if (error.name or "").partition(".")[0] != "stable_baselines3":
        raise
    raise ImportError(
        "metarl.sb3 needs Stable-Baselines3, which cannot be imported: pip install stable-baselines3"
    ) from error

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
    "scores",
    "to_ppo",
    "train",
]
