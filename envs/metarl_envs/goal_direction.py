"""Goal directions: a robot runs in a given direction, as fast as it can (MAML, https://arxiv.org/abs/1703.03400)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl_envs.mujoco import Marker, Motion, Parameters, RobotTasks, Values, arrows, box, uniform

CIRCLE = (0.0, 2 * math.pi)


class GoalDirection(RobotTasks):
    """Progress is the velocity in the goal direction: direction v, with v the mean forward velocity over a step.

    Task parameter: ``direction`` ``[task]``, 1 or -1. These are the only two tasks. They are equally likely in every
    split.
    """

    plane: bool = False
    angle_range: tuple[float, float] = CIRCLE

    @property
    def range_option(self) -> str | None:
        """Splits may have other ranges of angles in the plane."""
        return "angle_range" if self.plane else None

    @property
    def goal_space(self) -> dict[str, spaces.Box]:
        """Direction: 1 or -1, or a unit vector."""
        return {"direction": box(-1, 1, 2) if self.plane else box(-1, 1)}

    @property
    def default_task(self) -> dict[str, Any]:
        """Forwards."""
        return {"direction": (1.0, 0.0) if self.plane else 1.0}

    @property
    def splits_share_tasks(self) -> bool:
        """Whether test tasks may also occur in training: with two directions, none can be held out."""
        return not self.plane

    def draw_goals(self, num_tasks: int, generator: Generator) -> dict[str, Tensor]:
        """Sample directions."""
        if not self.plane:
            return {"direction": torch.where(uniform((-1.0, 1.0), generator, num_tasks) < 0, -1.0, 1.0)}
        angle = uniform(self.angle_range, generator, num_tasks)
        return {"direction": torch.stack([angle.cos(), angle.sin()], 1)}

    def progress(self, motion: Motion, parameters: Parameters) -> Values:
        """Return the velocity in the goal direction, ``[...]``."""
        direction, velocity = parameters["direction"], motion.velocity
        if not self.plane:
            return direction * velocity[..., 0]
        return direction[..., 0] * velocity[..., 0] + direction[..., 1] * velocity[..., 1]

    def markers(self, motion: Motion, parameters: Parameters) -> list[Marker]:
        """Return arrows of the goal direction and of the robot's velocity."""
        return arrows(motion.position, parameters["direction"], motion.velocity)


@dataclass(frozen=True)
class PlaneDirection(GoalDirection):
    """Directions for a robot that can turn. With ``plane``, ``direction`` is a unit vector, ``[task, 2]``.

    Its angle is uniform. Splits share one distribution unless ``splits`` says otherwise.
    """

    plane: bool = False
    """Any direction in the plane, instead of forwards or backwards."""
    angle_range: tuple[float, float] = CIRCLE
    """With ``plane``: angles are uniform in this range, in radians from the x axis."""

    def __post_init__(self) -> None:
        if not self.plane and self.angle_range != CIRCLE:
            raise ValueError(
                f"angle_range={self.angle_range} is for directions in the plane: set plane, or leave it out"
            )
        super().__post_init__()
