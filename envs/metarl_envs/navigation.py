"""2-D point navigation to a goal that the point cannot see (MAML, https://arxiv.org/abs/1703.03400, sec. 5.3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl.control import ControlTasks, Sampling
from metarl.environments.mdp import MDP, Episode, MDPEnv, MDPVectorEnv, Parameters, box
from metarl.seeding import uniform
from metarl.types import Batch, Rollout, Spec, Split, Tasks

Array = np.ndarray[Any, Any]

LARGEST_MOVE = 0.1
"""Metres per step and axis."""
GOAL_RADIUS = 0.01
"""The episode terminates when the point is closer than this to the goal on both axes, in metres."""
DEFAULT_GOAL = (0.3, 0.4)
WORLD = 1000.0
"""Bound of the observation space, in metres. Gymnasium's checker requires one; there is no wall."""
SHOWN_EPISODES = 5
"""Episodes per task that ``picture`` shows."""
VIEW = 0.6
"""Rendered frames show [-0.6, 0.6] metres on both axes."""


def move(position: Tensor, action: Tensor, action_unit: float) -> Tensor:
    """Return the next position ``[..., 2]`` in metres; each axis moves by at most 0.1 m."""
    return position + (action * action_unit).clamp(-LARGEST_MOVE, LARGEST_MOVE)


def distance(position: Tensor, goal: Tensor) -> Tensor:
    """Return the Euclidean distance ``[...]`` in metres."""
    # Not torch.norm: its order of summation may differ between a batch and a single lane, and so may its rounding.
    x, y = (position - goal).unbind(-1)
    return (x * x + y * y).sqrt()


def arrived(position: Tensor, goal: Tensor) -> Tensor:
    """Return whether the point is closer than 0.01 m to the goal on both axes, ``[...]``."""
    x, y = (position - goal).abs().unbind(-1)
    return (x < GOAL_RADIUS) & (y < GOAL_RADIUS)


def make_env(
    goal: Sequence[float] = DEFAULT_GOAL, action_unit: float = LARGEST_MOVE, render_mode: str | None = None
) -> MDPEnv:
    """Return one environment. It starts at the origin; observation: position [2] (m); reward: minus the distance (m).

    Args:
        goal: ``[2]``, in metres.
        action_unit: Metres per unit of action.
        render_mode: ``"rgb_array"``, ``"human"`` or None.
    """
    return MDPEnv(navigation(action_unit), {"goal": goal}, draw, render_mode)


def make_vector_env(
    num_envs: int,
    horizon: int | None = None,
    device: torch.device | str | None = None,
    goal: Sequence[float] = DEFAULT_GOAL,
    action_unit: float = LARGEST_MOVE,
    max_episode_steps: int | None = None,
) -> MDPVectorEnv:
    """Return lanes of the same environment; ``max_episode_steps`` is Gymnasium's name for the horizon."""
    horizon = max_episode_steps if horizon is None else horizon
    return MDPVectorEnv(navigation(action_unit), {"goal": goal}, num_envs, horizon, device)


