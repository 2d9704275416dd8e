"""Using what was trained: adapt to tasks, ask policies for actions, make films.

This package uses evaluation and knows no run folder: training returns, and opens, its ``Trained``. Start reading in
``outcome``. ``policies`` makes functions of observations. ``films`` shows policies before and after each adaptation
step.
"""

from metarl.trained.outcome import Trained
from metarl.trained.policies import TaskPolicy, check_policies

__all__ = [
    "TaskPolicy",
    "Trained",
    "check_policies",
    "films",
]
