"""The parts of MuJoCo robots with tasks: data, and pure functions that work on the last axes only.

Single environments (no leading axis) and lanes share this code, with NumPy arrays or torch tensors.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import mujoco
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.mujoco import mujoco_env

from metarl.environments import as_array
from metarl_envs.mujoco.dynamics import SCALED_FIELDS, Array, Dynamics, Values
from metarl_envs.mujoco.rendering import Camera, Marker
from metarl_envs.mujoco.simulator import Physics, Simulation, load_model

RULE = "it must work on the last axis, whatever stands before it"
TRIED = 101
"""Lanes on which a family's functions are tried: more than robots have of anything else."""
GYMNASIUMS_MODELS = Path(mujoco_env.__file__).parent / "assets"
Parameters = Mapping[str, Values]
"""Task parameters and factors on the dynamics by name, ``[..., *shape]``."""


class Motion(NamedTuple):
    """The result of a control step, from which the reward is computed."""

    position: Values  # [..., axis] of the robot after the step, metres
    velocity: Values  # [..., axis] mean over the step, metres per second
    action: Values  # [..., actuator] as applied in the simulator: scaled and clipped
    physics: Physics  # the state after the step, a live view

    @property
    def effort(self) -> Values:
        """The squared length of the action, ``[...]``."""
        return (self.action * self.action).sum(axis=-1)


def namespace(values: Values) -> Any:
    """Return the module, ``torch`` or ``numpy``, that the values belong to."""
    return torch if isinstance(values, torch.Tensor) else np


class Robot(Protocol):
    """A frozen dataclass: a robot, its observations, and when it has fallen."""

    @property
    def model_file(self) -> str | Path:
        """The MJCF file: absolute, or beside the module of the robot's class, or the name of one of Gymnasium's."""

    @property
    def substeps(self) -> int:
        """Simulation steps in one control step."""

    @property
    def action_scale(self) -> float:
        """The policy's action that corresponds to one unit of the simulator's action."""

    @property
    def reset_noise(self) -> float:
        """Half-width of the uniform noise on initial positions, standard deviation of the noise on velocities."""

    @property
    def contact_forces(self) -> bool:
        """Whether ``observe`` reads contact forces."""

    @property
    def camera(self) -> Camera:
        """The camera for rendering, unless the task has one."""

    def position(self, physics: Physics) -> Values:
        """Return the robot's position, ``[..., axis]`` in metres: along x, or along x and y."""

    def observe(self, physics: Physics) -> Values:
        """Return the observations, ``[..., size]``, as a new array."""

    def healthy(self, physics: Physics) -> Values:
        """Return which robots have not fallen, ``[...]``."""


@runtime_checkable
class Repeats(Protocol):
    """A robot whose actions may last for several control steps."""

    @property
    def frame_skip(self) -> int:
        """Control steps for which each action is applied, unless the robot falls before."""


def repeats(robot: Robot) -> int:
    """Return for how many control steps each action is applied."""
    return robot.frame_skip if isinstance(robot, Repeats) else 1


class RobotFamily(Protocol):
    """A task family, as the environments use it."""

    @property
    def robot(self) -> Robot:
        """The robot."""

    @property
    def dynamics(self) -> Dynamics:
        """How its dynamics differ between tasks."""

    @property
    def simulation(self) -> Simulation:
        """How lanes are simulated."""

    @property
    def parameter_space(self) -> spaces.Dict:
        """The ranges of the task parameters and of the factors on the dynamics that vary."""

    @property
    def default_task(self) -> dict[str, Any]:
        """The task of an environment that is made without one."""

    @property
    def camera(self) -> Camera:
        """The camera for rendering."""

    def start(self, qpos: Values, qvel: Values, parameters: Parameters) -> tuple[Values, Values]:
        """Return the states that episodes start in, ``[..., nq]`` and ``[..., nv]``, from noisy ones."""

    def reward(self, motion: Motion, parameters: Parameters) -> Values:
        """Return the reward of a control step, ``[...]``."""

    def markers(self, motion: Motion, parameters: Parameters) -> list[Marker]:
        """Return the shapes that show the task when one robot is rendered."""


def observation_space(robot: Robot) -> spaces.Box:
    """Return the robot's observation space, in float64. MuJoCo resets states that leave its bounds (1e10)."""
    return box(-mujoco.mjMAXVAL, mujoco.mjMAXVAL, observation_size(robot))


def box(low: float, high: float, *shape: int) -> spaces.Box:
    """Return a Box in float64."""
    return spaces.Box(low, high, shape, dtype=np.float64)


