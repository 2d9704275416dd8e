"""What training returns and ``open_run`` opens: meta-parameters, and policies adapted to tasks."""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from metarl import control
from metarl.control import ControlTasks
from metarl.evaluation import Adapted, adapt, sample_tasks
from metarl.fewshot import own_units
from metarl.trained.deploy import policy
from metarl.trained.deploy.card import Card
from metarl.trained.deploy.fewshot import FewShotModel
from metarl.trained.deploy.inputs import preparing
from metarl.trained.deploy.policy import AdaptedPolicy
from metarl.trained.policies import TaskPolicy, TaskPredictor, before_any_task, check_policies
from metarl.types import (
    Algorithm,
    Examples,
    Family,
    Learner,
    Outer,
    Params,
    Rollout,
    ScalesInputs,
    Split,
    State,
    Tasks,
    held_by,
    holding,
)


class Trains(Protocol):
    """An experiment, as ``metarl.Experiment``: this package does not know how to train."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm."""

    @property
    def tasks(self) -> Family:
        """The family of tasks."""

    @property
    def outer(self) -> Outer:
        """The outer update."""

    @property
    def settings(self) -> Any:
        """The settings of training."""

    def train(self, out: Path | str | None = None) -> "Trained":
        """Train once more."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained meta-learner, with its algorithm and task family."""

    algorithm: Algorithm
    family: Family
    learner: Learner
    """The learner, with its buffers: ``learner.begin(params, descriptors)`` needs no more."""
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
    experiment: Trains = field(default=None, repr=False)  # type: ignore[assignment]
    """The ``metarl.Experiment`` that was trained. ``dataclasses.replace`` makes another one of it."""
    origin: str = ""
    """What ``open_run`` opened, as it was named; empty otherwise. Cards of models tell it."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the learner, all but its buffers: its functions cannot be pickled, and follow from the others."""
        return {name: value for name, value in vars(self).items() if name != "learner"} | {"buffers": self.buffers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the learner anew."""
        buffers = state.pop("buffers")
        learner = holding(state["algorithm"].build(state["family"].spec), buffers)
        for name, value in (state | {"learner": learner}).items():
            object.__setattr__(self, name, value)

    @property
    def buffers(self) -> Params:
        """What the learner keeps beside the meta-parameters, by name; see ``metarl.types.Buffers``."""
        return held_by(self.learner)

    def tasks(self, number: int = 1, split: Split = "test", seed: int = 0) -> Tasks:
        """Sample tasks, the same as ``metarl evaluate`` with the same number, split and seed."""
        return sample_tasks(self.family, number, split, seed)

    def task(self, **parameters: Any) -> ControlTasks:
        """Return one task by its parameters, such as ``velocity=1.3``. Raises ValueError if there is no such task."""
        return control.tasks_with(self.family, {name: [value] for name, value in parameters.items()})

    def adapt(self, tasks: Tasks | Examples, steps: int = 1, seed: int = 0) -> list[Adapted]:
        """Adapt to tasks, or to labelled examples ``[task, item, ...]`` of one's own.

        Return states after 0, 1, ..., ``steps`` steps, with the episodes of their policies (``.rollout``) or the query
        set (``.examples``).

        Raises:
            ValueError: ``steps`` is negative, policies get examples, or a learner that reads descriptors gets examples.
        """
        return adapt(self.learner, self.params, tasks, steps, seed, self.device)

    def fit(self, inputs: Any, targets: Any = None, steps: int | None = None, seed: int = 0) -> FewShotModel:
        """Adapt to one's own labelled examples; return a model that predicts, and can be saved.

        ``inputs`` are numbers ``[item, *input_shape]``, a list of image files, a folder with a folder for each class,
        or a table (.csv; see ``metarl adapt --help``); the last two hold their targets. ``targets`` are a class for
        each input, of any hashable kind, or values ``[item, output_size]``. Classes may differ in their number of
        examples. ``steps`` is by default as many as in meta-training. ``seed`` decides the order of the examples, which
        only learners with memory see.

        Raises:
            ValueError: inputs or targets of another shape, or not finite; a single class; more classes than the learner
                can tell apart; a learner that reads descriptors of tasks; or the run trains policies.
        """
        if self.learner.spec.control:
            raise ValueError(f"this run trains policies, for {self.learner.spec.kind} actions: use adapt_to")
        steps = max(1, self.learner.adaptations) if steps is None else steps
        prepares = preparing(self.family, self.learner.spec)
        model = FewShotModel(
            self.algorithm, self.learner, self.params, self.device, prepares, self._card, steps=steps, seed=seed
        )
        return model.fit(inputs, targets)

    def adapt_to(
        self,
        own: Any,
        episodes: int = 20,
        steps: int = 1,
        after: int | None = None,
        horizon: int | None = None,
        seed: int = 0,
        progress: Callable[[float], object] = lambda share: None,
    ) -> AdaptedPolicy:
        """Adapt to an environment of one's own, or to episodes recorded there; return a policy that can be saved.

        The environment is any ``gymnasium.Env`` or ``gymnasium.make_vec`` whose spaces match the run's; metarl need not
        know it. Each step plays ``episodes`` episodes of at most ``horizon`` actions (by default the family's), and
        learns from them; ``after`` more show the return after the last one (by default as many; 0: none). Actions are
        laid over its bounds as over those of the run's own environments; so is the family's ``frame_skip``. The
        environment is not closed. ``progress`` is called with the share of the episodes that are played.

        Recorded episodes are a list of ``metarl.Episode``, or of dicts with its names, for one step; lists of such
        lists are a step each. They are in the units of the family's own environments. A ``metarl.Rollout`` of one task,
        in the units of the policy, serves as well.

        Raises:
            ValueError: the spaces do not match, the run has no policies or ones with memory, which learn while they
                act, or ones that read descriptors; or episodes of other shapes, or that are not finite.
            RolloutError: the environment broke.
        """
        if not self.learner.spec.control:
            raise ValueError(f"this run learns from labelled examples, for {self.learner.spec.kind}: use fit")
        source = policy.Source(self.algorithm, self.learner, self.params, self.device, self.family, self._card)
        if policy.is_env(own):
            return policy.adapt_to_env(source, own, episodes, steps, after, horizon, seed, progress)
        if isinstance(own, Rollout):
            return policy.adapt_to_episodes(source, [own])
        if not isinstance(own, Sequence) or isinstance(own, str) or not own:
            raise ValueError(
                f"a {type(own).__name__} is nothing to adapt to: expected a gymnasium.Env, a vector of them, or a list "
                "of recorded episodes"
            )
        nested = isinstance(own[0], list | Rollout)
        return policy.adapt_to_episodes(source, own if nested else [own])

    @property
    def _card(self) -> Card:
        return Card(
            type(self.algorithm).__name__, type(self.family).__name__, iteration=self.iteration, run=self.origin
        )

    def state(self, task: Tasks | Examples | None = None, steps: int = 0, seed: int = 0) -> State:
        """Return the learner's state for one task after ``steps`` adaptation steps; without a task, before any.

        Raises:
            ValueError: the run has no policies of observations alone, several tasks, a negative number of steps, steps
                without a task, or no task for a policy that reads the task's descriptor.
        """
        if self.learner.spec.control:
            check_policies(self.learner)
        if task is None and steps:
            raise ValueError(f"{steps} adaptation steps need a task to adapt to")
        if task is None:
            return before_any_task(self.learner, self.params, self.device)
        number = len(task.inputs if isinstance(task, Examples) else task.descriptors)
        if number != 1:
            what = "policy" if self.learner.spec.control else "predictor"
            raise ValueError(f"one {what} is for one task, not for {number}")
        if steps or isinstance(task, Examples):
            return self.adapt(task, steps, seed)[-1].state
        return self.learner.begin(self.params, task.descriptors.to(self.device))

    def predictor(self, task: Tasks | Examples, steps: int = 1, seed: int = 0) -> TaskPredictor:
        """Return what the run has learned of one task after ``steps`` adaptation steps, as a function of inputs.

        ``task`` is one task of the family, or labelled examples ``[1, item, ...]`` as its tasks draw them. Inputs and
        values are in the units of the family's data, not in standard units. The function takes one
        input ``[*input_shape]`` or a batch ``[..., *input_shape]``, as a tensor or an array, and returns the predicted
        targets ``[..., output_size]``, or the probability of each class ``[..., class]``, on the inputs' device. With
        transductive batch norm, the inputs of a batch influence each other.

        Raises:
            ValueError: for the reasons of ``state``, or the run trains policies. The function raises it for inputs of
                another shape.
        """
        if self.learner.spec.control:
            raise ValueError(f"this run trains policies, for {self.learner.spec.kind} actions: use policy")
        scale = self.family.input_scale if isinstance(self.family, ScalesInputs) else None
        units = own_units(self.family)
        return TaskPredictor(self.learner, self.state(task, steps, seed), self.device, units, scale)

    def policy(self, task: Tasks, steps: int = 1, seed: int = 0) -> TaskPolicy:
        """Return the policy after ``steps`` adaptation steps to one task, as a function of observations.

        The function takes one observation ``[*input_shape]`` or a batch ``[..., *input_shape]``, as a tensor or an
        array; where the environment has Dict or Tuple observations, also those. It returns a
        ``torch.distributions.Distribution`` of the action of each, on the observations' device and without gradients:
        ``Independent(Normal)``, or ``Categorical`` for discrete actions. Both have ``mode``, ``sample()``,
        ``log_prob(actions)`` and ``entropy()``; the first has ``mean``, the second ``probs``. Several choices
        (MultiDiscrete) have ``parts``, a ``Categorical`` for each. Squashed policies have no ``entropy()``.
        Environments may clip the actions. The adaptation is that of ``adapt`` with the same seed.

        Raises:
            ValueError: for the reasons of ``state``. The function raises it for observations of another shape, and for
                those that are not finite.
        """
        check_policies(self.learner)
        return TaskPolicy(self.learner, self.state(task, steps, seed), self.device)
