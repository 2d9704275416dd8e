"""Lanes of one MuJoCo model on CPU threads: MuJoCo's own thread pool, or Python threads for older MuJoCo.

Both agree bit for bit with a single ``MjData`` stepped by itself, whatever the number of threads.
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

from metarl.environments import LaneError, quiet_mujoco, usable_cpus
from metarl_envs.mujoco.dynamics import Array, Values, scaled_fields, set_scaled_fields

Backend = Literal["auto", "native", "threads", "warp"]
ALARMS = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)
"""MuJoCo's warnings of an unstable simulation, which it then resets by itself."""


class Physics(Protocol):
    """The state that observations and rewards may read: a simulator (``...`` are lanes) or an ``MjData`` (no lanes).

    Arrays are NumPy arrays in float64, or with MuJoCo Warp torch tensors in float32. As after ``mj_step``, body
    positions and contact forces are those at the start of the last substep, not at its end.
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
    """Lanes of one model, selected by masks ``[lane]``. Its arrays are live views; do not write to them.

    Arguments are arrays of the simulator's own kind: NumPy in float64, or with MuJoCo Warp torch tensors on its device.
    """

    def step(self, control: Values, lanes: Values) -> None:
        """Advance the lanes of a mask by one control step with ``control [lane, nu]``; the others keep their state.

        Raises:
            LaneError: lanes became unstable (they are named, and must be reset), or MuJoCo failed in some. MuJoCo Warp
                does not raise, because that would wait for the device: see ``WarpSimulator.unstable``.
        """

    def reset(self, lanes: Values, qpos: Values, qvel: Values, factors: Mapping[str, Values] | None = None) -> None:
        """Reset the lanes of a mask to states ``[lane, nq]`` and ``[lane, nv]``; rows of other lanes are ignored.

        ``factors`` on the dynamics, ``[lane]`` by name, are those of all lanes. None keeps the current factors.
        """

    def close(self) -> None:
        """Release threads and memory that are not freed with the simulator."""


@dataclass(frozen=True)
class Simulation:
    """How lanes are simulated. native and threads agree bit for bit; warp has the same tasks in other arithmetic."""

    backend: Backend = "auto"
    """warp: MuJoCo Warp in float32, for a GPU, slow on a CPU (pip install "metarl-toolkit[gpu]"). native: MuJoCo's own
    thread pool (MuJoCo 3.17 and later, no contact forces). threads: Python threads. auto: warp with --device cuda if it
    is installed, else native if possible, else threads."""
    threads: int | None = None
    """Number of CPU threads; None for one per CPU that this process may use."""
    solver_iterations: int = 20
    """Most iterations of the solver for contacts in a simulation step with warp, where all lanes wait for the slowest.
    The robots here need at most 6. On the CPU, the model's own number holds."""
    contacts: int | None = None
    """Number of contacts that a lane has memory for with warp; a lane with more of them breaks. None for two for each
    geom, which is enough for capsules and spheres on a floor."""

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            raise ValueError(f"unknown backend {self.backend!r}: expected {', '.join(get_args(Backend))}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"at least one thread is needed, not {self.threads}")
        if self.solver_iterations < 1:
            raise ValueError(f"solver_iterations must be at least 1, not {self.solver_iterations}")
        if self.contacts is not None and self.contacts < 1:
            raise ValueError(f"contacts must be at least 1, not {self.contacts}")


@lru_cache
def load_model(file: str) -> Any:
    """Compile an MJCF file, or one of Gymnasium's models. The result is shared; do not change it.

    Raises ValueError for a file that MuJoCo cannot compile.
    """
    with quiet_mujoco():  # MuJoCo 4 finds Gymnasium's files old
        try:
            return mujoco.MjModel.from_xml_path(expand_model_path(file))
        except ValueError as error:
            raise ValueError(f"MuJoCo cannot compile {file}: {'; '.join(str(error).splitlines())}") from None


def simulate(model: Any, lanes: int, substeps: int, simulation: Simulation, contact_forces: bool = False) -> Simulator:
    """Return a simulator on the CPU, with ``substeps`` simulation steps per control step.

    Raises ValueError for a backend that does not support the options.
    """
    if simulation.backend == "warp":
        raise ValueError("these lanes are simulated on the CPU: expected backend auto, native or threads, not warp")
    native = importlib.util.find_spec("mujoco.batch") is not None
    if simulation.backend == "native" and (contact_forces or not native):
        reason = "computes no contact forces" if native else f"needs MuJoCo 3.17, not {mujoco.__version__}"
        raise ValueError(f"the native backend {reason}: use backend 'threads' or 'auto'")
    threads = min(lanes, simulation.threads or usable_cpus())
    if simulation.backend == "threads" or contact_forces or not native:
        return ThreadSimulator(model, lanes, substeps, threads, contact_forces)
    return NativeSimulator(model, lanes, substeps, threads)


class NativeSimulator:
    """Lanes stepped by MuJoCo's thread pool, ``mujoco.batch.Batch``."""

    def __init__(self, model: Any, lanes: int, substeps: int, threads: int):
        from mujoco.batch import Batch  # MuJoCo before 3.17 has none

        self._model, self._substeps, self._batch = model, substeps, Batch(model, lanes, threads)
        self.qpos, self.qvel, self.xpos = (self._batch.bind(name) for name in ("qpos", "qvel", "xpos"))
        self._control = self._batch.bind("ctrl")
        self._alarms = self._batch.warning[:, ALARMS, 1]

    @property
    def cfrc_ext(self) -> Array:
        """Not available: MuJoCo's pool does not compute contact forces."""
        raise ValueError("the native backend computes no contact forces: use backend 'threads' or 'auto'")

    def step(self, control: Array, lanes: Array) -> None:
        """Advance the lanes. MuJoCo's own errors are its ``SimulationError``, whose ``ids`` are the lanes."""
        self._control[...] = control
        self._batch.step(None if lanes.all() else np.flatnonzero(lanes), self._substeps)
        _refuse_unstable(self._alarms)

    def reset(self, lanes: Array, qpos: Array, qvel: Array, factors: Mapping[str, Array] | None = None) -> None:
        """Reset the lanes to these states, with these factors on their dynamics."""
        ids = np.flatnonzero(lanes)
        if factors is not None:
            for field, values in scaled_fields(self._model, {name: factor[ids] for name, factor in factors.items()}):
                self._batch.expand(field)[ids] = values
            self._batch.set_const(ids)
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[ids], self.qvel[ids] = qpos[ids], qvel[ids]
        self._batch.forward(ids)

    def close(self) -> None:
        """Do nothing: the pool ends with the batch."""


class ThreadSimulator:
    """Lanes stepped by ``mj_step`` on Python threads, with one ``MjData`` per lane.

    ``mj_step`` releases the GIL, so threads run in parallel. A lane with scaled dynamics has its own model (0.5 MB).
    """

    def __init__(self, model: Any, lanes: int, substeps: int, threads: int, contact_forces: bool):
        self._nominal, self._models = model, [model] * lanes
        self._data = [mujoco.MjData(model) for _ in range(lanes)]
        self.qpos, self.qvel = np.zeros((lanes, model.nq)), np.zeros((lanes, model.nv))
        self.xpos, self.cfrc_ext = np.zeros((lanes, model.nbody, 3)), np.zeros((lanes, model.nbody, 6))
        self._substeps, self._threads, self._contact_forces = substeps, threads, contact_forces
        self._alarms = np.zeros((lanes, ALARMS.stop - ALARMS.start), dtype=np.int32)
        self._pool = ThreadPoolExecutor(threads)

    def step(self, control: Array, lanes: Array) -> None:
        """Advance the lanes."""

        def advance(lane: int, model: Any, data: Any) -> None:
            data.ctrl[:] = control[lane]
            mujoco.mj_step(model, data, self._substeps)
            if self._contact_forces:
                mujoco.mj_rnePostConstraint(model, data)

        self._each(lanes, advance)
        _refuse_unstable(self._alarms)

    def reset(self, lanes: Array, qpos: Array, qvel: Array, factors: Mapping[str, Array] | None = None) -> None:
        """Reset the lanes to these states, with these factors on their dynamics."""
        if factors is not None:
            for lane in np.flatnonzero(lanes).tolist():
                self._scale(lane, {name: values[lane] for name, values in factors.items()})

        def start(lane: int, model: Any, data: Any) -> None:
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = qpos[lane], qvel[lane]
            mujoco.mj_forward(model, data)

        self._each(lanes, start)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _scale(self, lane: int, factors: Mapping[str, Array]) -> None:
        """Set one lane's factors. The lane must be reset next."""
        if self._models[lane] is self._nominal:
            self._models[lane] = copy.copy(self._nominal)
        set_scaled_fields(self._models[lane], self._data[lane], self._nominal, factors)

    def _each(self, lanes: Array, act: Callable[[int, Any, Any], None]) -> None:
        """Run ``act(lane, model, data)`` on the threads for every lane of a mask, then copy the lane's outputs."""

        def run(part: Array) -> None:
            for lane in part.tolist():
                data = self._data[lane]
                try:
                    act(lane, self._models[lane], data)
                except mujoco.FatalError as error:
                    raise LaneError(f"MuJoCo failed in lane {lane}: {error}", [lane]) from error
                self.qpos[lane], self.qvel[lane], self.xpos[lane] = data.qpos, data.qvel, data.xpos
                if self._contact_forces:
                    self.cfrc_ext[lane] = data.cfrc_ext
                self._alarms[lane] = data.warning.number[ALARMS]

        list(self._pool.map(run, np.array_split(np.flatnonzero(lanes), self._threads)))


def _refuse_unstable(alarms: Array) -> None:
    """Raise LaneError for lanes that MuJoCo reset by itself, because their state was not finite or was huge."""
    if alarms.any():
        lanes = np.flatnonzero(alarms.any(axis=1)).tolist()
        raise LaneError(f"the simulation became unstable in lanes {lanes}: reset them, with milder dynamics", lanes)
