"""The shapes and kind of data that a model must handle. Imports no torch, to keep worker processes small."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from metarl.distributions import Distribution

Kind = Literal["regression", "classification", "discrete", "continuous"]
TargetKind = Literal["numbers", "classes", "labels"]


class Targets(NamedTuple):
    """What the targets of some tasks are, in a family whose tasks differ in that."""

    kind: TargetKind
    """numbers: the loss is the squared error. classes, one of which holds: 1 for it and 0 for the others, and the loss
    is the cross-entropy of a softmax. labels, any number of which hold at once: 0 or 1 each, and the loss is the binary
    cross-entropy of a sigmoid, the mean over labels."""
    size: int
    """How many outputs they take."""


class Part(NamedTuple):
    """One part of a Dict or Tuple observation, in the flat vector that a policy reads."""

    path: tuple[str | int, ...]
    """The names and numbers that lead to it: ``("arm", 0)`` is ``observation["arm"][0]``."""
    shape: tuple[int, ...]
    """Its shape in the environment's observation."""
    dtype: str
    """NumPy's name of its dtype there."""
    offset: int
    """Where its numbers begin in the vector."""
    size: int
    """How many they are."""
    choices: tuple[int, ...] = ()
    """For Discrete and MultiDiscrete: how many values each number has. They are one-hot; other parts are flattened."""
    first: tuple[int, ...] = ()
    """For Discrete and MultiDiscrete: the first value of each."""
    scale: float = 1.0
    """What it is divided by: 255 for pixels."""
    channels: Literal["", "first", "last"] = ""
    """Of a picture: where the channels of each of its frames are. Empty: it is no picture."""

    @property
    def axes(self) -> tuple[int, ...]:
        """The order in which a picture's axes are frames, channels, height and width, as far as it has them."""
        count = len(self.shape)
        return (*range(count - 3), count - 1, count - 3, count - 2) if self.channels == "last" else (*range(count),)

    @property
    def picture(self) -> tuple[int, int, int]:
        """The shape ``[channel, height, width]`` of a picture, the channels of its frames one after another."""
        *planes, height, width = (self.shape[axis] for axis in self.axes)
        return math.prod(planes), height, width


@dataclass(frozen=True)
class Spec:
    """The shapes and kind of data that a model must handle.

    Raises:
        ValueError: choices or targets that do not sum to the number of outputs, targets of another number than the
            descriptor's, or bounds that are no range.
    """

    input_shape: tuple[int, ...]
    """Shape of one observation or one input."""
    output_size: int
    """Number of classes, targets, actions to choose from (discrete) or action dimensions (continuous)."""
    kind: Kind
    descriptor_size: int = 0
    """How many numbers describe a task (goal, amplitude, ...); 0 for a family without descriptors."""
    choices: tuple[int, ...] = ()
    """For discrete actions that are several choices at once (MultiDiscrete): how many each has. They sum to
    ``output_size``. Empty: one choice."""
    bounds: tuple[float, float] = (-1.0, 1.0)
    """The ends of continuous actions in every dimension, for policies that keep within them."""
    observations: tuple[Part, ...] = ()
    """How Dict and Tuple observations are laid out in the vector that policies read; empty for all others."""
    ragged: bool = False
    """Whether tasks may differ in their number of examples: then batches have a mask, which the learner must honour."""
    targets: tuple[Targets, ...] = ()
    """Where tasks differ in what their targets are, and so in their loss, in a spec of regression: one for each number
    of the descriptor, which is one-hot and tells which a task has. Each has outputs of its own, one after another,
    which sum to ``output_size``; targets ``[task, item, output_size]`` are 0 in those of others. Empty: they are as
    ``kind`` says."""
    policy: str | None = None
    """The name of the policies' distribution. Families leave it None, algorithms may choose another one."""

    def __post_init__(self) -> None:
        if self.choices and (self.kind != "discrete" or sum(self.choices) != self.output_size):
            raise ValueError(
                f"choices={self.choices}: expected discrete actions and a sum of output_size={self.output_size}, "
                f"not of {self.kind} kind and {sum(self.choices)}"
            )
        if self.targets:
            self._check_targets()
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds={self.bounds}: expected the lower end first, then the upper")

    def _check_targets(self) -> None:
        told = ", ".join(f"{one.kind} {one.size}" for one in self.targets)
        for kind, size in self.targets:
            least = 2 if kind == "classes" else 1
            if kind not in get_args(TargetKind) or size < least:
                raise ValueError(
                    f"targets=({told}): expected {', '.join(get_args(TargetKind))}, of 1 output at least, and 2 classes"
                )
        if self.kind != "regression" or sum(one.size for one in self.targets) != self.output_size:
            raise ValueError(
                f"targets=({told}): expected a spec of regression and a sum of output_size={self.output_size}, not of "
                f"{self.kind} and {sum(one.size for one in self.targets)}"
            )
        if len(self.targets) != self.descriptor_size:
            raise ValueError(
                f"targets=({told}) are {len(self.targets)}: expected one for each of descriptor_size="
                f"{self.descriptor_size} numbers, the largest of which tells a task's"
            )

    @property
    def control(self) -> bool:
        """Whether the data are rollouts of a policy, rather than labelled examples."""
        return self.kind in ("discrete", "continuous")

    @property
    def distribution(self) -> Distribution:
        """What a policy's outputs mean. Raises ValueError for labelled examples, which have no policies."""
        if not self.control:
            raise ValueError(f"only control families have policies: this spec is for {self.kind}")
        usual = "gaussian" if self.kind == "continuous" else "multi_categorical" if self.choices else "categorical"
        return Distribution(self.policy or usual, self.choices or (self.output_size,), self.bounds)

    @property
    def head_size(self) -> int:
        """Width of a network's last layer: of what depends on the input."""
        return self.distribution.head if self.control else self.output_size

    @property
    def model_outputs(self) -> int:
        """Width of a model's output: a Gaussian policy outputs means followed by log standard deviations."""
        return self.distribution.width if self.control else self.output_size
