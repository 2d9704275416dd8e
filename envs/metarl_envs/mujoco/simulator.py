"""Lanes of one MuJoCo model stepped on CPU threads: by MuJoCo's own pool, or by Python threads for older MuJoCo.

Both give the same bits as one ``MjData`` stepped by itself, whatever the number of threads.
"""

import copy
import importlib.util
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, get_args

import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

from metarl.control import LaneError
from metarl.workers import usable_cpus
from metarl_envs.mujoco.dynamics import Array, Values, scaled_fields, set_scaled_fields

Backend = Literal["auto", "native", "threads", "warp"]
ALARMS = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)
"""MuJoCo's warnings of a simulation that became unstable, which it then resets by itself."""


class Physics(Protocol):
    """What observations and rewards may read: a simulator (``...`` are its lanes), or one ``MjData`` (no lanes).

    Arrays are NumPy's in float64, or under MuJoCo Warp torch tensors in float32. As after ``mj_step``, body positions
    and contact forces belong to the last substep's start, not to its end.
    """

    @property
    def qpos(self) -> Values:
        """Generalised positions, ``[..., nq]``, in metres, radians and quaternions."""

    @property
    def qvel(self) -> Values:
        """Generalised velocities, ``[..., nv]``, in metres and radians per second."""

    @property
    def xpos(self) -> Values:
        """Positions of the bodies, ``[..., body, 3]``, in metres."""

    @property
    def cfrc_ext(self) -> Values:
        """Contact forces on the bodies, ``[..., body, 6]``: torques (N m), then forces (N)."""


class Simulator(Physics, Protocol):
    """Lanes of one model. Its arrays are live, in float64, and only to be read."""

    def step(self, control: Array, substeps: int, lanes: Array | None = None) -> None:
        """Advance the lanes (indices; None for all) under ``control [all lanes, nu]``.

        Raises:
            LaneError: lanes became unstable (they are named, and must be reset), or MuJoCo failed in some.
        """

    def reset(self, lanes: Array, qpos: Array, qvel: Array) -> None:
        """Start the lanes (indices) from states ``[len(lanes), nq]`` and ``[len(lanes), nv]``."""

    def scale(self, lanes: Array, factors: Mapping[str, Array]) -> None:
        """Give the lanes (indices) their factors on the dynamics, ``[len(lanes)]`` by name; they must be reset next."""

    def close(self) -> None:
        """Release the threads."""


