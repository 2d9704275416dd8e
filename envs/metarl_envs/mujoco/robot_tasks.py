"""A family of robot tasks combines a robot with a task. This module holds what all such families share.

A task for any robot extends ``RobotTasks``, like ``metarl_envs.goal_velocity``. A robot's own options, such as the
control cost and the bonus for not falling, are a frozen dataclass in the robot's module, like ``AntOptions`` in
``metarl_envs.robots.ant``. A family inherits from both, and from ``Simulated``::

    @dataclass(frozen=True)
    class AntVelocity(Simulated, AntOptions, GoalVelocity): ...

Fields are in the order of the bases from last to first: the task's, the robot's, the simulation's. A family may
override a field's default and help text; this does not change the order.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl import seeding
from metarl.control import ControlTasks, Sampling, check_train_tasks, from_training_set
from metarl.types import Spec, Split
from metarl_envs.mujoco.dynamics import Dynamics, Values
from metarl_envs.mujoco.lanes import RobotLanes
from metarl_envs.mujoco.making import SamplingLanes
from metarl_envs.mujoco.rendering import Camera, Marker
from metarl_envs.mujoco.robots import Motion, Parameters, Robot, action_space, box, check_range, observation_size
from metarl_envs.mujoco.simulator import Simulation
from metarl_envs.mujoco.single import RobotEnv


@dataclass(frozen=True)
class Splits:
    """How validation and test tasks differ from training tasks; by default, all share one distribution."""

    validation_range: tuple[float, float] | None = None
    """Range of goals in validation, in place of the task's own. None: the same as in training."""
    test_range: tuple[float, float] | None = None
    """Range of goals in the test, in place of the task's own. None: the same as in training."""
    train_tasks: int | None = None
    """Number of different training tasks, from which training samples. None: fresh tasks all the time."""
    train_seed: int = 0
    """Which training tasks: they follow from this seed, not from the run's."""

    def __post_init__(self) -> None:
        check_train_tasks(self.train_tasks)
        for split, bounds in self.ranges.items():
            check_range(f"{split}_range", bounds)

    @property
    def ranges(self) -> dict[Split, tuple[float, float]]:
        """The ranges that differ from that in training, by split."""
        given: dict[Split, tuple[float, float] | None] = {"validation": self.validation_range, "test": self.test_range}
        return {split: bounds for split, bounds in given.items() if bounds is not None}


@dataclass(frozen=True)
class Simulated:
    """Options of every family: the simulation of the robot, the sampling of episodes, and the splits."""

    dynamics: Dynamics = field(default_factory=Dynamics)
    """How the robot's dynamics differ between tasks; by default, they do not."""
    simulation: Simulation = field(default_factory=Simulation)
    """How lanes are simulated."""
    sampling: Sampling = field(default_factory=Sampling)
    """How episodes are sampled: as in the paper."""
    splits: Splits = field(default_factory=Splits)
    """How validation and test tasks differ from training tasks; by default, all share one distribution."""


