"""Lanes of one MuJoCo model stepped by MuJoCo Warp, on a GPU or the CPU, in float32; masks instead of indices.

Nothing here waits for the device.
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

FOLLOWING_FIELDS = ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0")
"""The constants of MuJoCo's model that follow from its scaled fields."""

# Warp tells of every kernel that it loads, on standard output, where commands print their tables.
warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)


class WarpSimulator:
    """Lanes of one model. Its tensors share memory with Warp's arrays and are only to be read.

    A control step, all its substeps, is one graph, captured at the first step; ``captured`` makes a graph of more.

    Args:
        model: MuJoCo's model.
        lanes: Number of lanes.
        substeps: Simulation steps in one control step.
        device: Where the lanes live.
        contact_forces: Whether ``cfrc_ext`` is computed.
    """

    def __init__(self, model: Any, lanes: int, substeps: int, device: torch.device, contact_forces: bool):
        self._model, self._lanes, self._substeps, self._device = model, lanes, substeps, device
        self._contact_forces, self._launch, self._capturing = contact_forces, self._first_step, False
        warp.init()
        self._warp_device = warp.device_from_torch(device)
        # A geom touches the floor with both ends at most; a contact is as many constraints as its friction has edges.
        contacts = 2 * model.ngeom
        constraints = contacts * max(1, 2 * (int(model.geom_condim.max()) - 1)) + model.njnt
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
        """Lanes whose contacts did not all fit in the memory set aside for them, ``[lane]``."""
        overflowed: Tensor = self._overflow != 0
        return overflowed

    def step(self, control: Tensor, lanes: Tensor) -> None:
        """Advance the lanes of a mask ``[lane]`` under ``control [lane, nu]``; the others keep their state.

        A lane that becomes unstable, or is given inputs that are not finite, is told of by ``unstable [lane]``, and
        keeps its state, too.
        """
        before = [values.clone() for values in self._state]
        self._control.copy_(control)
        with self._in_order():
            self._launch()
        told = (self.qpos, self.qvel, self._acceleration, control)  # MuJoCo Warp clips an input of nan to a number
        stable = torch.stack([_reasonable(values) for values in told]).all(0)
        self.unstable.copy_(lanes & ~stable)
        for values, kept in zip(self._state, before, strict=True):
            values.copy_(where(lanes & stable, values, kept))

    def reset(self, lanes: Tensor, qpos: Tensor, qvel: Tensor, factors: Mapping[str, Tensor] | None = None) -> None:
        """Start the lanes of a mask ``[lane]`` from states ``[lane, nq]`` and ``[lane, nv]``, the others' being unused.

        ``factors`` on the dynamics, ``[lane]`` by name, are those of all lanes; None for as before.
        """
        # As after MuJoCo's own step, positions of the bodies belong to the last substep's start: they must be kept.
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
        """The arrays go with the simulator."""

    @property
    def changing(self) -> list[Tensor]:
        """All that a step changes and the next one reads."""
        return [*self._state, self._overflow, self.unstable]

    @property
    def can_be_captured(self) -> bool:
        """Whether ``captured`` may be called: on a GPU, after a step, which compiles the kernels."""
        return bool(self._warp_device.is_cuda) and self._launch != self._first_step

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture work of torch and of this simulator as one CUDA graph, and return what replays it.

        What the work reads and writes must stay where it is.

        Raises:
            RuntimeError: it cannot be captured.
        """
        stream, graph = torch.cuda.Stream(self._device), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        launch, self._launch, self._capturing = self._launch, self._advance, True
        try:
            with warp.ScopedStream(warp.stream_from_torch(stream)), torch.cuda.graph(graph, stream=stream):
                warp.capture_begin(self._warp_device, force_module_load=False, external=True)
                try:
                    work()
                finally:
                    memory = warp.capture_end(self._warp_device)
        finally:
            self._launch, self._capturing = launch, False

        def replay() -> None:
            graph.replay()
            _ = memory  # that Warp took for the graph, and would free

        return replay

    def _scale(self, factors: Mapping[str, Tensor]) -> None:
        scaled = [field for fields in SCALED_FIELDS.values() for field in fields]
        if getattr(self._compiled, scaled[0]).shape[0] != self._lanes:
            self._compiled = self._compile(dict.fromkeys((*scaled, *FOLLOWING_FIELDS), self._lanes))
            self._launch = self._first_step  # the graph holds the addresses of the old arrays
        for factor, fields in SCALED_FIELDS.items():
            for field in fields:
                values = warp.to_torch(getattr(self._compiled, field))
                nominal = torch.from_numpy(getattr(self._model, field)).to(values, non_blocking=True)
                values.copy_(nominal * factors[factor].reshape(-1, *[1] * nominal.ndim))
        mujoco_warp.set_const(self._compiled, self._data)

    def _compile(self, batch_sizes: dict[str, int] | None = None) -> Any:
        compiled = mujoco_warp.put_model(self._model, batch_sizes)
        compiled.opt.warn_overflow = 0  # printed by the device, once for each lane and step; ``overflowed`` tells it
        return compiled

    def _advance(self) -> None:
        for _ in range(self._substeps):
            mujoco_warp.step(self._compiled, self._data)
        if self._contact_forces:
            mujoco_warp.rne_postconstraint(self._compiled, self._data)

    def _first_step(self) -> None:
        """Step once, which compiles the kernels, and capture the step for those that follow."""
        self._advance()
        self._launch = self._captured()

    def _captured(self) -> Callable[[], None]:
        # CUDA cannot capture on its default stream, which is where torch works unless told otherwise.
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
        """Run Warp's work on torch's current stream, so that each sees what the other wrote."""
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
    """Return where MuJoCo would not warn, ``[lane]``: of numbers that are huge, or none."""
    return (values.abs() < float(mujoco.mjMAXVAL)).all(1)


def where(lanes: Tensor, chosen: Tensor, otherwise: Tensor) -> Tensor:
    """Choose by lane: a mask ``[lane]``, and values ``[lane, ...]``."""
    return torch.where(lanes.reshape(-1, *[1] * (otherwise.ndim - 1)), chosen, otherwise)