@dataclass(frozen=True)
class Simulation:
    """How lanes are simulated; native and threads give the same bits, warp the same tasks in other arithmetic."""

    backend: Backend = "auto"
    """warp: MuJoCo Warp, on a GPU, or slowly on the CPU, in float32 (pip install "metarl[gpu]"); native: MuJoCo's own
    pool of threads (3.17 and later, no contact forces); threads: Python threads; auto: warp with --device cuda where it
    is installed, else native where it can, else threads."""
    threads: int | None = None
    """Number of CPU threads; None for one on each CPU that this process may use."""

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            raise ValueError(f"unknown backend {self.backend!r}: expected {', '.join(get_args(Backend))}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"at least one thread is needed, not {self.threads}")


@lru_cache
def load_model(file: str) -> Any:
    """Compile one of Gymnasium's MuJoCo models; the result is shared and must not be changed."""
    # Gymnasium's files use an attribute that MuJoCo 4 calls deprecated, on standard output and in a file.
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        return mujoco.MjModel.from_xml_path(expand_model_path(file))
    finally:
        mujoco.set_mju_user_warning(None)


def simulate(model: Any, lanes: int, simulation: Simulation, contact_forces: bool = False) -> Simulator:
    """Return a simulator on the CPU. Raises ValueError for a backend that cannot do what is asked."""
    if simulation.backend == "warp":
        raise ValueError("these lanes are simulated on the CPU: expected backend auto, native or threads, not warp")
    native = importlib.util.find_spec("mujoco.batch") is not None
    if simulation.backend == "native" and (contact_forces or not native):
        reason = "computes no contact forces" if native else f"needs MuJoCo 3.17, not {mujoco.__version__}"
        raise ValueError(f"the native backend {reason}: use backend 'threads' or 'auto'")
    threads = min(lanes, simulation.threads or usable_cpus())
    if simulation.backend == "threads" or contact_forces or not native:
        return ThreadSimulator(model, lanes, threads, contact_forces)
    return NativeSimulator(model, lanes, threads)


class NativeSimulator:
    """Lanes stepped by ``mujoco.batch.Batch``."""

    def __init__(self, model: Any, lanes: int, threads: int):
        from mujoco.batch import Batch  # MuJoCo before 3.17 has none

        self._model, self._batch = model, Batch(model, lanes, threads)
        self.qpos, self.qvel, self.xpos = (self._batch.bind(name) for name in ("qpos", "qvel", "xpos"))
        self._control = self._batch.bind("ctrl")
        self._alarms = self._batch.warning[:, ALARMS, 1]

    @property
    def cfrc_ext(self) -> Array:
        """Not computed by MuJoCo's pool."""
        raise ValueError("the native backend computes no contact forces: use backend 'threads' or 'auto'")

    def step(self, control: Array, substeps: int, lanes: Array | None = None) -> None:
        """Advance the lanes; an error of MuJoCo's is its ``SimulationError``, whose ``ids`` are the lanes."""
        self._control[...] = control
        self._batch.step(lanes, substeps)
        _refuse_unstable(self._alarms)

    def reset(self, lanes: Array, qpos: Array, qvel: Array) -> None:
        """Start the lanes from these states."""
        self._batch.reset(lanes, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[lanes], self.qvel[lanes] = qpos, qvel
        self._batch.forward(lanes)

    def scale(self, lanes: Array, factors: Mapping[str, Array]) -> None:
        """Give the lanes their factors on the dynamics."""
        for field, values in scaled_fields(self._model, factors):
            self._batch.expand(field)[lanes] = values
        self._batch.set_const(lanes)

    def close(self) -> None:
        """The pool ends with the batch."""


class ThreadSimulator:
    """Lanes stepped by ``mj_step``, which releases Python's lock; one ``MjData`` per lane.

    A lane with scaled dynamics has a model of its own (0.5 MB).
    """

    def __init__(self, model: Any, lanes: int, threads: int, contact_forces: bool):
        self._nominal, self._models = model, [model] * lanes
        self._data = [mujoco.MjData(model) for _ in range(lanes)]
        self._outputs = ("qpos", "qvel", "xpos", *(["cfrc_ext"] if contact_forces else []))
        self.qpos, self.qvel = np.zeros((lanes, model.nq)), np.zeros((lanes, model.nv))
        self.xpos, self.cfrc_ext = np.zeros((lanes, model.nbody, 3)), np.zeros((lanes, model.nbody, 6))
        self._contact_forces, self._threads = contact_forces, threads
        self._alarms = np.zeros((lanes, ALARMS.stop - ALARMS.start), dtype=np.int32)
        self._pool = ThreadPoolExecutor(threads)

    def step(self, control: Array, substeps: int, lanes: Array | None = None) -> None:
        """Advance the lanes."""

        def advance(lane: int, model: Any, data: Any) -> None:
            data.ctrl[:] = control[lane]
            mujoco.mj_step(model, data, substeps)
            if self._contact_forces:
                mujoco.mj_rnePostConstraint(model, data)

        self._each(np.arange(len(self._data)) if lanes is None else lanes, advance)
        _refuse_unstable(self._alarms)

    def reset(self, lanes: Array, qpos: Array, qvel: Array) -> None:
        """Start the lanes from these states."""
        self.qpos[lanes], self.qvel[lanes] = qpos, qvel

        def start(lane: int, model: Any, data: Any) -> None:
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = self.qpos[lane], self.qvel[lane]
            mujoco.mj_forward(model, data)

        self._each(lanes, start)

    def scale(self, lanes: Array, factors: Mapping[str, Array]) -> None:
        """Give the lanes their factors on the dynamics."""
        for row, lane in enumerate(lanes.tolist()):
            if self._models[lane] is self._nominal:
                self._models[lane] = copy.copy(self._nominal)
            own = {name: values[row] for name, values in factors.items()}
            set_scaled_fields(self._models[lane], self._data[lane], self._nominal, own)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _each(self, lanes: Array, act: Callable[[int, Any, Any], None]) -> None:
        """Run ``act(lane, model, data)`` for every lane on the threads, then read the lane's outputs."""

        def run(part: Array) -> None:
            for lane in part.tolist():
                data = self._data[lane]
                try:
                    act(lane, self._models[lane], data)
                except mujoco.FatalError as error:
                    raise LaneError(f"MuJoCo failed in lane {lane}: {error}", [lane]) from error
                for name in self._outputs:
                    getattr(self, name)[lane] = getattr(data, name)
                self._alarms[lane] = data.warning.number[ALARMS]

        list(self._pool.map(run, np.array_split(lanes, self._threads)))


def _refuse_unstable(alarms: Array) -> None:
    """Raise LaneError where MuJoCo found a state that is not finite, or huge, and reset the lane by itself."""
    if alarms.any():
        lanes = np.flatnonzero(alarms.any(axis=1)).tolist()
        raise LaneError(f"the simulation became unstable in lanes {lanes}: reset them, with milder dynamics", lanes)
