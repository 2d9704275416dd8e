"""Goal positions: a robot walks to a given position (MAML, https://arxiv.org/abs/1703.03400)."""

from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from torch import Generator, Tensor

from metarl_envs.mujoco import (
    Camera,
    Marker,
    Motion,
    Parameters,
    RobotTasks,
    Values,
    box,
    column,
    overview,
    uniform,
)


@dataclass(frozen=True)
class GoalPosition(RobotTasks):
    """Progress is -|x - goal_x| - |y - goal_y|, for robots that walk in the plane.

    Task parameter: ``goal`` ``[task, 2]``, in metres from the origin. Splits share one distribution unless ``splits``
    says otherwise.
    """

    goal_range: tuple[float, float]
    """Goals are uniform in this range on each axis, in metres."""

    @property
    def range_option(self) -> str:
        """Splits may have other ranges of goals."""
        return "goal_range"

    @property
    def goal_space(self) -> dict[str, spaces.Box]:
        """Goal, in metres."""
        return {"goal": box(*self.goal_range, 2)}

    @property
    def default_task(self) -> dict[str, Any]:
        """1 m away along x and y."""
        return {"goal": (1.0, 1.0)}

    @property
    def camera(self) -> Camera:
        """A camera above the origin, high enough to show all goals."""
        return overview(max(map(abs, self.covering.goal_range)))

    def draw_goals(self, num_tasks: int, generator: Generator) -> dict[str, Tensor]:
        """Sample goals."""
        return {"goal": uniform(self.goal_range, generator, num_tasks, 2)}

    def progress(self, motion: Motion, parameters: Parameters) -> Values:
        """Return minus the L1 distance to the goal, ``[...]``."""
        position, goal = motion.position, parameters["goal"]
        return -(abs(position[..., 0] - goal[..., 0]) + abs(position[..., 1] - goal[..., 1]))

    def markers(self, motion: Motion, parameters: Parameters) -> list[Marker]:
        """Return a column at the goal."""
        return [column(parameters["goal"])]
