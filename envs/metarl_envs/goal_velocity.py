"""Goal velocities: a robot runs at a given velocity (MAML, https://arxiv.org/abs/1703.03400)."""

from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from torch import Generator, Tensor

from metarl_envs.mujoco import Marker, Motion, Parameters, RobotTasks, Values, arrows, box, uniform


@dataclass(frozen=True)
class GoalVelocity(RobotTasks):
    """Progress is -|v - velocity|, with v the mean forward velocity over a step.

    Task parameter: ``velocity`` ``[task]``, in metres per second. Splits share one distribution unless ``splits`` says
    otherwise.
    """

    velocity_range: tuple[float, float]
    """Goal velocities are uniform in this range, in metres per second."""

    @property
    def range_option(self) -> str:
        """Splits may have other ranges of velocities."""
        return "velocity_range"

    @property
    def goal_space(self) -> dict[str, spaces.Box]:
        """Velocity, in metres per second."""
        return {"velocity": box(*self.velocity_range)}

    @property
    def default_task(self) -> dict[str, Any]:
        """1 m/s."""
        return {"velocity": 1.0}

    def draw_goals(self, num_tasks: int, generator: Generator) -> dict[str, Tensor]:
        """Sample velocities."""
        return {"velocity": uniform(self.velocity_range, generator, num_tasks)}

    def progress(self, motion: Motion, parameters: Parameters) -> Values:
        """Return minus the distance from the goal velocity, ``[...]``."""
        return -abs(motion.velocity[..., 0] - parameters["velocity"])

    def markers(self, motion: Motion, parameters: Parameters) -> list[Marker]:
        """Return arrows of the goal velocity and of the robot's velocity."""
        return arrows(motion.position, parameters["velocity"], motion.velocity)
