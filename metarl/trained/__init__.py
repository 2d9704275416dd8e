"""Using what was trained: adapt to tasks, ask policies for actions, make films.

This package uses evaluation and knows no run folder: training returns, and opens, its ``Trained``. Start reading in
``outcome``. ``policies`` makes functions of observations and of inputs. ``films`` shows policies before and after each
adaptation step. ``deploy`` adapts to one's own examples and environments, and saves and exports what comes out.
``recorded`` saves the episodes of evaluations for others.
"""

from metarl.trained.deploy.fewshot import FewShotModel
from metarl.trained.deploy.loading import load_model
from metarl.trained.deploy.playing import Episode
from metarl.trained.deploy.policy import AdaptedPolicy
from metarl.trained.outcome import Trained, Trains
from metarl.trained.policies import TaskPolicy, TaskPredictor, check_policies
from metarl.trained.recorded.places import are_saved, check_recording, load_episodes, save_rollouts

__all__ = [
    "AdaptedPolicy",
    "Episode",
    "FewShotModel",
    "TaskPolicy",
    "TaskPredictor",
    "Trained",
    "Trains",
    "are_saved",
    "check_policies",
    "check_recording",
    "films",
    "load_episodes",
    "load_model",
    "save_rollouts",
]
