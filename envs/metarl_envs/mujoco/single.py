"""A single MuJoCo robot with a task as a Gymnasium environment. It agrees bit for bit with a lane on the CPU."""

import copy
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

from metarl.environments import plain_seed
from metarl_envs.mujoco.dynamics import SCALED_FIELDS, Array, set_scaled_fields
from metarl_envs.mujoco.opengl import opengl
from metarl_envs.mujoco.robots import (
    Motion,
    RobotFamily,
    action_space,
    check_family,
    check_parameters,
    initial_parameters,
    model_of,
    model_path,
    observation_space,
    repeats,
    starting_state,
    to_control,
)
from metarl_envs.mujoco.simulator import ALARMS

RENDER_MODES = ["human", "rgb_array", "depth_array", "rgbd_tuple"]


class RobotEnv(MujocoEnv):
    """One robot with one task. Gymnasium renders it, with its goal. Options of ``reset`` hold until they are set again.

    Args:
        family: The robot, its reward and its task parameters.
        parameters: The task (by default the family's) and factors on the dynamics ("mass", "friction", "damping"; by
            default 1).
        render_mode: ``"rgb_array"``, ``"human"``, ``"depth_array"``, ``"rgbd_tuple"`` or None.
        rendering: Other keywords of Gymnasium's ``MujocoEnv``: ``width``, ``height``, ``camera_name``, ...

    Raises:
        ValueError: parameters that are unknown, of the wrong shape or not finite.
    """

    def __init__(
        self,
        family: RobotFamily,
        parameters: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **rendering: Any,
    ):
        self._family, self._robot = family, family.robot
        self._designed = model_of(self._robot)
        check_family(family)
        seconds = self._designed.opt.timestep * self._robot.substeps
        self.metadata = {"render_modes": RENDER_MODES, "render_fps": round(1 / seconds)}
        self.parameter_space = family.parameter_space
        self._parameters = initial_parameters(family, parameters)
        self._follow = "default_camera_config" not in rendering and "lookat" not in family.camera
        # Before 1.4, Gymnasium uses the model's own camera by default; -1 is the free camera.
        free = {} if "camera_name" in rendering else {"camera_id": -1}
        rendering = {"default_camera_config": dict(family.camera), **free, **rendering}
        observations = observation_space(self._robot)
        path = str(model_path(self._robot))
        super().__init__(path, self._robot.substeps, observations, render_mode, **rendering)
        self.action_space = action_space(self._robot)
        # A frame for each action. Gymnasium has asked for one for each control step.
        self.metadata = {**self.metadata, "render_fps": max(1, round(1 / (seconds * repeats(self._robot))))}
        self._scale_dynamics()
        self._motion = self._at_rest()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode. Raises ValueError for options that are unknown, of the wrong shape or not finite."""
        given = check_parameters(self._family, options or {}, ())
        self._parameters |= given
        if not given.keys().isdisjoint(SCALED_FIELDS):
            self._scale_dynamics()
        observation, _ = super().reset(seed=plain_seed(seed))
        return observation, {}

    def reset_model(self) -> Array:
        """Set a random initial state, and return its observation."""
        drawn = starting_state(self._robot, self.model, self.np_random, ())
        self.set_state(*self._family.start(*drawn, self._parameters))  # type: ignore[no-untyped-call]
        self._motion = self._at_rest()
        observation: Array = self._robot.observe(self.data)
        return observation

    def step(self, action: Any) -> tuple[Array, np.float64, bool, bool, dict[str, np.float64]]:
        """Take one control step, or ``frame_skip`` of them, with their summed reward, until the robot falls.

        The time limit is Gymnasium's wrapper. ``info`` has the mean velocity in metres per second.

        Raises:
            ValueError: the action has the wrong shape or is not finite.
            RuntimeError: the simulation became unstable.
        """
        control = to_control(action, self._robot, self.model, ())
        start, reward, taken, healthy = self._robot.position(self.data).copy(), np.float64(0.0), 0, True
        while taken < repeats(self._robot) and healthy:
            self._motion = self._advanced(control)
            reward += np.float64(self._family.reward(self._motion, self._parameters))
            taken, healthy = taken + 1, bool(self._robot.healthy(self.data))
        if self.render_mode == "human":
            self.render()
        velocity = (self._motion.position - start) / (taken * self.dt)
        info = {f"{axis}_velocity": speed for axis, speed in zip("xy", velocity, strict=False)}
        return self._robot.observe(self.data), reward, not healthy, False, info

    def _advanced(self, control: Array) -> Motion:
        before = self._robot.position(self.data).copy()
        self.do_simulation(control, self.frame_skip)  # MujocoEnv's name for the substeps of a control step
        if self.data.warning.number[ALARMS].any():
            raise RuntimeError("the simulation became unstable: reset it, with milder dynamics")
        position = self._robot.position(self.data).copy()
        return Motion(position, (position - before) / self.dt, control, self.data)

    def render(self) -> Any:
        """Return an image of the robot and its goal, or show it in a window, depending on the render mode.

        On Linux without a screen, this uses EGL or else OSMesa, unless the environment variable MUJOCO_GL is set.

        Raises:
            RuntimeError: no OpenGL works, or a window is requested without a screen.
        """
        with opengl(self.render_mode):
            viewer = self.mujoco_renderer._get_viewer(self.render_mode)
            viewer.make_context_current()  # another environment may have changed the current context
        for marker in self._family.markers(self._motion, self._parameters):
            viewer.add_marker(**marker)
        if self._follow:
            viewer.cam.lookat[: len(self._motion.position)] = self._motion.position
        picture = super().render()  # type: ignore[no-untyped-call]
        viewer._markers.clear()  # older releases of Gymnasium keep them for the next frame
        return picture

    def _initialize_simulation(self) -> tuple[Any, Any]:
        """Copy the compiled model: compiling it again would repeat MuJoCo's warning about Gymnasium's file."""
        model = copy.copy(self._designed)
        buffer = model.vis.global_
        buffer.offwidth = max(buffer.offwidth, self.width)
        buffer.offheight = max(buffer.offheight, self.height)
        return model, mujoco.MjData(model)

    def _at_rest(self) -> Motion:
        position = self._robot.position(self.data).copy()
        return Motion(position, np.zeros_like(position), np.zeros(self.model.nu), self.data)

    def _scale_dynamics(self) -> None:
        factors = {name: self._parameters[name] for name in SCALED_FIELDS}
        set_scaled_fields(self.model, self.data, self._designed, factors)
