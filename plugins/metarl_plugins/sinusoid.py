"""Few-shot regression of sine waves: the MAML paper's (https://arxiv.org/abs/1703.03400, sec. 5.1), and sums of two."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from metarl.fewshot import POINTS, Count, FunctionTasks, Regression
from metarl.types import Spec, Split

Range = tuple[float, float]


def wave(inputs: Tensor, amplitude: Tensor, phase: Tensor) -> Tensor:
    """Return amplitude sin(input - phase)."""
    return amplitude * torch.sin(inputs - phase)


def harmonics(
    inputs: Tensor, amplitude: Tensor, phase: Tensor, second_amplitude: Tensor, second_phase: Tensor, frequency: Tensor
) -> Tensor:
    """Return the sum of a sine wave and one of twice its frequency, which is in radians per unit of input."""
    first = amplitude * torch.sin(frequency * inputs - phase)
    return first + second_amplitude * torch.sin(2 * frequency * inputs - second_phase)


@dataclass(frozen=True)
class Sinusoid:
    """Predict a sine wave from a few points: amplitude in [0.1, 5] and phase in [0, pi] differ between tasks.

    Task parameters and descriptor: ``amplitude`` and ``phase`` (in radians). All defaults are the MAML paper's, which
    trains with 10 shots and tests with 5, 10 and 20.
    """

    amplitude: Range = (0.1, 5.0)
    """Range of the amplitude."""
    phase: Range = (0.0, math.pi)
    """Range of the phase, in radians."""
    inputs: Range = (-5.0, 5.0)
    """Range of the inputs."""
    shots: Count = 10
    """Support points, or a range, such as 5 20, from which each task draws."""
    queries: int | None = None
    """Query points in meta-training; by default as many as shots."""
    train_shots: Count | None = None
    """Support points in meta-training; by default as many as shots."""
    test_queries: int = 100
    """Query points in validation and test. More points measure the error over all inputs more precisely."""
    half_range: bool = False
    """Draw support points from one half of the inputs, lower or upper at random, and queries from all inputs."""

    def __post_init__(self) -> None:
        self._regression  # noqa: B018  # raises ValueError for wrong options

    @property
    def spec(self) -> Spec:
        """Input: a number. Output: a number. Descriptor: amplitude and phase."""
        return self._regression.spec

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> FunctionTasks:
        """Sample waves. All splits have the same distribution. Raises ValueError for fewer than one task."""
        return self._regression.sample(num_tasks, split, generator)

    @cached_property
    def _regression(self) -> Regression:
        waves = {"amplitude": self.amplitude, "phase": self.phase}
        return Regression(wave, waves, **{name: getattr(self, name) for name in POINTS})


@dataclass(frozen=True)
class Harmonic:
    """Predict the sum of a sine wave and one of twice its frequency from a few points: a harder sinusoid.

    After the toy tasks of Lacoste et al. (2018, https://arxiv.org/abs/1806.07528), with uniform parameters and inputs.
    Task parameters and descriptor: ``amplitude``, ``phase``, ``second_amplitude``, ``second_phase`` and ``frequency``,
    in radians and radians per unit of input.
    """

    amplitude: Range = (0.1, 2.0)
    """Range of the amplitude of both waves."""
    phase: Range = (0.0, 2 * math.pi)
    """Range of the phase of both waves, in radians."""
    frequency: Range = (0.5, 1.0)
    """Range of the lower frequency, in radians per unit of input."""
    inputs: Range = (-5.0, 5.0)
    """Range of the inputs."""
    shots: Count = 20
    """Support points, or a range, such as 5 20, from which each task draws."""
    queries: int | None = None
    """Query points in meta-training; by default as many as shots."""
    train_shots: Count | None = None
    """Support points in meta-training; by default as many as shots."""
    test_queries: int = 100
    """Query points in validation and test. More points measure the error over all inputs more precisely."""
    half_range: bool = False
    """Draw support points from one half of the inputs, lower or upper at random, and queries from all inputs."""

    def __post_init__(self) -> None:
        self._regression  # noqa: B018  # raises ValueError for wrong options

    @property
    def spec(self) -> Spec:
        """Input: a number. Output: a number. Descriptor: the parameters of both waves."""
        return self._regression.spec

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> FunctionTasks:
        """Sample sums of waves. All splits have the same distribution. Raises ValueError for fewer than one task."""
        return self._regression.sample(num_tasks, split, generator)

    @cached_property
    def _regression(self) -> Regression:
        waves = {
            "amplitude": self.amplitude,
            "phase": self.phase,
            "second_amplitude": self.amplitude,
            "second_phase": self.phase,
            "frequency": self.frequency,
        }
        return Regression(harmonics, waves, **{name: getattr(self, name) for name in POINTS})