def navigation(action_unit: float = LARGEST_MOVE, goal_range: float = 0.5) -> MDP:
    """Return the dynamics, with goals in [-goal_range, goal_range]^2 m. Raises ValueError unless both are > 0."""
    if not (action_unit > 0 and goal_range > 0):
        raise ValueError(f"action_unit and goal_range are metres above 0, not {action_unit} and {goal_range}")

    def step(parameters: Parameters, state: Tensor, action: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position = move(state, action, action_unit)
        return position, -distance(position, parameters["goal"]), arrived(position, parameters["goal"])

    reach = LARGEST_MOVE / action_unit
    observation_space, action_space = box(-WORLD, WORLD, (2,)), box(-reach, reach, (2,))
    parameter_space = spaces.Dict({"goal": box(-goal_range, goal_range, (2,))})
    return MDP(observation_space, action_space, parameter_space, torch.zeros(2), step, lambda position: position)


def drawn_goals(num_tasks: int, goal_range: float, generator: Generator) -> Tensor:
    """Return goals ``[task, 2]``, uniform within goal_range metres on each axis. Raises ValueError for no task."""
    if num_tasks < 1:
        raise ValueError(f"at least one task is needed, not {num_tasks}")
    return (2 * uniform(generator, num_tasks, 2) - 1) * goal_range


def draw_paths(tasks: Tasks, queries: Sequence[Batch], places: Callable[[Rollout], Tensor], path: Path) -> Path:
    """Plot paths to the first goals before and after each adaptation step; return the path of the file.

    ``places`` returns the positions ``[task, episode, time, 2]`` of a rollout, in metres.
    """
    from metarl.pictures.plotting import navigation_paths

    rollouts = [batch for batch in queries if isinstance(batch, Rollout)]
    paths = torch.stack([places(rollout)[:, :SHOWN_EPISODES] for rollout in rollouts])
    mask = torch.stack([rollout.mask[:, :SHOWN_EPISODES] for rollout in rollouts])
    return navigation_paths(paths.cpu(), mask.cpu(), tasks.parameters["goal"].cpu(), path)


@dataclass(frozen=True)
class PointNavigation:
    """2-D navigation from the origin to a goal uniform in [-0.5, 0.5]^2 m. The reward is minus the distance to it.

    Task parameter and descriptor: ``goal`` ``[task, 2]``, in metres.
    """

    action_unit: float = LARGEST_MOVE
    """Metres per unit of the policy's action; moves are clipped to 0.1 m per axis. 0.1 as in the paper's code, 1 for
    actions in metres."""
    goal_range: float = 0.5
    """Goals are uniform in [-goal_range, goal_range] on each axis, in metres."""
    sampling: Sampling = field(default_factory=lambda: Sampling(episodes=20, horizon=100))
    """How episodes are sampled."""

    def __post_init__(self) -> None:
        navigation(self.action_unit, self.goal_range)

    @property
    def spec(self) -> Spec:
        """Position as input, displacement as output; the descriptor is the goal."""
        reach = LARGEST_MOVE / self.action_unit
        return Spec(input_shape=(2,), output_size=2, kind="continuous", descriptor_size=2, bounds=(-reach, reach))

    @property
    def parameter_space(self) -> spaces.Dict:
        """The range of the goals."""
        return navigation(self.action_unit, self.goal_range).parameter_space

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample goals; the splits share one distribution. Raises ValueError for fewer than one task."""
        goals = drawn_goals(num_tasks, self.goal_range, generator)
        return ControlTasks(self.spec, {"goal": goals}, goals, self.environment, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> MDPVectorEnv:
        """Return the lanes that episodes are sampled from."""
        return make_vector_env(num_envs, self.sampling.horizon, device, action_unit=self.action_unit)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> MDPEnv:
        """Return one environment of one task."""
        return make_env(**parameters, action_unit=self.action_unit, render_mode=render_mode)

    def picture(self, tasks: Tasks, queries: Sequence[Batch], path: Path) -> Path:
        """Plot paths to the first goals before and after each adaptation step; return the path of the file."""
        return draw_paths(tasks, queries, lambda rollout: rollout.observations, path)


def draw(episode: Episode, parameters: Parameters, pixels: int = 400) -> Array:
    """Return a frame ``[pixels, pixels, 3]`` uint8: the path grey, the start black, the goal green, the point red."""
    frame = np.full((pixels, pixels, 3), 255, dtype=np.uint8)
    visited = episode.states.double().numpy()
    # Draw each step as 40 points on the line between two positions.
    between = np.linspace(0, 1, 40)[:, None, None]
    path = (visited[:-1] * (1 - between) + visited[1:] * between).reshape(-1, 2)
    columns, rows = (np.floor((path * (1, -1) + VIEW) / (2 * VIEW) * pixels).astype(int)).T
    visible = (np.minimum(columns, rows) >= 0) & (np.maximum(columns, rows) < pixels)
    frame[rows[visible], columns[visible]] = (160, 160, 160)
    _disc(frame, visited[0], radius=0.01, colour=(0, 0, 0))
    _disc(frame, parameters["goal"].numpy(), radius=0.02, colour=(0, 150, 60))
    _disc(frame, visited[-1], radius=0.012, colour=(200, 30, 30))
    return frame


def _disc(frame: Array, centre: Array, radius: float, colour: tuple[int, int, int]) -> None:
    """Paint a disc given in metres; y points up. Parts outside the frame are cut off."""
    pixels = len(frame)
    centres = ((np.arange(pixels) + 0.5) / pixels * 2 - 1) * VIEW
    inside = (centres - centre[0])[None, :] ** 2 + (-centres - centre[1])[:, None] ** 2 <= radius**2
    frame[inside] = colour