def model_path(robot: Robot) -> Path:
    """Return where the robot's MJCF file is. Raises ValueError if there is none."""
    name = type(robot).__name__
    if not hasattr(robot, "model_file"):
        raise ValueError(f"{name} has no model_file: name its MJCF file there")
    file = Path(robot.model_file).expanduser()
    definer = next((kind for kind in type(robot).__mro__ if "model_file" in vars(kind)), type(robot))
    module = getattr(sys.modules.get(definer.__module__), "__file__", None)
    beside = Path(module).resolve().parent if module else Path.cwd()
    for folder in (beside, GYMNASIUMS_MODELS):
        if (folder / file).is_file():
            return folder / file
    if file.is_absolute():
        raise ValueError(f"{name}.model_file: there is no file {file}")
    raise ValueError(
        f"{name}.model_file: there is no {file} in {beside}, nor among Gymnasium's models: give an absolute path, or "
        "one that is relative to the module of the class"
    )


def model_of(robot: Robot) -> Any:
    """Return the robot's compiled model, which is shared; do not change it. Raises ValueError if there is none."""
    return load_model(str(model_path(robot)))


def observation_size(robot: Robot) -> int:
    """Return the size of the robot's observation. Raises ValueError for one that is no vector."""
    size: int = _shape(robot, "observe", robot.observe, at_rest(model_of(robot)), axes=1)[0]
    return size


def action_space(robot: Robot) -> spaces.Box:
    """Return the space of actions that are not clipped: the actuators' range times the action scale.

    Raises ValueError for a model without actuators, or with one that has no range.
    """
    model = model_of(robot)
    if not model.nu:
        raise ValueError(f"{robot.model_file} has no actuators, so that a policy could do nothing")
    if not model.actuator_ctrllimited.all():
        free = model.actuator(int(np.flatnonzero(~model.actuator_ctrllimited.astype(bool))[0]))
        raise ValueError(f"actuator {free.name or free.id} in {robot.model_file} has no range: give it a ctrlrange")
    low, high = (model.actuator_ctrlrange.T * robot.action_scale).astype(np.float32)
    return spaces.Box(low, high, dtype=np.float32)


def starting_state(robot: Robot, model: Any, rng: np.random.Generator, lanes: tuple[int, ...]) -> tuple[Array, Array]:
    """Sample initial positions ``[*lanes, nq]`` and velocities ``[*lanes, nv]`` as Gymnasium's robots do."""
    noise = robot.reset_noise
    qpos = model.qpos0 + rng.uniform(-noise, noise, size=(*lanes, model.nq))
    return qpos, noise * rng.standard_normal((*lanes, model.nv))


def to_control(actions: Any, robot: Robot, model: Any, lanes: tuple[int, ...]) -> Array:
    """Return the actuators' inputs in float64. Raises ValueError for a wrong shape or numbers that are not finite."""
    values = np.asarray(actions, dtype=np.float64)
    if values.shape != (*lanes, model.nu):
        raise ValueError(f"actions have shape {values.shape} where {(*lanes, model.nu)} was expected")
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=-1))
        raise ValueError(f"the action of lane {bad[0]} is not finite: {np.atleast_2d(values)[bad[0]]}")
    low, high = model.actuator_ctrlrange.T
    return np.clip(values / robot.action_scale, low, high)


def initial_parameters(family: RobotFamily, given: Mapping[str, Any] | None) -> dict[str, Array]:
    """Return one task's parameters and factors on the dynamics. Raises ValueError as ``check_parameters``."""
    nominal = dict.fromkeys(SCALED_FIELDS, 1.0)
    return check_parameters(family, {**nominal, **family.default_task, **(given or {})}, ())


def check_parameters(family: RobotFamily, given: Mapping[str, Any], lanes: tuple[int, ...]) -> dict[str, Array]:
    """Return float64 copies of task parameters and factors. Raises ValueError for wrong names, shapes or values."""
    shapes = dict.fromkeys(SCALED_FIELDS, ()) | {name: space.shape for name, space in family.parameter_space.items()}
    if unknown := sorted(set(given) - set(shapes)):
        raise ValueError(f"unknown options {unknown}: expected some of {[*shapes, *(['reset_mask'] if lanes else [])]}")
    checked: dict[str, Array] = {}
    for name, value in given.items():
        array = np.array(as_array(value), dtype=np.float64)
        expected = (*lanes, *(shapes[name] or ()))
        if array.shape != expected:
            raise ValueError(f"{name} has shape {array.shape} where {expected} was expected")
        if not np.isfinite(array).all() or (name in SCALED_FIELDS and not (array > 0).all()):
            raise ValueError(f"{name} must hold {'factors above 0' if name in SCALED_FIELDS else 'finite numbers'}")
        checked[name] = array
    return checked


