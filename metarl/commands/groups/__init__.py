"""Groups of runs that differ in their seed alone: ``folder`` reads them, ``training`` trains them in ``processes``.

``each`` lets a command for one run serve all runs of a group; ``evaluating`` joins their evaluations, ``curves`` their
rows, and ``reading`` reads both.
"""

from metarl.commands.groups.curves import pooled, with_environment_steps
from metarl.commands.groups.each import each, one_or_each
from metarl.commands.groups.evaluating import OTHER_TASKS, evaluated, gap_record, joined, recorded
from metarl.commands.groups.folder import Group, go_on, is_group, labelled, member, read_group, standing
from metarl.commands.groups.reading import Evaluation, Rows, Scores, read_scores
from metarl.commands.groups.training import Manner, allowing, resumed, trained

__all__ = [
    "OTHER_TASKS",
    "Evaluation",
    "Group",
    "Manner",
    "Rows",
    "Scores",
    "allowing",
    "each",
    "evaluated",
    "gap_record",
    "go_on",
    "is_group",
    "joined",
    "labelled",
    "member",
    "one_or_each",
    "pooled",
    "read_group",
    "read_scores",
    "recorded",
    "resumed",
    "standing",
    "trained",
    "with_environment_steps",
]
