"""Everything that is about speed only: devices, threads, processes, memory, graphs.

Nothing here changes results, except for rounding. This package imports only the vocabulary: it knows no learner, family
or training loop. Start reading in ``parts``, which runs parts of an iteration as graphs. ``tracing`` makes the graphs,
``devices`` holds GPU settings, ``cpus`` counts the CPUs that may be used, ``threads`` spreads groups of tasks over the
cores of a CPU, and ``ranks`` spreads a run over processes.
"""

from metarl.speed.allocator import keep_freed_memory
from metarl.speed.cpus import limit_threads, usable_cpus
from metarl.speed.devices import (
    Device,
    check_device,
    fastest_convolutions,
    float32,
    refuse_autocast,
    resolve_device,
    send,
    usual_modes,
    without_cudnn,
)
from metarl.speed.internals import on_leaves
from metarl.speed.parts import Graphs, run_captured, run_compiled, run_is_compiled
from metarl.speed.ranks import RankError, Ranks
from metarl.speed.singly import joined_tasks, singly
from metarl.speed.substitutes import SubstituteError, is_comparison, made_or_warned, require_same
from metarl.speed.threads import each_group

__all__ = [
    "Device",
    "Graphs",
    "RankError",
    "Ranks",
    "SubstituteError",
    "check_device",
    "each_group",
    "fastest_convolutions",
    "float32",
    "is_comparison",
    "joined_tasks",
    "keep_freed_memory",
    "limit_threads",
    "made_or_warned",
    "on_leaves",
    "ranks",
    "refuse_autocast",
    "require_same",
    "resolve_device",
    "run_captured",
    "run_compiled",
    "run_is_compiled",
    "send",
    "singly",
    "tracing",
    "usable_cpus",
    "usual_modes",
    "without_cudnn",
]
