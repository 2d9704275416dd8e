"""Evaluation: how well, and how fast, a meta-learner adapts to held-out tasks.

Functions take a learner, its parameters and a family, not a training run. Start reading in ``scores``, which adapts by
``adaptation``. ``comparison`` computes how much of the gap between a pre-trained network and an oracle a learner
closes, and scores at equal numbers of environment steps. ``references`` has what doing nothing earns. ``bootstrap`` has
intervals over training seeds and tasks, ``reliable`` the measures of rliable, ``predictions`` what classifiers predict
of the first tasks. ``ranges`` tells which tasks lie outside of what was trained on.
"""

from metarl.evaluation.adaptation import Adapted, adapt
from metarl.evaluation.bootstrap import over_seeds, strata
from metarl.evaluation.noiseless import acting_by_the_mean
from metarl.evaluation.references import references
from metarl.evaluation.scores import DivergenceWarning, Evaluation, evaluate, sample_tasks
from metarl.evaluation.summaries import summary, table

__all__ = [
    "Adapted",
    "DivergenceWarning",
    "Evaluation",
    "acting_by_the_mean",
    "adapt",
    "comparison",
    "evaluate",
    "over_seeds",
    "predictions",
    "ranges",
    "references",
    "reliable",
    "sample_tasks",
    "strata",
    "summary",
    "table",
]
