"""Everything that is about speed only: devices, threads, memory, graphs.

Nothing here changes results, except for rounding. This package imports only the vocabulary: it knows no learner, family
or training loop. Start reading in ``parts``, which runs parts of an iteration as graphs. ``tracing`` makes the graphs,
``devices`` holds GPU settings, ``cpus`` counts the CPUs that may be used, and ``threads`` spreads groups of tasks over
the cores of a CPU.
"""

from metarl.speed.allocator import keep_freed_memory
from metarl.speed.cpus import limit_threads, usable_cpus
from metarl.speed.devices import (
    Device,
    check_device,
    float32,
    refuse_autocast,
    resolve_device,
    send,
    usual_modes,
    without_cudnn,
)
from metarl.speed.internals import on_leaves
from metarl.speed.parts import Graphs, run_captured, run_compiled, run_is_compiled
from metarl.speed.substitutes import SubstituteError, is_comparison, made_or_warned, require_same
from metarl.speed.threads import each_group

__all__ = [
    "Device",
    "Graphs",
    "SubstituteError",
    "check_device",
    "each_group",
    "float32",
    "is_comparison",
    "keep_freed_memory",
    "limit_threads",
    "made_or_warned",
    "on_leaves",
    "refuse_autocast",
    "require_same",
    "resolve_device",
    "run_captured",
    "run_compiled",
    "run_is_compiled",
    "send",
    "tracing",
    "usable_cpus",
    "usual_modes",
    "without_cudnn",
]
