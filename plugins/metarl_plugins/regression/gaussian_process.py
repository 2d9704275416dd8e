"""Few-shot regression of samples of 1-D Gaussian processes, as neural processes learn it (arXiv 1807.01613)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from metarl.fewshot import Bounds, Count, TableTasks, check_counts, episode_sizes, is_ragged
from metarl.seeding import normal, uniform
from metarl.types import Spec, Split

Range = tuple[float, float]
Kernel = Literal["rbf", "matern", "periodic"]
JITTER = 1e-9
"""Added to the kernel's diagonal, relative to its amplitude, in float64, so that it can be factorised."""


@dataclass(frozen=True)
class GaussianProcess:
    """Predict a function drawn from a Gaussian process, from a few points of it; the kernel differs between tasks.

    Task parameters and descriptor: ``length`` and ``amplitude`` of the kernel, uniform in their ranges. Points are
    uniform in the range of inputs, and are drawn with the task. The defaults are those of attentive neural processes'
    code (arXiv 1901.05761), but for the number of points. All splits have the same distribution.

    The kernel of points at a distance d is ``amplitude^2`` times: rbf, ``exp(-d^2 / 2 length^2)``; matern,
    ``(1 + s + s^2 / 3) exp(-s)`` with ``s = sqrt(5) d / length``; periodic,
    ``exp(-2 sin(pi d / period)^2 / length^2)``.
    """

    kernel: Kernel = "rbf"
    """Kernel: rbf, matern (5/2: twice differentiable functions) or periodic."""
    length: Range = (0.1, 0.6)
    """Range of the length scale."""
    amplitude: Range = (0.1, 1.0)
    """Range of the amplitude: the standard deviation of function values."""
    noise: float = 0.02
    """Standard deviation of the noise that is added to all targets."""
    period: float = 1.0
    """Period of the periodic kernel, in units of the inputs."""
    inputs: Range = (-2.0, 2.0)
    """Range of the inputs."""
    shots: Count = 10
    """Support points, or a range, such as 3 20, from which each task draws."""
    queries: int | None = None
    """Query points in meta-training; by default as many as shots, at most."""
    train_shots: Count | None = None
    """Support points in meta-training; by default as many as shots."""
    test_queries: int = 50
    """Query points in validation and test."""

    def __post_init__(self) -> None:
        if self.kernel not in get_args(Kernel):
            raise ValueError(f"kernel={self.kernel!r}: expected one of {', '.join(get_args(Kernel))}")
        for name in ("length", "amplitude"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name}=({low}, {high}): expected positive numbers, the lower end first")
        low, high = self.inputs
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"inputs=({low}, {high}): expected finite numbers, the lower end first")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise={self.noise}: expected at least 0")
        if not 0 < self.period < math.inf:
            raise ValueError(f"period={self.period}: expected a positive number")
        self._bounds("train")  # raises ValueError for wrong numbers of points

    @property
    def spec(self) -> Spec:
        """Input: a number. Output: a number. Descriptor: length and amplitude."""
        ragged = is_ragged(shots=self.shots, train_shots=self.train_shots)
        return Spec((1,), 1, "regression", 2, ragged=ragged)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> TableTasks:
        """Sample kernels, points and functions. Raises ValueError for fewer than one task."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        (low, high), (_, queries) = self._bounds(split)
        points = high + queries
        numbers = uniform(generator, num_tasks, 3 + 3 * points, dtype=torch.float64)
        of_task, places, drawn, noise = torch.split(numbers, [3, points, points, points], dim=1)
        length, amplitude = (
            start + (end - start) * of_task[:, place]
            for place, (start, end) in enumerate((self.length, self.amplitude))
        )
        inputs = _within(self.inputs, places)
        covariance = self.covariance(inputs, length, amplitude)
        values = (torch.linalg.cholesky(covariance) @ normal(drawn).unsqueeze(-1)).squeeze(-1)
        targets = values + self.noise * normal(noise)
        rows = torch.arange(num_tasks * points).reshape(num_tasks, points)
        usual = torch.get_default_dtype()
        parameters = {"length": length.to(usual), "amplitude": amplitude.to(usual)}
        data = inputs.reshape(-1, 1).to(usual), targets.reshape(-1, 1).to(usual)
        known = None
        if self.spec.ragged:
            shots = low + ((high - low + 1) * of_task[:, 2]).long()
            parameters["shots"] = shots.to(usual)
            known = torch.arange(high) < shots.unsqueeze(1), torch.ones(num_tasks, queries, dtype=torch.bool)
        return _Tasks(*data, rows[:, :high], rows[:, high:], parameters, None, *(known or (None, None)))

    def covariance(self, inputs: Tensor, length: Tensor, amplitude: Tensor) -> Tensor:
        """Return the kernel of each pair of inputs ``[task, point]``: ``[task, point, point]``."""
        distance = (inputs.unsqueeze(2) - inputs.unsqueeze(1)).abs()
        length = length.reshape(-1, 1, 1)
        if self.kernel == "rbf":
            correlation = (-(distance / length).square() / 2).exp()
        elif self.kernel == "matern":
            scaled = math.sqrt(5) * distance / length
            correlation = (1 + scaled + scaled.square() / 3) * (-scaled).exp()
        else:
            correlation = (-2 * ((math.pi * distance / self.period).sin() / length).square()).exp()
        jitter = JITTER * torch.eye(inputs.shape[1], dtype=inputs.dtype)
        return amplitude.square().reshape(-1, 1, 1) * (correlation + jitter)

    def _bounds(self, split: Split) -> Bounds:
        check_counts(test_queries=self.test_queries)
        return episode_sizes(self.shots, self.queries, self.train_shots, self.test_queries)[split]


def _within(ends: Range, shares: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * shares


class _Tasks(TableTasks):
    """Points of functions, described by their kernels."""

    @property
    def descriptors(self) -> Tensor:
        """Length and amplitude, ``[task, 2]``."""
        return torch.stack([self.parameters["length"], self.parameters["amplitude"]], dim=1)
