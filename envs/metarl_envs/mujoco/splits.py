"""Splits of a robot's tasks: other ranges for validation and test, and a finite training set."""

from dataclasses import dataclass

from metarl.control import check_train_tasks
from metarl.types import Split
from metarl_envs.mujoco.robots import check_range


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
