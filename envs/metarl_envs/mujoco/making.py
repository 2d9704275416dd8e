"""What the families of MuJoCo tasks share: drawing task parameters, describing them, building environments."""

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import VectorEnv
from torch import Generator, Tensor

from metarl.control import ControlTasks, Sampling
from metarl.types import Spec
from metarl_envs.mujoco.dynamics import SCALED_FIELDS, Dynamics
from metarl_envs.mujoco.lanes import RobotEnv, RobotVectorEnv
from metarl_envs.mujoco.robots import RobotFamily, action_space, box, observation_size
from metarl_envs.mujoco.simulator import Backend

HOW_TO_INSTALL = 'pip install "metarl[gpu]"'
RobotLanes = VectorEnv[Any, Any, Any]
"""A RobotVectorEnv or, under MuJoCo Warp, a WarpVectorEnv."""


class SampledFamily(RobotFamily, Protocol):
    """A robot family that says how it is sampled."""

    def __hash__(self) -> int:
        """Tell families apart by their fields, as frozen dataclasses do."""

    @property
    def sampling(self) -> Sampling:
        """How episodes are sampled."""

    @property
    def spec(self) -> Spec:
        """What it asks of a policy."""

    def environment(self, num_envs: int, device: torch.device) -> RobotLanes:
        """Return the lanes that episodes are sampled from."""


def robot_spec(family: RobotFamily) -> Spec:
    """Return what the family asks of a policy; its task parameters, side by side, are the descriptor."""
    return Spec(
        input_shape=(observation_size(family.robot),),
        output_size=action_space(family.robot).shape[0],
        kind="continuous",
        descriptor_size=spaces.flatdim(family.parameter_space),
    )


def parameters_in(task: Mapping[str, spaces.Box], dynamics: Dynamics) -> spaces.Dict:
    """Return the space of the task parameters and of the factors on the dynamics that vary."""
    varied = {name: box(*bounds) for name, bounds in dynamics.varied.items()}
    return spaces.Dict([*task.items(), *varied.items()])  # a list keeps its order, where a mapping is sorted


def uniform(bounds: tuple[float, float], generator: Generator, num_tasks: int, *shape: int) -> Tensor:
    """Draw from ``[low, high)``: ``[task, *shape]``. Raises ValueError for fewer than one task."""
    if num_tasks < 1:
        raise ValueError(f"at least one task is needed, not {num_tasks}")
    low, high = bounds
    return low + (high - low) * torch.rand(num_tasks, *shape, generator=generator)


def control_tasks(family: SampledFamily, drawn: Mapping[str, Tensor], generator: Generator) -> ControlTasks:
    """Return tasks with these parameters ``[task, ...]``, and with dynamics drawn now where they vary."""
    num_tasks = len(next(iter(drawn.values())))
    varied = {name: uniform(bounds, generator, num_tasks) for name, bounds in family.dynamics.varied.items()}
    parameters = {**drawn, **varied}
    descriptors = torch.cat([parameters[name].reshape(num_tasks, -1) for name in family.parameter_space], dim=1)
    return ControlTasks(family.spec, parameters, descriptors, family.environment, family.sampling)


def signs(generator: Generator, num_tasks: int) -> Tensor:
    """Draw 1 or -1 with equal chances, ``[task]``. Raises ValueError for fewer than one task."""
    return torch.where(uniform((-1.0, 1.0), generator, num_tasks) < 0, -1.0, 1.0)


def make_env(family: str, render_mode: str | None = None, **options: Any) -> RobotEnv:
    """Return one environment of a family: what ``gymnasium.make`` calls.

    Args:
        family: ``module:class``.
        render_mode: As of Gymnasium's MuJoCo environments.
        options: Task parameters and factors on the dynamics; fields of the family, of its robot and of its simulation
            (flat, where families are nested); ``width``, ``height``, ``camera_name``, ... of the rendering.
    """
    made, parameters, rendering = _configured(family, options)
    return RobotEnv(made, parameters, render_mode, **rendering)


def make_vector_env(
    num_envs: int,
    family: str,
    horizon: int | None = None,
    max_episode_steps: int | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> RobotLanes:
    """Return lanes of a family: what ``gymnasium.make_vec`` calls, with the options of ``make_env`` save rendering.

    ``max_episode_steps`` is Gymnasium's name for the horizon. Under MuJoCo Warp (``backend="warp"``, or a ``device`` of
    CUDA) arrays are torch tensors on the device. Raises ValueError for unknown options.
    """
    made, parameters, unknown = _configured(family, options)
    if unknown:
        raise ValueError(f"unknown options {sorted(unknown)} of {family}")
    horizon = max_episode_steps if horizon is None else horizon
    return lanes(made, num_envs, horizon, torch.device(device), parameters)


def lanes(
    family: RobotFamily,
    num_envs: int,
    horizon: int | None,
    device: torch.device,
    parameters: Mapping[str, Any] | None = None,
) -> RobotLanes:
    """Return lanes simulated as the family says: under MuJoCo Warp on the device, or on the CPU, whatever the device.

    Raises ValueError for a backend that is not there or cannot do what is asked.
    """
    if not _on_warp(family.simulation.backend, device):
        return RobotVectorEnv(family, num_envs, horizon, parameters)
    from metarl_envs.mujoco.warp_lanes import WarpVectorEnv  # takes seconds to import

    return WarpVectorEnv(family, num_envs, horizon, device, parameters)


def sampling_lanes(family: SampledFamily, num_envs: int, device: torch.device) -> RobotLanes:
    """Return the lanes that a family's episodes are sampled from; under MuJoCo Warp they are kept for its other tasks.

    Raises ValueError as ``lanes``.
    """
    made = _kept_lanes if _on_warp(family.simulation.backend, device) else lanes
    return made(family, num_envs, family.sampling.horizon, device)


def _on_warp(backend: Backend, device: torch.device) -> bool:
    """Return whether lanes are for MuJoCo Warp. Raises ValueError where it is asked for but not installed."""
    installed, on_gpu = importlib.util.find_spec("mujoco_warp") is not None, device.type == "cuda"
    if backend == "warp" and not installed:
        raise ValueError(f"the backend 'warp' needs MuJoCo Warp, which is not installed: {HOW_TO_INSTALL}")
    if backend == "auto" and on_gpu and not installed:
        warnings.warn(f"MuJoCo runs on the CPU, which is slow beside {device}: {HOW_TO_INSTALL}", stacklevel=3)
    return backend == "warp" or (backend == "auto" and on_gpu and installed)


# To capture a control step takes as long as many of them, and every draw restarts all lanes with its own tasks.
_kept_lanes = lru_cache(maxsize=4)(lanes)


def _configured(family: str, options: Mapping[str, Any]) -> tuple[SampledFamily, dict[str, Any], dict[str, Any]]:
    """Return the family, the task parameters and factors, and the options that are neither."""
    left, default = dict(options), load_env_creator(family)()
    parts = {name: _replaced(getattr(default, name), left) for name in ("robot", "simulation")}
    made = replace(_replaced(default, left), **parts)
    parameters = {name: left.pop(name) for name in (*made.parameter_space, *SCALED_FIELDS) if name in left}
    return made, parameters, left


def _replaced(part: Any, options: dict[str, Any]) -> Any:
    """Return the dataclass with those options that are its fields, which are taken out of the options."""
    return replace(part, **{field.name: options.pop(field.name) for field in fields(part) if field.name in options})
