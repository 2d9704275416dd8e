"""Groups of runs that differ in their seed alone: ``folder`` reads them, ``training`` trains them in ``processes``.

``each`` lets a command for one run serve all runs of a group; ``same`` tells whether a run is what was asked for.
"""

from metarl.commands.groups.each import each, one_or_each
from metarl.commands.groups.folder import Group, is_group, member, read_group
from metarl.commands.groups.same import difference, standing
from metarl.commands.groups.training import Manner, allowing, resumed, trained

__all__ = [
    "Group",
    "Manner",
    "allowing",
    "difference",
    "each",
    "is_group",
    "member",
    "one_or_each",
    "read_group",
    "resumed",
    "standing",
    "trained",
]
