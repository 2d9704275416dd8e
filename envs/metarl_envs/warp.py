"""Lanes of MuJoCo robots stepped by MuJoCo Warp: on a GPU, or slowly on the CPU; torch tensors in and out.

Nothing leaves the device while episodes run, and the processor never waits for it: random numbers, masks, rewards and
the signs of trouble are tensors.
"""

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from metarl.control import LaneError
from metarl_envs.dynamics import SCALED_FIELDS
from metarl_envs.robots import Motion, RobotFamily, check_parameters, describe_lanes, initial_parameters
from metarl_envs.simulator import load_model
from metarl_envs.warp_simulator import WarpSimulator, where


class WarpVectorEnv(VectorEnv[Tensor, Tensor, Tensor]):
    """Lanes of a robot on one device, without automatic resets: a finished lane idles until it is reset.

    Arrays are torch tensors, in torch's default dtype. Tasks, rewards and terminations are those of RobotVectorEnv;
    starting states are drawn by torch on the device, so seeds give other states. Asking whether a lane broke would wait
    for the device at every step: a lane that became unstable, was given an action that is not finite, or had more
    contacts than there was memory for, tells nan as its observation and reward and idles until it is reset; ``check``
    says why.

    Args:
        family: The robot, its reward and its task parameters.
        num_envs: Number of lanes.
        horizon: Steps after which a lane is truncated; None for never.
        device: Where the lanes live.
        parameters: One task (the family's default where not given) and factors on the dynamics ("mass", "friction",
            "damping"; 1 where not given), in force in every lane until ``reset`` is given others.

    Raises:
        ValueError: no lanes, no steps, or parameters that are unknown, of the wrong shape or not finite.
    """

    def __init__(
        self,
        family: RobotFamily,
        num_envs: int,
        horizon: int | None = None,
        device: torch.device | str = "cpu",
        parameters: Mapping[str, Any] | None = None,
    ):
        describe_lanes(self, family, num_envs, horizon)
        self.horizon, self.parameter_space = horizon, family.parameter_space
        self.device = torch.empty(0, device=device).device  # "cuda" has no number, which Warp wants
        self._family, self._robot = family, family.robot
        self._model = load_model(self._robot.model_file)
        self.dt = self._model.opt.timestep * self._robot.substeps
        initial = initial_parameters(family, parameters)
        self._parameters = {name: self._tensor(value).expand(num_envs, *value.shape) for name, value in initial.items()}
        self._scaled = any(initial[name] != 1 for name in SCALED_FIELDS)
        self._limits = [self._tensor(limit) for limit in self._model.actuator_ctrlrange.T]
        self._designed = self._tensor(self._model.qpos0)
        self.simulator = WarpSimulator(
            self._model, num_envs, self._robot.substeps, self.device, self._robot.contact_forces
        )
        self._generator = Generator(self.device)
        self._generator.seed()
        self._steps = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        flags = torch.zeros(4, num_envs, dtype=torch.bool, device=self.device)
        self._terminated, self._truncated, self._unstable, self._overflowed = flags
        self._started = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Restart the lanes of ``options["reset_mask"]`` (all without it, and at first); the others go on undisturbed.

        The other options are task parameters and factors on the dynamics, one row per lane, of which the restarted
        lanes take theirs. Raises ValueError for options that are unknown, of the wrong shape or not finite.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._generator.manual_seed(seed)
        given = dict(options or {})
        lanes = self._mask(given.pop("reset_mask", None))
        for name, values in check_parameters(self._family, given, (self.num_envs,)).items():
            self._parameters[name] = where(lanes, self._tensor(values), self._parameters[name])
            self._scaled |= name in SCALED_FIELDS
        self._restart(lanes if self._started else torch.ones_like(lanes))
        return self._observations(), {}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Act for one control step in every lane that has not finished. An action that is not finite breaks its lane.

        Raises:
            ValueError: the actions have the wrong shape.
            ResetNeeded: before the first reset.
        """
        if not self._started:
            raise ResetNeeded("call reset before step")
        control = self._control(actions)
        running = ~(self._terminated | self._truncated | self._broken)
        before = self._robot.position(self.simulator).clone()
        self.simulator.step(control, running)
        self._unstable = self._unstable | self.simulator.unstable
        self._overflowed = self._overflowed | (running & self.simulator.overflowed)
        position = self._robot.position(self.simulator).clone()
        motion = Motion(position, (position - before) / self.dt, control)
        rewards = torch.where(running, self._family.reward(motion, self._parameters), 0.0)
        self._steps = self._steps + running
        self._terminated = self._terminated | (running & ~self._robot.healthy(self.simulator))
        if self.horizon is not None:
            self._truncated = self._truncated | (self._steps >= self.horizon)
        told = rewards.to(torch.get_default_dtype()).masked_fill(self._broken, torch.nan)
        return self._observations(), told, self._terminated.clone(), self._truncated.clone(), {}

    def check(self) -> None:
        """Wait for the device, and raise LaneError where lanes broke since they were reset."""
        for lanes, what in (
            (self._unstable, "the simulation became unstable, or an action was not finite, in lanes {}: reset them"),
            (self._overflowed, "there were more contacts than memory for them in lanes {}: simulate them on the CPU"),
        ):
            if broken := lanes.nonzero().flatten().tolist():
                raise LaneError(what.format(broken), broken)

    @property
    def _broken(self) -> Tensor:
        return torch.logical_or(self._unstable, self._overflowed)

    def _restart(self, lanes: Tensor) -> None:
        model, noise, generator = self._model, self._robot.reset_noise, self._generator
        uniform = torch.rand(self.num_envs, model.nq, generator=generator, device=self.device)
        qpos = self._designed + noise * (2 * uniform - 1)
        qvel = noise * torch.randn(self.num_envs, model.nv, generator=generator, device=self.device)
        factors = {name: self._parameters[name] for name in SCALED_FIELDS} if self._scaled else None
        self.simulator.reset(lanes, qpos, qvel, factors)
        self._scaled, self._started = False, True
        self._steps = self._steps.masked_fill(lanes, 0)
        self._terminated, self._truncated = self._terminated & ~lanes, self._truncated & ~lanes
        self._unstable, self._overflowed = self._unstable & ~lanes, self._overflowed & ~lanes

    def _observations(self) -> Tensor:
        seen: Tensor = self._robot.observe(self.simulator)
        return seen.to(torch.get_default_dtype()).masked_fill(self._broken.unsqueeze(1), torch.nan)

    def _control(self, actions: Any) -> Tensor:
        """Return the actuators' inputs. Raises ValueError for a wrong shape."""
        values = self._tensor(actions)
        if values.shape != (self.num_envs, self._model.nu):
            expected = (self.num_envs, self._model.nu)
            raise ValueError(f"actions have shape {tuple(values.shape)} where {expected} was expected")
        clipped = (values / self._robot.action_scale).clamp(*self._limits)
        return torch.where(values.isfinite(), clipped, torch.nan)

    def _mask(self, mask: Any) -> Tensor:
        """Return which lanes to restart. Raises ValueError for what is no mask."""
        if mask is None:
            return torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        tensor = torch.as_tensor(mask)
        if tensor.shape != (self.num_envs,) or tensor.dtype != torch.bool:
            raise ValueError(f"reset_mask must be bool [{self.num_envs}], not {tensor.dtype} {list(tensor.shape)}")
        return tensor.to(self.device, non_blocking=True)

    def _tensor(self, values: Any) -> Tensor:
        """Return values on the device, in torch's default dtype, without waiting for it."""
        return torch.as_tensor(values).to(self.device, torch.get_default_dtype(), non_blocking=True)
