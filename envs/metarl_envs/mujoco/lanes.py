"""Lanes of MuJoCo robots: the base class, and lanes on the CPU (see ``warp_lanes`` for those on MuJoCo Warp)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from metarl.environments import as_array, describe, opened, plain_seed
from metarl.seeding import Places
from metarl_envs.mujoco.dynamics import SCALED_FIELDS, Array
from metarl_envs.mujoco.robots import (
    Motion,
    RobotFamily,
    action_space,
    check_family,
    check_parameters,
    initial_parameters,
    model_of,
    observation_space,
    repeats,
    starting_state,
    to_control,
)
from metarl_envs.mujoco.simulator import Simulator, simulate


class RobotLanes(VectorEnv[Any, Any, Any]):
    """Base class of the lanes of a robot: RobotVectorEnv on the CPU, WarpVectorEnv on MuJoCo Warp.

    Raises ValueError if there are no lanes or no steps.
    """

    simulator: Simulator

    def __init__(self, family: RobotFamily, num_envs: int, horizon: int | None):
        describe(self, observation_space(family.robot), action_space(family.robot), num_envs, horizon)
        self.horizon, self.parameter_space = horizon, family.parameter_space
        self._family, self._robot = family, family.robot
        self._model = model_of(self._robot)
        check_family(family)
        self.dt = self._model.opt.timestep * self._robot.substeps

    def close_extras(self, **kwargs: Any) -> None:
        """Release the simulator's resources."""
        self.simulator.close()


class RobotVectorEnv(RobotLanes):
    """Lanes of a robot on the CPU, without automatic resets: a finished lane is not simulated until it is reset.

    Args:
        family: The robot, its reward and its task parameters.
        num_envs: Number of lanes.
        horizon: Steps after which a lane is truncated; None for no limit.
        parameters: The task (by default the family's) and factors on the dynamics ("mass", "friction", "damping"; by
            default 1) of every lane, until ``reset`` sets others.

    Raises:
        ValueError: no lanes, no steps, a backend that is not available, or parameters that are unknown, of the wrong
            shape or not finite.
    """

    places: Places | None = None
    """Which lanes of a larger batch these are, see ``metarl.control.Placed``."""

    def __init__(
        self,
        family: RobotFamily,
        num_envs: int,
        horizon: int | None = None,
        parameters: Mapping[str, Any] | None = None,
    ):
        super().__init__(family, num_envs, horizon)
        initial = initial_parameters(family, parameters)
        self._parameters = {name: np.repeat(value[None], num_envs, axis=0) for name, value in initial.items()}
        self._scaled = {name: np.ones(num_envs) for name in SCALED_FIELDS}
        substeps, contact_forces = self._robot.substeps, self._robot.contact_forces
        self.simulator = simulate(self._model, num_envs, substeps, family.simulation, contact_forces)
        self._book = opened(np.zeros(num_envs, dtype=np.int64))
        self._restart(np.ones(num_envs, dtype=np.bool_))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Reset the lanes in the mask ``options["reset_mask"]``, by default all; the others continue undisturbed.

        The other options are task parameters and factors on the dynamics, one row per lane; only rows of reset lanes
        take effect. Raises ValueError for options that are unknown, of the wrong shape or not finite.
        """
        super().reset(seed=plain_seed(seed))
        given = dict(options or {})
        lanes = as_array(given.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if lanes.shape != (self.num_envs,) or lanes.dtype != np.bool_:
            raise ValueError(f"reset_mask must be bool [{self.num_envs}], not {lanes.dtype} {list(lanes.shape)}")
        for name, values in check_parameters(self._family, given, (self.num_envs,)).items():
            self._parameters[name][lanes] = values[lanes]
        if lanes.any():
            self._restart(lanes)
        return self._robot.observe(self.simulator), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Take one control step, or ``frame_skip`` of them with summed rewards, in every lane that has not finished.

        A robot that falls takes no more of them.

        Raises:
            ValueError: the actions have the wrong shape or are not finite; the first such lane is named.
            RuntimeError: the simulation became unstable in some lanes; they are named.
        """
        control = to_control(actions, self._robot, self._model, (self.num_envs,))
        running = self._book.running
        alive, rewards = running, np.zeros(self.num_envs)
        for _ in range(repeats(self._robot)):
            if not alive.any():
                break
            rewards += np.where(alive, self._advanced(control, alive), 0.0)
            alive = alive & self._robot.healthy(self.simulator)
        self._book = self._book.after_step(running, ~self._robot.healthy(self.simulator), self.horizon)
        observations = self._robot.observe(self.simulator)
        return observations, rewards, self._book.terminated.copy(), self._book.truncated.copy(), {}

    def _advanced(self, control: Array, lanes: Array) -> Array:
        """Take one control step in the lanes of a mask, and return its rewards."""
        before = self._robot.position(self.simulator).copy()
        self.simulator.step(control, lanes)
        position = self._robot.position(self.simulator).copy()
        motion = Motion(position, (position - before) / self.dt, control, self.simulator)
        rewards: Array = self._family.reward(motion, self._parameters)
        return rewards

    def _start_in_whole(self, places: Places, qpos: Array, qvel: Array) -> None:
        """Draw the starts of all lanes of the larger batch, and keep those of these lanes."""
        ours = {place: lane for lane, place in enumerate(places.at.tolist())}
        for place in range(max(ours) + 1):
            start = starting_state(self._robot, self._model, self.np_random, ())
            if place in ours:
                qpos[ours[place]], qvel[ours[place]] = start

    def _restart(self, lanes: Array) -> None:
        qpos = np.zeros((self.num_envs, self._model.nq))
        qvel = np.zeros((self.num_envs, self._model.nv))
        if self.places is not None:
            self._start_in_whole(self.places, qpos, qvel)
        else:
            for lane in np.flatnonzero(lanes):  # in turn: the start of a lane does not depend on the lanes after it
                qpos[lane], qvel[lane] = starting_state(self._robot, self._model, self.np_random, ())
        qpos, qvel = self._family.start(qpos, qvel, self._parameters)
        factors = {name: self._parameters[name].copy() for name in SCALED_FIELDS}
        # Setting factors recomputes the models' constants: skip it when no factor has changed.
        differ = any((factors[name] != self._scaled[name]).any() for name in SCALED_FIELDS)
        self.simulator.reset(lanes, qpos, qvel, factors if differ else None)
        self._scaled, self._book = factors, self._book.restarted(lanes)
