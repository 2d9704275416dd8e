"""Lanes of one MuJoCo model on MuJoCo Warp, on a GPU or the CPU, in float32.

Nothing here waits for the device. So lanes are selected by masks, not by indices.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import mujoco
import mujoco_warp
import torch
import warp
from torch import Tensor

from metarl_envs.mujoco.dynamics import SCALED_FIELDS
from metarl_envs.mujoco.simulator import Simulation

FOLLOWING_FIELDS = ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0")
"""The constants of MuJoCo's model that are derived from its scaled fields."""

# As in MuJoCo, a solver that has reached its most iterations goes on with what it has. Warp tells it as an overflow.
LIMITS = int(mujoco_warp.OverflowType.ITERATIONS | mujoco_warp.OverflowType.LS_ITERATIONS)
WARP = Simulation(backend="warp")
# Warp prefers PTX, which the driver compiles anew on each machine, where the driver is newer than Warp's own CUDA.
warp.config.cuda_output = warp.config.cuda_output or "cubin"
# Warp logs every kernel that it loads to standard output, where commands print their tables.
warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)


class WarpSimulator:
    """Lanes of one model. Its tensors share memory with Warp's arrays; do not write to them.

    A control step with all its substeps is one graph, captured at the first step. ``captured`` makes larger graphs.

    Args:
        model: MuJoCo's model.
        lanes: Number of lanes.
        substeps: Simulation steps per control step.
        device: The device of the lanes.
        contact_forces: Whether ``cfrc_ext`` is computed.
        simulation: The largest numbers of contacts and of the solver's iterations.

    Raises ValueError for a model that MuJoCo Warp cannot simulate.
    """

    def __init__(
        self,
        model: Any,
        lanes: int,
        substeps: int,
        device: torch.device,
        contact_forces: bool,
        simulation: Simulation = WARP,
    ):
        self._model, self._lanes, self._substeps, self._device = model, lanes, substeps, device
        self._contact_forces, self._launch, self._capturing = contact_forces, self._first_step, False
        warp.init()
        self._warp_device = warp.device_from_torch(device)
        self._solver_iterations = simulation.solver_iterations
        # Memory for contacts: a capsule touches the floor with two ends. A contact of dimension d > 1 has 2 (d - 1)
        # constraints, one per edge of its friction pyramid; each limit of a joint or a tendon has one more, each degree
        # of freedom with friction one, and an equality at most 6.
        contacts = simulation.contacts or 2 * model.ngeom
        constraints = contacts * max(1, 2 * (int(model.geom_condim.max(initial=1)) - 1)) + model.njnt
        rubbing = int((model.dof_frictionloss > 0).sum())
        constraints += 6 * model.neq + rubbing + 2 * model.ntendon
        with self._in_order():
            self._compiled = self._compile()
            self._data = mujoco_warp.make_data(model, nworld=lanes, nconmax=contacts, njmax=constraints)
        data, shared = self._data, warp.to_torch
        self.qpos, self.qvel, self.xpos, self.cfrc_ext = map(shared, (data.qpos, data.qvel, data.xpos, data.cfrc_ext))
        self._acceleration, self._warm_start = shared(data.qacc), shared(data.qacc_warmstart)
        self._control, self._overflow = shared(data.ctrl), shared(data.overflow)
        self._state = (self.qpos, self.qvel, self.xpos, self.cfrc_ext, self._warm_start)
        self.unstable = torch.zeros(lanes, dtype=torch.bool, device=device)

    @property
    def overflowed(self) -> Tensor:
        """Lanes that had more contacts than there is memory for, ``[lane]``."""
        overflowed: Tensor = (self._overflow & ~LIMITS) != 0
        return overflowed

    def step(self, control: Tensor, lanes: Tensor) -> None:
        """Advance the lanes of a mask ``[lane]`` with ``control [lane, nu]``; the others keep their state.

        A lane that becomes unstable, or gets an input that is not finite, is marked in ``unstable [lane]``, and also
        keeps its state.
        """
        before = [values.clone() for values in self._state]
        self._control.copy_(control)
        with self._in_order():
            self._launch()
        # The control is checked as well, because MuJoCo Warp clips an input of nan to a number.
        checked = (self.qpos, self.qvel, self._acceleration, control)
        stable = torch.stack([_reasonable(values) for values in checked]).all(0)
        self.unstable.copy_(lanes & ~stable)
        for values, kept in zip(self._state, before, strict=True):
            values.copy_(where(lanes & stable, values, kept))

    def reset(self, lanes: Tensor, qpos: Tensor, qvel: Tensor, factors: Mapping[str, Tensor] | None = None) -> None:
        """Reset the lanes of a mask ``[lane]`` to states ``[lane, nq]`` and ``[lane, nv]``; other rows are ignored.

        ``factors`` on the dynamics, ``[lane]`` by name, are those of all lanes. None keeps the current factors.
        """
        # After a step, body positions are those at the start of the last substep. ``kinematics`` below would replace
        # them in all lanes, so those of the other lanes are kept and restored.
        positions = self.xpos.clone()
        for values, start in ((self.qpos, qpos), (self.qvel, qvel)):
            values.copy_(where(lanes, start, values))
        for values in (self._warm_start, self.cfrc_ext, self._overflow):
            values.copy_(where(lanes, torch.zeros_like(values), values))
        with self._in_order():
            if factors is not None:
                self._scale(factors)
            mujoco_warp.kinematics(self._compiled, self._data)
        self.xpos.copy_(where(lanes, self.xpos, positions))

    def close(self) -> None:
        """Do nothing: the arrays are freed with the simulator."""

    @property
    def changing(self) -> list[Tensor]:
        """All tensors that a step changes and the next one reads."""
        return [*self._state, self._overflow, self.unstable]

    @property
    def can_be_captured(self) -> bool:
        """Whether ``captured`` may be called: on a GPU, after the first step, which compiles the kernels."""
        return bool(self._warp_device.is_cuda) and self._launch != self._first_step

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture work of torch and of this simulator as one CUDA graph, and return a function that replays it.

        All tensors that the work reads or writes must keep their memory.

        Raises:
            RuntimeError: the work cannot be captured.
        """
        stream, graph = torch.cuda.Stream(self._device), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        launch, self._launch, self._capturing = self._launch, self._advance, True
        try:
            # Warp allocates from its own pool meanwhile, which the strictest mode takes for an error.
            recording = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
            with warp.ScopedStream(warp.stream_from_torch(stream)), recording:
                warp.capture_begin(self._warp_device, force_module_load=False, external=True)
                try:
                    work()
                finally:
                    memory = warp.capture_end(self._warp_device)
        finally:
            self._launch, self._capturing = launch, False

        def replay() -> None:
            graph.replay()
            _ = memory  # keep Warp's memory for the graph alive

        return replay

    def _scale(self, factors: Mapping[str, Tensor]) -> None:
        scaled = [field for fields in SCALED_FIELDS.values() for field in fields]
        if getattr(self._compiled, scaled[0]).shape[0] != self._lanes:
            self._compiled = self._compile(dict.fromkeys((*scaled, *FOLLOWING_FIELDS), self._lanes))
            self._launch = self._first_step  # the old graph uses the addresses of the old arrays
        for factor, fields in SCALED_FIELDS.items():
            for field in fields:
                values = warp.to_torch(getattr(self._compiled, field))
                nominal = torch.from_numpy(getattr(self._model, field)).to(values, non_blocking=True)
                values.copy_(nominal * factors[factor].reshape(-1, *[1] * nominal.ndim))
        mujoco_warp.set_const(self._compiled, self._data)

    def _compile(self, batch_sizes: dict[str, int] | None = None) -> Any:
        try:
            compiled = mujoco_warp.put_model(self._model, batch_sizes)
        except NotImplementedError as error:
            raise ValueError(f"MuJoCo Warp cannot simulate it: {error}; use the backend native or threads") from error
        compiled.opt.iterations = min(compiled.opt.iterations, self._solver_iterations)
        compiled.opt.warn_overflow = 0  # the device would print it for each lane and step; see ``overflowed``
        return compiled

    def _advance(self) -> None:
        for _ in range(self._substeps):
            mujoco_warp.step(self._compiled, self._data)
        if self._contact_forces:
            mujoco_warp.rne_postconstraint(self._compiled, self._data)

    def _first_step(self) -> None:
        """Step once, which compiles the kernels, and capture a graph for the following steps."""
        self._advance()
        self._launch = self._captured()

    def _captured(self) -> Callable[[], None]:
        # CUDA cannot capture on its default stream, which torch uses by default.
        stream = warp.Stream(self._warp_device) if self._warp_device.is_cuda else None
        try:
            with warp.ScopedStream(stream), warp.ScopedCapture(self._warp_device, stream) as capture:
                self._advance()
        except RuntimeError as error:
            warnings.warn(f"no graph of a control step could be captured, so steps are slow: {error}", stacklevel=2)
            return self._advance
        return partial(self._replay, capture.graph)

    def _replay(self, graph: Any) -> None:
        warp.capture_launch(graph, self._warp_device.stream if self._warp_device.is_cuda else None)

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """Run Warp's work on torch's current stream, so that the work of both runs in order."""
        with ExitStack() as stack:
            if self._capturing:  # on one stream already
                yield
                return
            stack.enter_context(warp.ScopedDevice(self._warp_device))
            if self._warp_device.is_cuda:
                stream = torch.cuda.current_stream(self._device)
                stack.enter_context(warp.ScopedStream(warp.stream_from_torch(stream)))
            yield


def _reasonable(values: Tensor) -> Tensor:
    """Return lanes whose values MuJoCo would accept, ``[lane]``: finite and not huge."""
    return (values.abs() < float(mujoco.mjMAXVAL)).all(1)


def where(lanes: Tensor, chosen: Tensor, otherwise: Tensor) -> Tensor:
    """Select ``chosen`` in the lanes of a mask ``[lane]``, else ``otherwise``; values are ``[lane, ...]``."""
    return torch.where(lanes.reshape(-1, *[1] * (otherwise.ndim - 1)), chosen, otherwise)
