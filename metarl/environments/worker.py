"""The code of a worker process, which steps its share of the lanes for its parent, ``metarl.environments.workers``.

It does not import torch, which would cost each worker two seconds and 150 MB.
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

TOLD = "told"
"""The command that asks for the numbers in infos."""
GRACE = 5.0
"""Seconds that a worker has to close its environments before it is killed."""
ALIGNED = 64
"""Bytes of a cache line. Arrays start on one of their own, so that processes do not contend for it."""


class WorkerError(RuntimeError):
    """An error in a worker process, with its traceback."""


class Arrays(NamedTuple):
    """The arrays that processes share at every step. The first axis is the lane."""

    observations: Array
    rewards: Array
    terminated: Array
    truncated: Array
    reported: Array  # whether the lane's info had a success
    successes: Array
    actions: Array
    calling: Array  # what the lane's environment is doing: see outcomes.STEP and RESET

    def of(self, lanes: slice) -> "Arrays":
        """Return the views of some lanes."""
        return Arrays(*(array[lanes] for array in self))


def shared_arrays(file: int, options: LaneOptions) -> Arrays:
    """Map a file, given by its descriptor, into memory as the arrays of all lanes."""
    observation, action = policy_spaces(options.spec, options.dtype, options.action_scale)
    flag, reward = np.dtype(bool), np.dtype(options.dtype)
    rows: list[tuple[np.dtype[Any], tuple[int, ...]]] = [
        (reward, observation.shape),
        (reward, ()),
        *[(flag, ())] * 4,
        (np.dtype(action.dtype), action.shape or ()),
        (np.dtype(np.int8), ()),
    ]
    sizes = [options.num_envs * kind.itemsize * math.prod(shape) for kind, shape in rows]
    # Each array starts at a multiple of ALIGNED: -(-a // b) rounds up.
    starts = [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)]
    os.ftruncate(file, starts[-1])
    memory = mmap.mmap(file, starts[-1])
    views = [
        np.ndarray((options.num_envs, *shape), kind, memory, start)
        for (kind, shape), start in zip(rows, starts[:-1], strict=True)
    ]
    return Arrays(*views)


def serve(connection: int, memory: int, parent: int) -> None:
    """Serve the parent until it closes the socket ``connection``. This is the entry point of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    with Connection(connection) as link:
        try:
            _work(link, memory)
        except (EOFError, ConnectionError):
            return  # the parent closed the socket or ended


def _work(link: Connection, memory: int) -> None:
    pickled, share = link.recv()
    try:
        lanes, arrays = _lanes(memory, pickled, share)
    except (Exception, SystemExit) as error:
        message = f"a worker process could not start: {type(error).__name__}: {error}"
        link.send((WorkerError(message), traceback.format_exc()))
        return
    link.send(None)
    try:
        while True:
            command = link.recv()
            link.send(lanes.info_numbers() if command == TOLD else _failure(lanes, arrays, command))
    finally:
        lanes.close()


def _lanes(memory: int, pickled: bytes, share: slice) -> tuple[Lanes, Arrays]:
    options: LaneOptions = cloudpickle.loads(pickled)
    own = options._replace(num_envs=share.stop - share.start)
    lanes, arrays = Lanes(own, first=share.start), shared_arrays(memory, options).of(share)
    lanes.calling = arrays.calling
    return lanes, arrays


def _failure(lanes: Lanes, arrays: Arrays, command: dict[str, Any] | None) -> tuple[Exception, str] | None:
    """Step, or reset if the command holds reset's arguments; return the error that this raised, if any."""
    try:
        if command is None:
            *outcomes, info = lanes.step(arrays.actions)
            outcomes += info.get("_success", False), info.get("success", False)
        else:
            outcomes = [lanes.reset(**command)[0]]
        for array, outcome in zip(arrays, outcomes, strict=False):  # in the order of the fields; reset has only one
            array[...] = outcome
    except Exception as error:
        return error, traceback.format_exc()
    return None


def _end_after(parent: int) -> None:
    """End this process after its parent's death, even if a step hangs or another process holds the socket open."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(GRACE)
    os._exit(1)
