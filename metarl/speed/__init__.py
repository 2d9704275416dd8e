"""Everything that is about speed only: devices, threads, memory, graphs.

Nothing here changes results, except for rounding. This package imports only the vocabulary: it knows no learner, family
or training loop. Start reading in ``parts``, which runs parts of an iteration as graphs. ``tracing`` makes the graphs,
``devices`` holds GPU settings, and ``threads`` spreads groups of tasks over the cores of a CPU.
"""

from metarl.speed.allocator import keep_freed_memory
from metarl.speed.devices import Device, float32, resolve_device, send, without_cudnn
from metarl.speed.internals import on_leaves
from metarl.speed.parts import Graphs, is_comparison, run_captured, run_compiled, run_is_compiled
from metarl.speed.threads import each_group

__all__ = [
    "Device",
    "Graphs",
    "each_group",
    "float32",
    "is_comparison",
    "keep_freed_memory",
    "on_leaves",
    "resolve_device",
    "run_captured",
    "run_compiled",
    "run_is_compiled",
    "send",
    "tracing",
    "without_cudnn",
]
