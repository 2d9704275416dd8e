"""2-D point navigation seen as a picture: where the point is, and not where the goal is.

The dynamics, rewards and goals are those of ``navigation``; only what is observed differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl.control import ControlTasks, Sampling
from metarl.environments.mdp import MDP, MDPEnv, MDPVectorEnv
from metarl.types import Batch, Spec, Split, Tasks
from metarl_envs.navigation import (
    DEFAULT_GOAL,
    LARGEST_MOVE,
    VIEW,
    draw,
    draw_paths,
    drawn_goals,
    move,
    navigation,
)

SIZE = 32
"""Pixels on each side."""
RADIUS = 0.06
"""Of the disc that is the point, in metres."""


def picture(position: Tensor, size: int = SIZE) -> Tensor:
    """Return grey pictures ``[..., size, size, 1]`` uint8 of positions ``[..., 2]`` in metres.

    They show [-0.6, 0.6] metres on both axes; y points up. The point is a white disc on black ground with a soft edge,
    whose greys tell its place to a fraction of a pixel. A point outside is drawn at the nearest edge.
    """
    pixel = 2 * VIEW / size
    # float32, whatever torch's default is: the same position is the same picture.
    centres = (torch.arange(size, dtype=torch.float32, device=position.device) + 0.5) * pixel - VIEW
    x, y = position.float().clamp(-VIEW, VIEW).unbind(-1)
    across, up = centres - x[..., None], -centres - y[..., None]
    apart = (across.square()[..., None, :] + up.square()[..., :, None]).sqrt()
    shade = ((RADIUS - apart) / pixel + 0.5).clamp(0, 1)
    return (255 * shade).round().to(torch.uint8).unsqueeze(-1)


def seen(action_unit: float = LARGEST_MOVE, goal_range: float = 0.5, size: int = SIZE) -> MDP:
    """Return the dynamics of ``navigation``, seen as pictures. Raises ValueError for sizes below 8 pixels."""
    if size < 8:
        raise ValueError(f"size={size}: expected 8 pixels at least, so that the point can be seen")
    space = spaces.Box(0, 255, (size, size, 1), dtype=np.uint8)
    mdp = navigation(action_unit, goal_range)
    return mdp._replace(observation_space=space, observe=lambda position: picture(position, size))


def make_env(
    goal: Sequence[float] = DEFAULT_GOAL,
    action_unit: float = LARGEST_MOVE,
    size: int = SIZE,
    render_mode: str | None = None,
) -> MDPEnv:
    """Return one environment, as that of ``navigation``; observation: a grey picture ``[size, size, 1]`` uint8.

    Args:
        goal: ``[2]``, in metres.
        action_unit: Metres per unit of action.
        size: Pixels on each side of a picture.
        render_mode: ``"rgb_array"``, ``"human"`` or None. Rendered frames show the goal, observations do not.
    """
    return MDPEnv(seen(action_unit, size=size), {"goal": goal}, draw, render_mode)


def make_vector_env(
    num_envs: int,
    horizon: int | None = None,
    device: torch.device | str | None = None,
    goal: Sequence[float] = DEFAULT_GOAL,
    action_unit: float = LARGEST_MOVE,
    size: int = SIZE,
    max_episode_steps: int | None = None,
) -> MDPVectorEnv:
    """Return lanes of the same environment; ``max_episode_steps`` is Gymnasium's name for the horizon."""
    horizon = max_episode_steps if horizon is None else horizon
    return MDPVectorEnv(seen(action_unit, size=size), {"goal": goal}, num_envs, horizon, device)


@dataclass(frozen=True)
class PointNavigationPicture:
    """2-D navigation as in point-navigation, seen as a picture of the point. The goal is not in it.

    Task parameter and descriptor: ``goal`` ``[task, 2]``, in metres.
    """

    action_unit: float = LARGEST_MOVE
    """Metres per unit of the policy's action; moves are clipped to 0.1 m per axis."""
    goal_range: float = 0.5
    """Goals are uniform in [-goal_range, goal_range] on each axis, in metres."""
    size: int = SIZE
    """Pixels on each side of a picture."""
    sampling: Sampling = field(default_factory=lambda: Sampling(episodes=20, horizon=100))
    """How episodes are sampled."""

    def __post_init__(self) -> None:
        seen(self.action_unit, self.goal_range, self.size)

    @property
    def spec(self) -> Spec:
        """A picture ``[1, size, size]`` in [0, 1] as input, displacement as output; the descriptor is the goal."""
        reach, shape = LARGEST_MOVE / self.action_unit, (1, self.size, self.size)
        return Spec(input_shape=shape, output_size=2, kind="continuous", descriptor_size=2, bounds=(-reach, reach))

    @property
    def parameter_space(self) -> spaces.Dict:
        """The range of the goals."""
        return seen(self.action_unit, self.goal_range, self.size).parameter_space

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample goals; the splits share one distribution. Raises ValueError for fewer than one task."""
        goals = drawn_goals(num_tasks, self.goal_range, generator)
        return ControlTasks(self.spec, {"goal": goals}, goals, self.environment, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> MDPVectorEnv:
        """Return the lanes that episodes are sampled from."""
        return make_vector_env(num_envs, self.sampling.horizon, device, action_unit=self.action_unit, size=self.size)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> MDPEnv:
        """Return one environment of one task."""
        return make_env(**parameters, action_unit=self.action_unit, size=self.size, render_mode=render_mode)

    def picture(self, tasks: Tasks, queries: Sequence[Batch], path: Path) -> Path:
        """Plot paths to the first goals before and after each adaptation step; return the path of the file."""
        return draw_paths(tasks, queries, lambda rollout: self._positions(rollout.actions), path)

    def _positions(self, actions: Tensor) -> Tensor:
        """Return where the point was before each of its actions, ``[task, episode, time, 2]``."""
        moves = move(torch.zeros_like(actions), actions, self.action_unit)
        return moves.cumsum(2) - moves
