"""The inside of a worker process: it steps its share of the lanes for its parent, ``metarl.environments.workers``.

It imports no torch, which would take each worker two seconds and 150 MB.
"""

import math
import mmap
import os
import signal
import threading
import time
import traceback
from itertools import accumulate
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from metarl.environments.lanes import LaneOptions, Lanes
from metarl.environments.spaces import Array, policy_spaces

GRACE = 5.0
"""Seconds that a worker has to close its environments before it is killed."""
ALIGNED = 64
"""Bytes of a cache line, which processes should not share."""


class WorkerError(RuntimeError):
    """What went wrong in a worker process: its traceback."""


class Arrays(NamedTuple):
    """What passes between the processes at every step; the first axis is the lane."""

    observations: Array
    rewards: Array
    terminated: Array
    truncated: Array
    told: Array
    successes: Array
    actions: Array

    def of(self, lanes: slice) -> "Arrays":
        """Return the views of some lanes."""
        return Arrays(*(array[lanes] for array in self))


def shared_arrays(file: int, options: LaneOptions) -> Arrays:
    """Map a file, by its descriptor, into memory as the arrays of all lanes."""
    observation, action = policy_spaces(options.spec, options.dtype)
    flag, reward = np.dtype(bool), np.dtype(options.dtype)
    rows: list[tuple[np.dtype[Any], tuple[int, ...]]] = [
        (reward, observation.shape),
        (reward, ()),
        *[(flag, ())] * 4,
        (np.dtype(action.dtype), action.shape or ()),
    ]
    sizes = [options.num_envs * kind.itemsize * math.prod(shape) for kind, shape in rows]
    starts = [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)]
    os.ftruncate(file, starts[-1])
    memory = mmap.mmap(file, starts[-1])
    located = zip(rows, starts[:-1], strict=True)
    return Arrays(*(np.ndarray((options.num_envs, *shape), kind, memory, start) for (kind, shape), start in located))


def serve(connection: int, memory: int, parent: int) -> None:
    """Step lanes for the parent until it closes the socket ``connection``: the whole life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    with Connection(connection) as link:
        try:
            _work(link, memory)
        except (EOFError, ConnectionError):
            return  # the parent has closed the socket, or is gone


def _work(link: Connection, memory: int) -> None:
    told = link.recv()
    try:
        lanes, arrays = _lanes(memory, *told)
    except Exception as error:
        what = f"a worker process could not start: {type(error).__name__}: {error}"
        link.send((WorkerError(what), traceback.format_exc()))
        return
    link.send(None)
    try:
        while True:
            question = link.recv()
            link.send(_failure(lanes, arrays, question))
    finally:
        lanes.close()


def _lanes(memory: int, pickled: bytes, share: slice) -> tuple[Lanes, Arrays]:
    options: LaneOptions = cloudpickle.loads(pickled)
    own = options._replace(num_envs=share.stop - share.start)
    return Lanes(own, first=share.start), shared_arrays(memory, options).of(share)


def _failure(lanes: Lanes, arrays: Arrays, question: dict[str, Any] | None) -> tuple[Exception, str] | None:
    """Step, or reset where that is asked; return the error that this raised, if any."""
    try:
        if question is None:
            *outcomes, told = lanes.step(arrays.actions)
            outcomes += told.get("_success", False), told.get("success", False)
        else:
            outcomes = [lanes.reset(**question)[0]]
        for array, outcome in zip(arrays, outcomes, strict=False):
            array[...] = outcome
    except Exception as error:
        return error, traceback.format_exc()
    return None


def _end_after(parent: int) -> None:
    """End this process after its parent's death, though a step may hang, or somebody else may hold the socket."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(GRACE)
    os._exit(1)
