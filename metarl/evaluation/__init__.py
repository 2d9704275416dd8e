"""How well, and how fast, a meta-learner adapts to held-out tasks.

A learner, its parameters and a family come in, never a training run. Start reading in ``scores``; ``comparison`` tells
how much of the gap between a pre-trained network and an oracle is closed.
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