class SimulatedTasks(ABC):
    """Tasks of a simulated robot; implements ``metarl.types.Family`` with ``single``, and ``robots.RobotFamily``.

    Attributes without a value are fields of the families.
    """

    robot: Robot
    dynamics: Dynamics
    simulation: Simulation
    sampling: Sampling
    splits: Splits

    def __post_init__(self) -> None:
        if self.range_option is not None:
            check_range(self.range_option, getattr(self, self.range_option))
        self._with_ranges_of_splits()

    @property
    def range_option(self) -> str | None:
        """The option that holds the range of goals, in whose place a split may have another; None without one."""
        return None

    @property
    @abstractmethod
    def goal_space(self) -> Mapping[str, spaces.Box]:
        """The ranges of the task's parameters by name, in order."""

    @property
    def default_task(self) -> dict[str, Any]:
        """The task of an environment that is made without one; by default in the middle of the ranges."""
        return {name: (space.low + space.high) / 2 for name, space in self.goal_space.items()}

    def draw_goals(self, num_tasks: int, generator: Generator) -> dict[str, Tensor]:
        """Sample the task's parameters, ``[task, ...]`` by name; by default uniformly in their ranges.

        Those of task k may not depend on the number of tasks.
        """
        ranges = self.goal_space
        sizes = [spaces.flatdim(space) for space in ranges.values()]
        numbers = torch.split(seeding.uniform(generator, num_tasks, sum(sizes)), sizes, dim=1)
        return {
            name: torch.from_numpy(space.low).to(shares)
            + torch.from_numpy(space.high - space.low).to(shares) * shares.reshape(num_tasks, *space.shape)
            for (name, space), shares in zip(ranges.items(), numbers, strict=True)
        }

    def start(self, qpos: Values, qvel: Values, parameters: Parameters) -> tuple[Values, Values]:
        """Return the states that episodes start in, ``[..., nq]`` and ``[..., nv]``; by default the noisy ones."""
        return qpos, qvel

    @abstractmethod
    def reward(self, motion: Motion, parameters: Parameters) -> Values:
        """Return the reward of a control step, ``[...]``."""

    def markers(self, motion: Motion, parameters: Parameters) -> list[Marker]:
        """Return the shapes that show the task when one robot is rendered; by default none."""
        return []

    @property
    def camera(self) -> Camera:
        """The camera for rendering; by default the robot's own."""
        return self.robot.camera

    @property
    def spec(self) -> Spec:
        """The policy's inputs and outputs. The descriptor is the task's parameters and the factors that vary."""
        size = spaces.flatdim(self.parameter_space)
        return Spec((observation_size(self.robot),), action_space(self.robot).shape[0], "continuous", size)

    @property
    def parameter_space(self) -> spaces.Dict:
        """The task's parameters, then the factors on the dynamics that vary, in the ranges of all splits.

        What lies between the ranges of two splits is inside, too.
        """
        varied = {name: box(*bounds) for name, bounds in self.dynamics.varied.items()}
        goals = self.covering.goal_space
        return spaces.Dict([*goals.items(), *varied.items()])  # a list keeps its order, a mapping is sorted

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample tasks, then the factors on the dynamics that vary. Raises ValueError for fewer than one task.

        With ``splits.train_tasks``, training tasks are picked from those, with replacement. Raises ValueError for
        more than there are.
        """
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        if not self.parameter_space:
            raise ValueError(f"the tasks of {type(self).__name__} do not differ: give it a goal_space or dynamics")
        splits, draw = self.splits, self._with_ranges_of_splits().get(split, self)._drawn
        if split == "train" and splits.train_tasks is not None:
            parameters = from_training_set(draw, splits.train_tasks, splits.train_seed, num_tasks, generator)
        else:
            parameters = draw(num_tasks, generator)
        descriptors = torch.cat([parameters[name].reshape(num_tasks, -1) for name in self.parameter_space], dim=1)
        return ControlTasks(self.spec, parameters, descriptors, SamplingLanes(self), self.sampling)

    def _drawn(self, num_tasks: int, generator: Generator) -> dict[str, Tensor]:
        of_goals, of_dynamics = seeding.spawn(generator, 2)
        factors = seeding.uniform(of_dynamics, num_tasks, len(self.dynamics.varied)).unbind(1)
        varied = {
            name: low + (high - low) * factor
            for (name, (low, high)), factor in zip(self.dynamics.varied.items(), factors, strict=True)
        }
        return {**self.draw_goals(num_tasks, of_goals), **varied}

    @property
    def covering(self) -> Self:
        """The family whose range of goals in training holds those of all splits."""
        ranges = self.splits.ranges.values()
        if not ranges:
            return self
        lows, highs = zip(getattr(self, str(self.range_option)), *ranges, strict=True)
        return self._with_range((min(lows), max(highs)))

    def _with_ranges_of_splits(self) -> dict[Split, Self]:
        """Return families of the splits that have other ranges. Raises ValueError where goals have no range."""
        return {split: self._with_range(bounds, f"{split}_range") for split, bounds in self.splits.ranges.items()}

    def _with_range(self, bounds: tuple[float, float], given_as: str = "range") -> Self:
        if self.range_option is None:
            raise ValueError(f"splits.{given_as}={bounds}: {type(self).__name__} has no range of goals; leave it out")
        changes: dict[str, Any] = {self.range_option: bounds, "splits": Splits()}
        untyped: Any = self
        changed: Self = replace(untyped, **changes)
        return changed

    def environment(self, num_envs: int, device: torch.device) -> RobotLanes:
        """Return new lanes such as episodes are sampled from: see ``Simulation``. They belong to the caller."""
        return SamplingLanes(self)(num_envs, device)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> RobotEnv:
        """Return one environment of one task."""
        return RobotEnv(self, parameters, render_mode)


class RobotTasks(SimulatedTasks):
    """Tasks over any robot: the reward of a step is progress + alive_bonus - control_cost |a|^2.

    a are the torques in [-1, 1]. Attributes without a value are fields of the families. So is ``alive_bonus``, for a
    robot that may fall.
    """

    control_cost: float
    alive_bonus: float = 0.0

    @abstractmethod
    def progress(self, motion: Motion, parameters: Parameters) -> Values:
        """Return the task's part of the reward of a control step, ``[...]``."""

    def reward(self, motion: Motion, parameters: Parameters) -> Values:
        """Return alive_bonus + progress - control_cost |a|^2, ``[...]``."""
        return self.alive_bonus + self.progress(motion, parameters) - self.control_cost * motion.effort


def uniform(bounds: tuple[float, float], generator: Generator, num_tasks: int, *shape: int) -> Tensor:
    """Sample ``[task, *shape]`` uniformly from ``[low, high)``, in torch's default dtype: see ``seeding.uniform``."""
    low, high = bounds
    return low + (high - low) * seeding.uniform(generator, num_tasks, *shape)
