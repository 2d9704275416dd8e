"""Lanes of MuJoCo robots on MuJoCo Warp, for a GPU (slow on a CPU), with torch tensors in and out.

No data leave the device while episodes run, and the CPU never waits for it: random numbers, masks, rewards and error
flags are all tensors.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium.error import ResetNeeded
from torch import Generator, Tensor

from metarl.environments import Book, LaneError, opened, plain_seed
from metarl.seeding import Places, normal, spawn, uniform
from metarl.speed import made_or_warned, require_same
from metarl_envs.mujoco.dynamics import SCALED_FIELDS
from metarl_envs.mujoco.lanes import RobotLanes
from metarl_envs.mujoco.robots import Motion, RobotFamily, check_family, check_parameters, initial_parameters, repeats
from metarl_envs.mujoco.warp_simulator import WarpSimulator, where

FAR = 0.01
"""Largest allowed difference between the results of a step's graph and of the step itself, relative to their norm.
They differ because a GPU processes contacts in random order, which changes the rounding of sums."""


class WarpVectorEnv(RobotLanes):
    """Lanes of a robot on one device, without automatic resets: a finished lane idles until it is reset.

    Arrays are torch tensors, in torch's default dtype. Tasks, rewards and terminations are those of RobotVectorEnv, but
    initial states are drawn by torch on the device, so a seed gives other states. A check for failures at every step
    would wait for the device. Instead, a lane that became unstable, got an action that is not finite, or had too many
    contacts for its memory returns nan as observation and reward, and idles until it is reset; ``check`` gives the
    reason. On a GPU, a whole step including the simulation is one CUDA graph, captured at the second step.

    Args:
        family: The robot, its reward and its task parameters.
        num_envs: Number of lanes.
        horizon: Steps after which a lane is truncated; None for no limit.
        device: The device of the lanes.
        parameters: The task (by default the family's) and factors on the dynamics ("mass", "friction", "damping"; by
            default 1) of every lane, until ``reset`` sets others.

    Raises:
        ValueError: no lanes, no steps, or parameters that are unknown, of the wrong shape or not finite.
    """

    simulator: WarpSimulator
    places: Places | None = None
    """Which lanes of a larger batch these are, see ``metarl.control.Placed``."""

    def __init__(
        self,
        family: RobotFamily,
        num_envs: int,
        horizon: int | None = None,
        device: torch.device | str = "cpu",
        parameters: Mapping[str, Any] | None = None,
    ):
        super().__init__(family, num_envs, horizon)
        self.device = torch.empty(0, device=device).device  # adds the index that Warp needs: "cuda" becomes "cuda:0"
        check_family(family, self._tensor)
        initial = initial_parameters(family, parameters)
        self._parameters = {
            name: self._tensor(value).repeat(num_envs, *[1] * value.ndim) for name, value in initial.items()
        }
        self._scaled = any(initial[name] != 1 for name in SCALED_FIELDS)
        self._limits = [self._tensor(limit) for limit in self._model.actuator_ctrlrange.T]
        self._designed = self._tensor(self._model.qpos0)
        self.simulator = WarpSimulator(
            self._model, num_envs, self._robot.substeps, self.device, self._robot.contact_forces, family.simulation
        )
        self._generator = Generator(self.device)
        self._generator.seed()
        self._started = False
        self._book = opened(torch.zeros(num_envs, dtype=torch.int64, device=self.device))
        self._trouble = torch.zeros(2, num_envs, dtype=torch.bool, device=self.device)
        self._unstable, self._overflowed = self._trouble
        # A graph of a step uses fixed addresses, so everything that steps read and write is updated in place.
        self._given = self._tensor(torch.zeros(num_envs, self._model.nu))
        self._rewards, self._seen = self._given.new_zeros(num_envs), torch.zeros_like(self._observations())
        self._graph: Callable[[], None] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Reset the lanes in the mask ``options["reset_mask"]``, by default and at first all; the others continue.

        The other options are task parameters and factors on the dynamics, one row per lane; only rows of reset lanes
        take effect. Raises ValueError for options that are unknown, of the wrong shape or not finite.
        """
        seed = plain_seed(seed)
        super().reset(seed=seed)
        if seed is not None:
            self._generator.manual_seed(seed)
        given = dict(options or {})
        lanes = self._mask(given.pop("reset_mask", None))
        for name, values in check_parameters(self._family, given, (self.num_envs,)).items():
            self._parameters[name].copy_(where(lanes, self._tensor(values), self._parameters[name]))
            self._scaled |= name in SCALED_FIELDS
        self._restart(lanes if self._started else torch.ones_like(lanes))
        return self._observations(), {}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Take one control step in every lane that has not finished. A lane fails if its action is not finite.

        Raises:
            ValueError: the actions have the wrong shape.
            ResetNeeded: before the first reset.
        """
        if not self._started:
            raise ResetNeeded("call reset before step")
        self._given.copy_(self._checked(actions))
        if not self.simulator.can_be_captured:
            self._graph = None  # it was captured for a model that has been replaced
        elif self._graph is None:
            self._graph = self._captured()
        (self._graph or self._advance)()
        terminations, truncations = self._book.terminated.clone(), self._book.truncated.clone()
        return self._seen.clone(), self._rewards.clone(), terminations, truncations, {}

    def _advance(self) -> None:
        """Take a step with the stored actions; all updates are in place."""
        control = self._control(self._given)
        running = alive = self._book.running & ~self._broken
        rewards = torch.zeros_like(self._rewards)
        for _ in range(repeats(self._robot)):
            rewards = rewards + torch.where(alive, self._moved(control, alive), 0.0)
            alive = alive & self._robot.healthy(self.simulator) & ~self._broken
        self._rewards.copy_(rewards.masked_fill(self._broken, torch.nan))
        self._keep(self._book.after_step(running, ~self._robot.healthy(self.simulator), self.horizon))
        self._seen.copy_(self._observations())

    def _moved(self, control: Tensor, lanes: Tensor) -> Tensor:
        """Take one control step in the lanes of a mask, and return its rewards."""
        before = self._robot.position(self.simulator).clone()
        self.simulator.step(control, lanes)
        self._unstable.logical_or_(self.simulator.unstable)
        self._overflowed.logical_or_(lanes & self.simulator.overflowed)
        position = self._robot.position(self.simulator).clone()
        motion = Motion(position, (position - before) / self.dt, control, self.simulator)
        rewards: Tensor = self._family.reward(motion, self._parameters)
        return rewards

    def _captured(self) -> Callable[[], None]:
        """Return a CUDA graph of a whole step, checked against the step itself; or the step, with a warning."""
        changing = [*self.simulator.changing, *self._book, self._trouble, self._rewards, self._seen]
        before = [values.clone() for values in changing]

        def after(step: Callable[[], None]) -> list[Tensor]:
            try:
                step()
                return [values.double().flatten().nan_to_num() for values in changing]  # field by field
            finally:
                for values, kept in zip(changing, before, strict=True):
                    values.copy_(kept)

        def compared() -> Callable[[], None]:
            graph = self.simulator.captured(self._advance)
            require_same(after(graph), after(self._advance), FAR, "it does something else")
            return graph

        graph = made_or_warned(
            compared, lambda why: f"no graph of a whole step could be captured, so steps are slow: {why}", level=2
        )
        return graph or self._advance

    def check(self) -> None:
        """Wait for the device, and raise LaneError if lanes failed since their last reset."""
        for lanes, message in (
            (self._unstable, "the simulation became unstable, or an action was not finite, in lanes {}: reset them"),
            (self._overflowed, "there were more contacts than memory for them in lanes {}: simulate them on the CPU"),
        ):
            if broken := lanes.nonzero().flatten().tolist():
                raise LaneError(message.format(broken), broken)

    @property
    def _broken(self) -> Tensor:
        return torch.logical_or(self._unstable, self._overflowed)

    def _restart(self, lanes: Tensor) -> None:
        model, noise = self._model, self._robot.reset_noise
        (own,) = spawn(self._generator, 1)  # moves the generator on by as much for any number of lanes
        numbers = uniform(own, self.places or self.num_envs, model.nq + model.nv)
        positions, speeds = torch.split(numbers, [model.nq, model.nv], dim=1)
        qpos, qvel = self._designed + noise * (2 * positions - 1), noise * normal(speeds)
        qpos, qvel = self._family.start(qpos, qvel, self._parameters)
        factors = {name: self._parameters[name] for name in SCALED_FIELDS} if self._scaled else None
        self.simulator.reset(lanes, qpos, qvel, factors)
        self._scaled, self._started = False, True
        self._keep(self._book.restarted(lanes))
        self._trouble.logical_and_(~lanes)

    def _keep(self, book: Book) -> None:
        for place, values in zip(self._book, book, strict=True):
            place.copy_(values)

    def _observations(self) -> Tensor:
        seen: Tensor = self._robot.observe(self.simulator)
        return seen.to(torch.get_default_dtype()).masked_fill(self._broken.unsqueeze(1), torch.nan)

    def _checked(self, actions: Any) -> Tensor:
        """Return actions ``[lane, nu]``. Raises ValueError for a wrong shape."""
        values = self._tensor(actions)
        if values.shape != self._given.shape:
            raise ValueError(f"actions have shape {tuple(values.shape)} where {tuple(self._given.shape)} was expected")
        return values

    def _control(self, actions: Tensor) -> Tensor:
        """Return the actuators' inputs, ``[lane, nu]``; nan where the action is not finite."""
        clipped = (actions / self._robot.action_scale).clamp(*self._limits)
        return torch.where(actions.isfinite(), clipped, torch.nan)

    def _mask(self, mask: Any) -> Tensor:
        """Return the mask of lanes to reset. Raises ValueError for a wrong shape or dtype."""
        if mask is None:
            return torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        tensor = torch.as_tensor(mask)
        if tensor.shape != (self.num_envs,) or tensor.dtype != torch.bool:
            raise ValueError(f"reset_mask must be bool [{self.num_envs}], not {tensor.dtype} {list(tensor.shape)}")
        return tensor.to(self.device, non_blocking=True)

    def _tensor(self, values: Any) -> Tensor:
        """Return values on the device, in torch's default dtype, without waiting for it."""
        return torch.as_tensor(values).to(self.device, torch.get_default_dtype(), non_blocking=True)
