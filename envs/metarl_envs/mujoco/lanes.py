"""Lanes of MuJoCo robots with tasks: what those on the CPU and those under MuJoCo Warp share, and those on the CPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from metarl.environments import as_array, describe, opened
from metarl_envs.mujoco.dynamics import SCALED_FIELDS, Array
from metarl_envs.mujoco.robots import (
    Motion,
    RobotFamily,
    action_space,
    check_parameters,
    initial_parameters,
    observation_space,
    starting_state,
    to_control,
)
from metarl_envs.mujoco.simulator import Simulator, load_model, simulate


class RobotLanes(VectorEnv[Any, Any, Any]):
    """Lanes of a robot: a RobotVectorEnv or, under MuJoCo Warp, a WarpVectorEnv.

    Raises ValueError for no lanes, or no steps.
    """

    simulator: Simulator

    def __init__(self, family: RobotFamily, num_envs: int, horizon: int | None):
        describe(self, observation_space(family.robot), action_space(family.robot), num_envs, horizon)
        self.horizon, self.parameter_space = horizon, family.parameter_space
        self._family, self._robot = family, family.robot
        self._model = load_model(self._robot.model_file)
        self.dt = self._model.opt.timestep * self._robot.substeps

    def close_extras(self, **kwargs: Any) -> None:
        """Release what the simulator holds."""
        self.simulator.close()


class RobotVectorEnv(RobotLanes):
    """Lanes of a robot on the CPU, without automatic resets: a finished lane idles, not simulated, until it is reset.

    Args:
        family: The robot, its reward and its task parameters.
        num_envs: Number of lanes.
        horizon: Steps after which a lane is truncated; None for never.
        parameters: One task (the family's default where not given) and factors on the dynamics ("mass", "friction",
            "damping"; 1 where not given), in force in every lane until ``reset`` is given others.

    Raises:
        ValueError: no lanes, no steps, parameters that are unknown, of the wrong shape or not finite, or a backend
            that is not there.
    """

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
        """Restart the lanes of ``options["reset_mask"]`` (all without it); the others go on undisturbed.

        The other options are task parameters and factors on the dynamics, one row per lane, of which the restarted
        lanes take theirs. Raises ValueError for options that are unknown, of the wrong shape or not finite.
        """
        super().reset(seed=seed)
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
        """Act for one control step in every lane that has not finished.

        Raises:
            ValueError: the actions have the wrong shape or are not finite; the first such lane is named.
            RuntimeError: the simulation became unstable in some lanes, which are named.
        """
        control = to_control(actions, self._robot, self._model, (self.num_envs,))
        running = self._book.running
        before = self._robot.position(self.simulator).copy()
        if running.any():
            self.simulator.step(control, running)
        position = self._robot.position(self.simulator).copy()
        motion = Motion(position, (position - before) / self.dt, control)
        rewards = np.where(running, self._family.reward(motion, self._parameters), 0.0)
        self._book = self._book.after_step(running, ~self._robot.healthy(self.simulator), self.horizon)
        observations = self._robot.observe(self.simulator)
        return observations, rewards, self._book.terminated.copy(), self._book.truncated.copy(), {}

    def _restart(self, lanes: Array) -> None:
        qpos, qvel = np.zeros((self.num_envs, self._model.nq)), np.zeros((self.num_envs, self._model.nv))
        qpos[lanes], qvel[lanes] = starting_state(self._robot, self._model, self.np_random, (int(lanes.sum()),))
        factors = {name: self._parameters[name].copy() for name in SCALED_FIELDS}
        differ = any((factors[name] != self._scaled[name]).any() for name in SCALED_FIELDS)
        self.simulator.reset(lanes, qpos, qvel, factors if differ else None)
        self._scaled, self._book = factors, self._book.restarted(lanes)
