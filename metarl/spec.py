"""The shapes and kind of data that a model must handle. Imports no torch, to keep worker processes small."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["regression", "classification", "discrete", "continuous"]


@dataclass(frozen=True)
class Spec:
    """The shapes and kind of data that a model must handle."""

    input_shape: tuple[int, ...]
    """Shape of one observation or one input."""
    output_size: int
    """Number of classes, targets, actions to choose from (discrete) or action dimensions (continuous)."""
    kind: Kind
    descriptor_size: int = 0
    """How many numbers describe a task (goal, amplitude, ...); 0 for a family without descriptors."""

    @property
    def control(self) -> bool:
        """Whether the data are rollouts of a policy, rather than labelled examples."""
        return self.kind in ("discrete", "continuous")

    @property
    def model_outputs(self) -> int:
        """Width of a model's output: a Gaussian policy outputs means followed by log standard deviations."""
        return 2 * self.output_size if self.kind == "continuous" else self.output_size
