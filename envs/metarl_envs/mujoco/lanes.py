"""MuJoCo robots with tasks, one at a time or in lanes, which agree bit for bit."""

import copy
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.vector import VectorEnv

from metarl.interfaces import as_array
from metarl_envs.mujoco import rendering as drawing
from metarl_envs.mujoco.dynamics import SCALED_FIELDS, Array, set_scaled_fields
from metarl_envs.mujoco.robots import (
    Motion,
    RobotFamily,
    action_space,
    check_parameters,
    describe_lanes,
    initial_parameters,
    observation_space,
    starting_state,
    to_control,
)
from metarl_envs.mujoco.simulator import ALARMS, load_model, simulate


class RobotEnv(MujocoEnv):
    """One robot with one task, rendered by Gymnasium with its goal drawn in. Options of ``reset`` stay in force.

    Args:
        family: The robot, its reward and its task parameters.
        parameters: The task (the family's default where not given), and factors on the dynamics ("mass", "friction",
            "damping"; 1 where not given).
        render_mode: ``"rgb_array"``, ``"human"``, ``"depth_array"``, ``"rgbd_tuple"`` or None.
        rendering: Other keywords of Gymnasium's ``MujocoEnv``: ``width``, ``height``, ``camera_name``, ...

    Raises:
        ValueError: parameters that are unknown, of the wrong shape or not finite.
    """

    metadata = {  # noqa: RUF012  # as Gymnasium declares it
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 20,
    }

    def __init__(
        self,
        family: RobotFamily,
        parameters: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **rendering: Any,
    ):
        self._family, self._robot = family, family.robot
        self.parameter_space = family.parameter_space
        self._parameters = initial_parameters(family, parameters)
        self._follow = "default_camera_config" not in rendering and "lookat" not in family.camera
        # Gymnasium before 1.4 takes the model's own camera unless told otherwise.
        free = {} if "camera_name" in rendering else {"camera_id": -1}
        rendering = {"default_camera_config": dict(family.camera), **free, **rendering}
        observations = observation_space(self._robot)
        super().__init__(self._robot.model_file, self._robot.substeps, observations, render_mode, **rendering)
        self.action_space = action_space(self._robot)
        self._scale_dynamics()
        self._motion = self._at_rest()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode. Raises ValueError for options that are unknown, of the wrong shape or not finite."""
        given = check_parameters(self._family, options or {}, ())
        self._parameters |= given
        if not given.keys().isdisjoint(SCALED_FIELDS):
            self._scale_dynamics()
        observation, _ = super().reset(seed=seed)
        return observation, {}

    def reset_model(self) -> Array:
        """Start from a noisy state."""
        self.set_state(*starting_state(self._robot, self.model, self.np_random, ()))  # type: ignore[no-untyped-call]
        self._motion = self._at_rest()
        observation: Array = self._robot.observe(self.data)
        return observation

    def step(self, action: Any) -> tuple[Array, np.float64, bool, bool, dict[str, np.float64]]:
        """Act for one control step; the time limit is Gymnasium's. ``info`` holds the velocity in metres per second.

        Raises:
            ValueError: the action has the wrong shape or is not finite.
            RuntimeError: the simulation became unstable.
        """
        control = to_control(action, self._robot, self.model, ())
        before = self._robot.position(self.data).copy()
        self.do_simulation(control, self.frame_skip)
        if self.data.warning.number[ALARMS].any():
            raise RuntimeError("the simulation became unstable: reset it, with milder dynamics")
        position = self._robot.position(self.data).copy()
        self._motion = motion = Motion(position, (position - before) / self.dt, control)
        reward = np.float64(self._family.reward(motion, self._parameters))
        if self.render_mode == "human":
            self.render()
        info = {f"{axis}_velocity": speed for axis, speed in zip("xy", motion.velocity, strict=False)}
        return self._robot.observe(self.data), reward, not self._robot.healthy(self.data), False, info

    def render(self) -> Any:
        """Return a picture of the robot and its goal, or show it in a window, as the render mode says.

        Where Linux has no screen, EGL draws, or OSMesa, unless the variable MUJOCO_GL chooses.

        Raises:
            RuntimeError: no OpenGL works here, or a window is asked for where there is no screen.
        """
        with drawing.opengl(self.render_mode):
            viewer = self.mujoco_renderer._get_viewer(self.render_mode)
            viewer.make_context_current()  # another environment may have rendered, or been closed, since
        for marker in self._family.markers(self._motion, self._parameters):
            viewer.add_marker(**marker)
        if self._follow:
            viewer.cam.lookat[: len(self._motion.position)] = self._motion.position
        picture = super().render()  # type: ignore[no-untyped-call]
        viewer._markers.clear()  # which older releases of Gymnasium leave for the next picture
        return picture

    def _initialize_simulation(self) -> tuple[Any, Any]:
        """Copy the compiled model: compiling it again would repeat MuJoCo's warning of Gymnasium's file."""
        model = copy.copy(load_model(self._robot.model_file))
        buffer = model.vis.global_
        buffer.offwidth, buffer.offheight = max(buffer.offwidth, self.width), max(buffer.offheight, self.height)
        return model, mujoco.MjData(model)

    def _at_rest(self) -> Motion:
        position = self._robot.position(self.data).copy()
        return Motion(position, np.zeros_like(position), np.zeros(self.model.nu))

    def _scale_dynamics(self) -> None:
        factors = {name: self._parameters[name] for name in SCALED_FIELDS}
        set_scaled_fields(self.model, self.data, load_model(self._robot.model_file), factors)


class RobotVectorEnv(VectorEnv[Array, Array, Array]):
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
        describe_lanes(self, family, num_envs, horizon)
        self.horizon, self.parameter_space = horizon, family.parameter_space
        self._family, self._robot = family, family.robot
        self._model = load_model(self._robot.model_file)
        self.dt = self._model.opt.timestep * self._robot.substeps
        initial = initial_parameters(family, parameters)
        self._parameters = {name: np.repeat(value[None], num_envs, axis=0) for name, value in initial.items()}
        self.simulator = simulate(self._model, num_envs, family.simulation, self._robot.contact_forces)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._terminated, self._truncated = np.zeros((2, num_envs), dtype=np.bool_)
        self._scaled = {name: np.ones(num_envs) for name in SCALED_FIELDS}
        self._restart(np.arange(num_envs))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Restart the lanes of ``options["reset_mask"]`` (all without it); the others go on undisturbed.

        The other options are task parameters and factors on the dynamics, one row per lane, of which the restarted
        lanes take theirs. Raises ValueError for options that are unknown, of the wrong shape or not finite.
        """
        super().reset(seed=seed)
        given = dict(options or {})
        mask = as_array(given.pop("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(f"reset_mask must be bool [{self.num_envs}], not {mask.dtype} {list(mask.shape)}")
        lanes = np.flatnonzero(mask)
        for name, values in check_parameters(self._family, given, (self.num_envs,)).items():
            self._parameters[name][lanes] = values[lanes]
        if len(lanes):
            self._restart(lanes)
        return self._robot.observe(self.simulator), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Act for one control step in every lane that has not finished.

        Raises:
            ValueError: the actions have the wrong shape or are not finite; the first such lane is named.
            RuntimeError: the simulation became unstable in some lanes, which are named.
        """
        control = to_control(actions, self._robot, self._model, (self.num_envs,))
        running = ~(self._terminated | self._truncated)
        before = self._robot.position(self.simulator).copy()
        if running.any():
            self.simulator.step(control, self._robot.substeps, None if running.all() else np.flatnonzero(running))
        position = self._robot.position(self.simulator).copy()
        motion = Motion(position, (position - before) / self.dt, control)
        rewards = np.where(running, self._family.reward(motion, self._parameters), 0.0)
        self._steps += running
        self._terminated |= running & ~self._robot.healthy(self.simulator)
        if self.horizon is not None:
            self._truncated |= self._steps >= self.horizon
        observations = self._robot.observe(self.simulator)
        return observations, rewards, self._terminated.copy(), self._truncated.copy(), {}

    def close_extras(self, **kwargs: Any) -> None:
        """Release the threads."""
        self.simulator.close()

    def _restart(self, lanes: Array) -> None:
        factors = {name: self._parameters[name][lanes] for name in SCALED_FIELDS}
        if any((factors[name] != self._scaled[name][lanes]).any() for name in SCALED_FIELDS):
            self.simulator.scale(lanes, factors)
            for name, values in factors.items():
                self._scaled[name][lanes] = values
        self.simulator.reset(lanes, *starting_state(self._robot, self._model, self.np_random, (len(lanes),)))
        self._steps[lanes], self._terminated[lanes], self._truncated[lanes] = 0, False, False
