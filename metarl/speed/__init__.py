"""How things run fast, never what they are: devices, threads, memory, graphs.

Results do not depend on anything in here, but for rounding. Only the vocabulary may come in: no learner, family or
training loop. Start reading in ``parts``, which runs parts of an iteration as graphs; ``tracing`` makes the graphs,
``devices`` knows what a GPU is asked for, ``threads`` spreads groups of tasks over the cores of a CPU.
"""

from metarl.speed.allocator import keep_freed_memory
from metarl.speed.devices import Device, float32, refuse_autocast, resolve_device, send, without_cudnn
from metarl.speed.parts import Graphs, is_comparison, run_captured, run_compiled, run_is_compiled
from metarl.speed.threads import each_group

__all__ = [
    "Device",
    "Graphs",
    "each_group",
    "float32",
    "is_comparison",
    "keep_freed_memory",
    "refuse_autocast",
    "resolve_device",
    "run_captured",
    "run_compiled",
    "run_is_compiled",
    "send",
    "tracing",
    "without_cudnn",
]
