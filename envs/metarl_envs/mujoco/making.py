"""Functions that make the environments of robot tasks, from a family or from its name and Gymnasium's keywords."""

import importlib.util
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import VectorEnv

from metarl.control import Pool, Sampling
from metarl_envs.mujoco.dynamics import SCALED_FIELDS
from metarl_envs.mujoco.lanes import RobotLanes, RobotVectorEnv
from metarl_envs.mujoco.robots import RobotFamily
from metarl_envs.mujoco.simulator import Backend
from metarl_envs.mujoco.single import RobotEnv

HOW_TO_INSTALL = 'pip install "metarl-toolkit[gpu]"'


class SampledFamily(RobotFamily, Protocol):
    """A robot family with sampling options."""

    def __hash__(self) -> int:
        """Hash the fields, as frozen dataclasses do."""

    @property
    def sampling(self) -> Sampling:
        """How episodes are sampled."""


def make_env(family: str, render_mode: str | None = None, **options: Any) -> RobotEnv:
    """Return one environment of a family; the entry point of ``gymnasium.make``.

    Args:
        family: ``module:class``.
        render_mode: As of Gymnasium's MuJoCo environments.
        options: Task parameters and factors on the dynamics; fields of the family, its robot and its simulation (by
            their own names, without nesting); and ``width``, ``height``, ``camera_name``, ... for rendering.
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
    """Return lanes of a family; the entry point of ``gymnasium.make_vec``.

    Options are those of ``make_env``, except for rendering. ``max_episode_steps`` is Gymnasium's name for
    the horizon. With MuJoCo Warp (``backend="warp"``, or a CUDA ``device``), arrays are torch tensors on the device.
    Raises ValueError for unknown options.
    """
    made, parameters, unknown = _configured(family, options)
    if unknown:
        raise ValueError(f"unknown options {sorted(unknown)} of {family}")
    horizon = max_episode_steps if horizon is None else horizon
    return make_lanes(made, num_envs, horizon, torch.device(device), parameters)


def make_lanes(
    family: RobotFamily,
    num_envs: int,
    horizon: int | None,
    device: torch.device,
    parameters: Mapping[str, Any] | None = None,
) -> RobotLanes:
    """Return lanes with the family's backend: MuJoCo Warp on the device, or the CPU, whatever the device.

    Raises ValueError for a backend that is not available or does not support the options.
    """
    if not _on_warp(family.simulation.backend, device):
        return RobotVectorEnv(family, num_envs, horizon, parameters)
    from metarl_envs.mujoco.warp_lanes import WarpVectorEnv  # takes seconds to import

    return WarpVectorEnv(family, num_envs, horizon, device, parameters)


class SamplingLanes:
    """Makes the lanes that a family's episodes are sampled from, and lends them; MuJoCo Warp's are kept.

    Raises ValueError as ``make_lanes`` does.
    """

    def __init__(self, family: SampledFamily) -> None:
        self._family = family
        self._own = Pool(partial(_new, family))

    def __call__(self, num_envs: int, device: torch.device) -> RobotLanes:
        """Return new lanes."""
        return _new(self._family, num_envs, device)

    def lent(self, num_envs: int, device: torch.device) -> AbstractContextManager[VectorEnv[Any, Any, Any]]:
        """Lend lanes that nobody else uses meanwhile."""
        if _on_warp(self._family.simulation.backend, device):
            return _kept(self._family, num_envs, device).lent(num_envs, device)
        return self._own.lent(num_envs, device)


def _new(family: SampledFamily, num_envs: int, device: torch.device) -> RobotLanes:
    return make_lanes(family, num_envs, family.sampling.horizon, device)


def _on_warp(backend: Backend, device: torch.device) -> bool:
    """Return whether lanes run on MuJoCo Warp. Raises ValueError if it is requested but not installed."""
    installed = importlib.util.find_spec("mujoco_warp") is not None
    on_gpu = device.type == "cuda"
    if backend == "warp" and not installed:
        raise ValueError(f"the backend 'warp' needs MuJoCo Warp, which is not installed: {HOW_TO_INSTALL}")
    if backend == "auto" and on_gpu and not installed:
        warnings.warn(f"MuJoCo runs on the CPU, which is slow compared with {device}: {HOW_TO_INSTALL}", stacklevel=3)
    return backend == "warp" or (backend == "auto" and on_gpu and installed)


# Capturing a control step takes as long as many steps, so lanes are kept. Every draw resets all lanes with its tasks.
@lru_cache(maxsize=4)
def _kept(family: SampledFamily, num_envs: int, device: torch.device) -> Pool:
    return Pool(partial(_new, family))


def _configured(family: str, options: Mapping[str, Any]) -> tuple[SampledFamily, dict[str, Any], dict[str, Any]]:
    """Return the family, the task parameters and factors, and the remaining options."""
    left = dict(options)
    default: Any = load_env_creator(family)()
    own = {"robot": _replaced(default.robot, left)} if default.robot is not default else {}
    made = replace(_replaced(default, left), simulation=_replaced(default.simulation, left), **own)
    parameters = {name: left.pop(name) for name in (*made.parameter_space, *SCALED_FIELDS) if name in left}
    return made, parameters, left


def _replaced(part: Any, options: dict[str, Any]) -> Any:
    """Return the dataclass with the options that are its fields, and remove these from ``options``."""
    return replace(part, **{field.name: options.pop(field.name) for field in fields(part) if field.name in options})