class AtRest(NamedTuple):
    """A model's state as designed, of one robot or of lanes, with which functions are tried."""

    qpos: Values
    qvel: Values
    xpos: Values
    cfrc_ext: Values


def at_rest(model: Any, lanes: tuple[int, ...] = (), lift: Callable[[Array], Values] = np.array) -> AtRest:
    """Return the designed state in each of the lanes; ``lift`` makes arrays of another kind."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    state = (data.qpos, data.qvel, data.xpos, data.cfrc_ext)
    return AtRest(*(lift(np.array(np.broadcast_to(values, (*lanes, *values.shape)))) for values in state))


def check_family(family: RobotFamily, lift: Callable[[Array], Values] = np.array) -> None:
    """Try a family's functions on one robot and on lanes, with arrays that ``lift`` makes.

    Raises ValueError for one that fails, or that returns another shape than it should.
    """
    alone, beside = (_shapes(family, lanes, lift) for lanes in ((), (TRIED,)))
    for named, shape in alone.items():
        if beside[named] != shape:
            raise ValueError(f"{named} returns {shape} for one robot and {beside[named]} for each of {TRIED}: {RULE}")
    size, expected = *alone[f"{type(family).__name__}.start"], model_of(family.robot).nq + model_of(family.robot).nv
    if size != expected:
        raise ValueError(f"{type(family).__name__}.start returns {size} numbers, expected nq + nv = {expected}")


def _shapes(family: RobotFamily, lanes: tuple[int, ...], lift: Callable[[Array], Values]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a family's functions return by their names, without lanes. Raises ValueError as above."""
    robot, model, task = family.robot, model_of(family.robot), initial_parameters(family, None)
    parameters = {name: lift(np.array(np.broadcast_to(value, (*lanes, *value.shape)))) for name, value in task.items()}
    control = lift(np.zeros((*lanes, model.nu)))

    def reward(physics: Physics) -> Values:
        position = robot.position(physics)
        return family.reward(Motion(position, position - position, control, physics), parameters)

    def start(physics: Physics) -> Values:
        qpos, qvel = family.start(physics.qpos, physics.qvel, parameters)
        return namespace(qpos).concatenate([qpos, qvel], axis=-1)

    vectors = ((robot, "position", robot.position), (robot, "observe", robot.observe), (family, "start", start))
    numbers = ((robot, "healthy", robot.healthy), (family, "reward", reward))
    physics = at_rest(model, lanes, lift)
    tried = [*((1, *each) for each in vectors), *((0, *each) for each in numbers)]
    return {
        f"{type(owner).__name__}.{what}": _shape(owner, what, act, physics, axes, lanes)
        for axes, owner, what, act in tried
    }


def _shape(
    owner: Any, what: str, act: Callable[[Any], Values], physics: Physics, axes: int, lanes: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """Return the shape of what a function returns, without lanes. Raises ValueError if it fails or has another one."""
    tried = f"for {lanes[0]} lanes" if lanes else "for one robot"
    rule = f"expected {'[..., size]' if axes else '[...]'}; {RULE}"
    try:
        values = act(physics)
        shape = tuple(np.shape(values))
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{type(owner).__name__}.{what} fails {tried} ({told}): {rule}") from error
    if isinstance(physics.qpos, torch.Tensor) > isinstance(values, torch.Tensor):
        told = f"{type(values).__name__} {tried} of torch tensors, as MuJoCo Warp's are"
        raise ValueError(f"{type(owner).__name__}.{what} returns {told}: use namespace(physics.qpos) in place of numpy")
    if len(shape) != len(lanes) + axes or shape[: len(lanes)] != lanes:
        raise ValueError(f"{type(owner).__name__}.{what} returns shape {shape} {tried}: {rule}")
    return shape[len(lanes) :]


def check_robot(robot: Robot) -> None:
    """Raise ValueError for an invalid action scale, reset noise, frame skip or number of substeps."""
    if robot.substeps < 1:
        raise ValueError(f"substeps must be at least 1, not {robot.substeps}")
    if not 0 < robot.action_scale < np.inf:
        raise ValueError(f"action_scale must be above 0, not {robot.action_scale}")
    if not 0 <= robot.reset_noise < np.inf:
        raise ValueError(f"reset_noise must be 0 or more, not {robot.reset_noise}")
    if repeats(robot) < 1:
        raise ValueError(f"frame_skip must be at least 1, not {repeats(robot)}")


def check_range(name: str, bounds: tuple[float, float]) -> None:
    """Raise ValueError unless ``bounds`` are finite and in order."""
    if not -np.inf < bounds[0] <= bounds[1] < np.inf:
        raise ValueError(f"{name} must be finite, low <= high, not {bounds}")
