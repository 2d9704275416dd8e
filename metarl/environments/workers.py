"""Lanes in worker processes: any Gymnasium environment on several cores, each process stepping several lanes.

A worker is a fresh interpreter that imports neither torch nor the script that started it. Commands and errors go
through a socket. Observations, actions and rewards are in shared memory without a name, so nothing is left behind
however the processes end. A worker ends when its socket closes or its parent has ended.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, BinaryIO, NamedTuple

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import VectorEnv

from metarl.environments.bookkeeping import describe
from metarl.environments.lanes import NOT_RESET, LaneError, LaneOptions, Lanes, infos, lanes_seeds, short
from metarl.environments.making import Maker
from metarl.environments.observations import named
from metarl.environments.outcomes import RESET, STEP, Told, joined_tallies
from metarl.environments.spaces import Array, checked_actions, checked_options, policy_spaces
from metarl.environments.worker import GRACE, TOLD, WorkerError, shared_arrays
from metarl.safety import step_timeout

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def usable_cpus() -> int:
    """Return how many CPUs this process may use; see ``metarl.speed.usable_cpus``."""
    from metarl import speed  # not at the top: it imports torch, and workers import this module

    return speed.usable_cpus()


def on_workers(workers: int | None, options: LaneOptions) -> "Lanes | WorkerLanes":
    """Return lanes in this many processes, None for one per CPU. A single process means lanes in this one."""
    processes = min(options.num_envs, usable_cpus() if workers is None else workers)
    return WorkerLanes(options, processes) if processes > 1 else Lanes(options)


class Worker(NamedTuple):
    """A worker process, the socket to it, and its lanes."""

    process: subprocess.Popen[bytes]
    connection: Connection
    lanes: slice
    answers: Any
    """A ``select.poll`` that tells whether there is an answer. It is made once: waiting happens at every step."""


class WorkerDied(LaneError):
    """A worker process ended by itself. Episodes that are run again from their reset, in new lanes, are the same."""


_CALLS = {STEP: "a step", RESET: "a reset"}


class WorkerLanes(VectorEnv[Any, Any, Any]):
    """``metarl.environments.Lanes`` in ``workers`` processes: the same contract and results, bit for bit.

    Each worker gets a contiguous block of lanes, all of nearly equal size. The functions that make an environment and
    apply task parameters are sent by cloudpickle: closures are pickled, functions of modules are imported in the
    worker. An error in a worker is raised as Lanes would raise it, with the worker's traceback as its cause, and all
    workers stay usable. When a worker dies, takes longer than ``metarl.safety.step_timeout()``, or waiting for it is
    interrupted, all workers are closed.

    Raises:
        WorkerError: a worker could not start, for example because it cannot import a module.
        LaneError: as from Lanes; also when a worker died (WorkerDied) or took too long, naming its lanes.
    """

    places: Any = None
    """Which lanes of a larger batch these are, see ``metarl.control.Placed``."""

    def __init__(self, options: LaneOptions, workers: int = 2):
        num_envs = options.num_envs
        if sys.platform == "win32":
            raise ValueError("worker processes need Linux or macOS, whose processes inherit open files: use workers=1")
        if not 1 <= workers <= num_envs:
            raise ValueError(f"expected from one worker to one for each of the {num_envs} lanes, not {workers}")
        describe(self, *policy_spaces(options.spec, options.dtype, options.action_scale), num_envs, options.horizon)
        self.horizon, self.parameter_space = options.horizon, options.parameters
        self._reset_once = np.zeros(num_envs, dtype=bool)
        self._name, self._rows = options.name or named(options.env), dict[str, Array]()
        portable = options._replace(env=_portable(options.env), name=options.name or named(options.env))
        self._workers: list[Worker] = []
        self._stop = weakref.finalize(self, _stop, self._workers, os.getpid())
        with _anonymous_file() as memory:
            self._arrays = shared_arrays(memory.fileno(), portable)
            ends = [round(worker * num_envs / workers) for worker in range(workers + 1)]
            self._workers += (_start(memory.fileno(), slice(*share)) for share in pairwise(ends))
        pickled = cloudpickle.dumps(portable)
        self._ask(lambda worker: (pickled, worker.lanes))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Reset lanes, as ``metarl.environments.Lanes`` does."""
        given, restarted = checked_options(options or {}, self.parameter_space, self.num_envs)
        seeds = lanes_seeds(seed, self.num_envs, self.places)
        rows = given | {"reset_mask": restarted}
        self._rows |= given

        def share(worker: Worker) -> dict[str, Any]:
            cut = {name: values[worker.lanes] for name, values in rows.items()}
            return {"seed": seeds[worker.lanes], "options": cut}

        self._ask(share)
        self._reset_once |= restarted
        return self._arrays.observations.copy(), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Act in every lane that has not finished."""
        if not self._reset_once.all():
            raise ResetNeeded(NOT_RESET)
        self._arrays.actions[:] = checked_actions(actions, self.action_space)
        self._ask(lambda worker: None)
        observations, rewards, terminated, truncated, reported, successes = (array.copy() for array in self._arrays[:6])
        return observations, rewards, terminated, truncated, infos(reported, successes)

    def info_numbers(self) -> Told:
        """Return the numbers that environments have told in their infos since the last reset of their lanes."""
        found = self._answers(lambda worker: TOLD)
        return joined_tallies(found, [worker.lanes.stop - worker.lanes.start for worker in self._workers])

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers. One that does not close its environments within five seconds is killed."""
        self._stop()

    def _ask(self, command: Callable[[Worker], Any]) -> None:
        """Send every worker its command, and wait for all of them. Raises the error of the first that failed."""
        if failures := [answer for answer in self._answers(command) if answer is not None]:
            failure, worker_traceback = failures[0]
            raise failure from WorkerError(f"in a worker process:\n{worker_traceback}")

    def _answers(self, command: Callable[[Worker], Any]) -> list[Any]:
        """Send every worker its command, and return their answers."""
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError("the workers were closed; make new lanes")
        answers: list[Any] = []
        try:
            for worker in self._workers:
                worker.connection.send(command(worker))
            limit = step_timeout()
            deadline = None if limit is None else time.monotonic() + limit
            for worker in self._workers:
                self._await(worker, deadline)
                answers.append(worker.connection.recv())
        except (EOFError, ConnectionError) as error:
            raise self._death(worker) from error
        except BaseException:
            self.close()  # replies still on their way would be taken for replies to the next command
            raise
        return answers

    def _await(self, worker: Worker, deadline: float | None) -> None:
        """Wait for a worker's answer. Raises LaneError, which names the task, after the deadline."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if worker.answers.poll(left):
            return
        worker.process.kill()  # it would not hear that it is to close
        first, last = worker.lanes.start, worker.lanes.stop - 1
        busy = np.flatnonzero(self._arrays.calling[worker.lanes])
        lane = first + int(busy[0]) if len(busy) else first
        call = _CALLS.get(int(self._arrays.calling[lane]), "making the environments")
        values = {name: rows[lane] for name, rows in self._rows.items()}
        where = f"lane {lane}" if len(busy) else f"lanes {first} to {last}"
        raise LaneError(
            f"{where}: {call} took longer than {step_timeout():g} s, the limit of --step-timeout "
            f"({self._name}, task {short(values)}); the worker process was ended",
            [lane] if len(busy) else list(range(first, last + 1)),
        )

    def _death(self, worker: Worker) -> LaneError:
        """Return an error that says how a worker ended, and end the others."""
        self.close()
        code = worker.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lanes = list(range(worker.lanes.start, worker.lanes.stop))
        memory = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
        return WorkerDied(f"the worker process of lanes {lanes[0]} to {lanes[-1]} {how}{memory}", lanes)


def _stop(workers: list[Worker], owner: int) -> None:
    """End workers by closing their sockets, and reap them."""
    if os.getpid() != owner:
        return  # this is a fork of the process that started the workers, and does not own them
    for worker in workers:
        worker.connection.close()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _portable(env: Maker) -> Maker:
    """Return a maker that works in a worker, where ids registered by the script do not exist."""
    if isinstance(env, str) and env in gymnasium.registry:
        return partial(gymnasium.make, gymnasium.registry[env], disable_env_checker=True)
    return env


def _start(memory: int, lanes: slice) -> Worker:
    """Start a worker process in its own process group: Ctrl-C reaches the parent only, which decides what to do."""
    ours, theirs = Pipe()
    with theirs:
        paths = [path for path in sys.path if isinstance(path, str)]
        code = (
            f"import sys; sys.path[:] = {paths!r}; "
            f"from metarl.environments.worker import serve; serve({theirs.fileno()}, {memory}, {os.getpid()})"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), memory),
            process_group=0,
            env=os.environ | ONE_THREAD,
        )
    answers = select.poll()
    answers.register(ours.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return Worker(process, ours, lanes, answers)


def _anonymous_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("metarl-workers"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
