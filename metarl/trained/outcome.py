"""What training returns and ``open_run`` opens: meta-parameters, and policies adapted to tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from metarl import control
from metarl.control import ControlTasks
from metarl.evaluation import Adapted, adapt, sample_tasks
from metarl.trained.policies import TaskPolicy, before_any_task, check_policies
from metarl.types import Algorithm, Family, Learner, Params, Split, State, Tasks


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained meta-learner, with its algorithm and task family."""

    algorithm: Algorithm
    family: Family
    learner: Learner
    params: Params = field(repr=False)
    """Meta-parameters, on ``device``."""
    device: torch.device
    iteration: int
    """Number of meta-iterations that the parameters were trained for."""
    rows: Sequence[dict[str, float]] = field(default=(), repr=False)
    """One row of metrics for each logged iteration: of the call, for ``train`` and ``resume``; for ``open_run``, of the
    whole run, up to these parameters."""
    interrupted: bool = False
    """Whether ``iteration`` is less than the number of iterations that was asked for."""
    signal: int | None = None
    """The signal that stopped the call, such as SIGINT for Ctrl-C; None if it was none."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the learner: its functions cannot be pickled, and follow from algorithm and family."""
        return {name: value for name, value in vars(self).items() if name != "learner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the learner anew."""
        for name, value in (state | {"learner": state["algorithm"].build(state["family"].spec)}).items():
            object.__setattr__(self, name, value)

    def tasks(self, number: int = 1, split: Split = "test", seed: int = 0) -> Tasks:
        """Sample tasks, the same as ``metarl evaluate`` with the same number, split and seed."""
        return sample_tasks(self.family, number, split, seed)

    def task(self, **parameters: Any) -> ControlTasks:
        """Return one task by its parameters, such as ``velocity=1.3``. Raises ValueError if there is no such task."""
        return control.tasks_with(self.family, {name: [value] for name, value in parameters.items()})

    def adapt(self, tasks: Tasks, steps: int = 1, seed: int = 0) -> list[Adapted]:
        """Adapt policies to tasks. Return them after 0, 1, ..., ``steps`` steps, with their episodes.

        Raises:
            ValueError: the run does not train policies, or ``steps`` is negative.
        """
        return adapt(self.learner, self.params, tasks, steps, seed, self.device)

    def state(self, task: Tasks | None = None, steps: int = 0, seed: int = 0) -> State:
        """Return the learner's state for one task after ``steps`` adaptation steps; without a task, before any.

        Raises:
            ValueError: the run has no policies of observations alone, several tasks, a negative number of steps, steps
                without a task, or no task for a policy that reads the task's descriptor.
        """
        check_policies(self.learner)
        if task is None and steps:
            raise ValueError(f"{steps} adaptation steps need a task to adapt to")
        if task is None:
            return before_any_task(self.learner, self.params, self.device)
        if len(task.descriptors) != 1:
            raise ValueError(f"one policy is for one task, not for {len(task.descriptors)}")
        if steps:
            return self.adapt(task, steps, seed)[-1].state
        return self.learner.begin(self.params, task.descriptors.to(self.device))

    def policy(self, task: Tasks, steps: int = 1, seed: int = 0) -> TaskPolicy:
        """Return the policy after ``steps`` adaptation steps to one task, as a function of observations.

        The function takes one observation ``[*input_shape]`` or a batch ``[..., *input_shape]``, as a tensor or an
        array. It returns a ``torch.distributions.Distribution`` of the action of each, on the observations' device and
        without gradients: ``Independent(Normal)``, or ``Categorical`` for discrete actions. Both have ``mode``,
        ``sample()``, ``log_prob(actions)`` and ``entropy()``; the first has ``mean``, the second ``probs``.
        Environments may clip the actions. The adaptation is that of ``adapt`` with the same seed.

        Raises:
            ValueError: for the reasons of ``state``. The function raises it for observations of another shape, and for
                those that are not finite.
        """
        return TaskPolicy(self.learner, self.state(task, steps, seed), self.device)
