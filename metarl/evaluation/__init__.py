"""Evaluation: how well, and how fast, a meta-learner adapts to held-out tasks.

Functions take a learner, its parameters and a family, not a training run. Start reading in ``scores``. ``comparison``
computes how much of the gap between a pre-trained network and an oracle a learner closes.
"""

from metarl.evaluation.scores import Adapted, Evaluation, adapt, evaluate, sample_tasks, summary, table

__all__ = [
    "Adapted",
    "Evaluation",
    "adapt",
    "comparison",
    "evaluate",
    "sample_tasks",
    "summary",
    "table",
]
