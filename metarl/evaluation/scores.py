"""How well, and how fast, a meta-learner adapts to held-out tasks: scores after 0, 1, ..., k adaptation steps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl import objectives
from metarl.seeding import stream
from metarl.speed import float32, send
from metarl.types import Batch, Examples, Family, Learner, Params, Split, State, Tasks

NUMBERS_PER_GROUP = {"cpu": 2**20, "gpu": 2**22}
"""Input numbers of examples that are processed at once. Larger groups are not faster (measured on a CPU)."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of every task after every number of adaptation steps."""

    scores: dict[str, Tensor]
    """``[step, task]`` by name: return, or loss and accuracy."""
    tasks: Tasks
    queries: tuple[Batch, ...]
    """The data that scores are measured on: a rollout for each step, or one query set."""
    instances: Tensor | None = None
    """``[instance, task]``, for classifiers with memory: accuracy on the first, second, ... support item of a class,
    predicted before its label is shown."""

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Mean, 95 % interval and all tasks' scores, by ``name/step_k`` and, with memory, ``accuracy/instance_k``."""
        by_step = {
            f"{name}/step_{step}": summary(values)
            for name, steps in self.scores.items()
            for step, values in enumerate(steps.tolist())
        }
        instances = [] if self.instances is None else self.instances.tolist()
        return by_step | {f"accuracy/instance_{k}": summary(values) for k, values in enumerate(instances, start=1)}


def sample_tasks(family: Family, number: int, split: Split = "test", seed: int = 0) -> Tasks:
    """Sample the tasks of an evaluation. The same number, split and seed always give the same tasks."""
    return family.sample(number, split, stream(seed, f"tasks/{split}"))


def evaluate(
    learner: Learner,
    params: Params,
    family: Family,
    tasks: int = 40,
    steps: int = 3,
    split: Split = "test",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Adapt to ``tasks`` tasks of a split, and score every step.

    The tasks depend only on family, number, split and seed, so every algorithm gets the same ones. Control: each
    adaptation uses fresh episodes, and their mean return is the score before it. Examples: each adaptation uses the
    same support set, and scores are measured on the query set.

    Raises:
        ValueError: fewer than one task, or a negative number of steps.
    """
    if tasks < 1 or steps < 0:
        raise ValueError(f"evaluation needs at least 1 task and 0 steps, not {tasks} and {steps}")
    sampled = sample_tasks(family, tasks, split, seed)
    device = torch.device(device)
    with torch.no_grad(), float32(device):
        run = _control if learner.spec.control else _examples
        scores, queries, instances = run(learner, params, sampled, steps, seed, device)
    named = {name: torch.stack([step[name] for step in scores]).cpu() for name in scores[0]}
    return Evaluation(named, sampled, tuple(queries), instances)


Tensors = tuple[Tensor, ...]
Steps = tuple[list[dict[str, Tensor]], list[Batch], Tensor | None]
"""Scores ``[task]`` of each step by name, the data that they were measured on, and accuracies by instance if any."""


class Adapted(NamedTuple):
    """A learner's state after some adaptation steps, and episodes of its policies in that state."""

    state: State
    rollout: Batch


def adapt(
    learner: Learner, params: Params, tasks: Tasks, steps: int, seed: int = 0, device: torch.device | str = "cpu"
) -> list[Adapted]:
    """Adapt policies to tasks, with fresh episodes for every step. Return them after 0, 1, ..., ``steps`` steps.

    Raises:
        ValueError: the learner has no policies, or ``steps`` is negative.
    """
    if not learner.spec.control or steps < 0:
        raise ValueError(f"adapting policies needs a control family and 0 steps or more: {learner.spec}, {steps} steps")
    device = torch.device(device)
    with torch.no_grad(), float32(device):
        state = learner.begin(params, send(tasks.descriptors, device))
        adapted: list[Adapted] = []
        for step in range(steps + 1):
            state = learner.adapt(*adapted[-1]) if adapted else state
            generator = stream(seed, "evaluation", step, device=device)
            adapted.append(Adapted(state, tasks.draw(learner, state, "support", generator)))
    return adapted


def _control(learner: Learner, params: Params, tasks: Tasks, steps: int, seed: int, device: torch.device) -> Steps:
    rollouts = [adapted.rollout for adapted in adapt(learner, params, tasks, steps, seed, device)]
    scores = [objectives.scores(learner.spec.kind, rollout) for rollout in rollouts]
    if any("success" in step for step in scores):  # some environments report success only when there is some
        scores = [{"success": torch.zeros_like(step["return"])} | step for step in scores]
    return scores, rollouts, None


def _examples(learner: Learner, params: Params, tasks: Tasks, steps: int, seed: int, device: torch.device) -> Steps:
    descriptors = send(tasks.descriptors, device)
    state = learner.begin(params, descriptors)
    support = _drawn(learner, tasks.draw(learner, state, "support", stream(seed, "evaluation", 0, device=device)))
    query = _drawn(learner, tasks.draw(learner, state, "query", stream(seed, "evaluation", 1, device=device)))
    group_scores: list[list[dict[str, Tensor]]] = []
    group_instances: list[Tensor] = []
    for described, support_part, query_part in _grouped(descriptors, support, query):
        state = learner.begin(params, described)
        scores, instances = _scores(learner, state, Examples(*support_part), Examples(*query_part), steps)
        group_scores.append(scores)
        group_instances += [] if instances is None else [instances]
    names = group_scores[0][0]
    joined = [
        {name: torch.cat([scores[step][name] for scores in group_scores]) for name in names}
        for step in range(steps + 1)
    ]
    return joined, [query], torch.cat(group_instances, dim=1).cpu() if group_instances else None


def _drawn(learner: Learner, batch: Batch) -> Examples:
    if not isinstance(batch, Examples):
        raise ValueError(f"a {learner.spec.kind} family must draw Examples, not {type(batch).__name__}")
    return batch


def _grouped(descriptors: Tensor, support: Examples, query: Examples) -> Iterator[tuple[Tensor, Tensors, Tensors]]:
    """Split the tasks into groups, because a network's activations take about 100 times the memory of its inputs."""
    numbers = (support.inputs.numel() + query.inputs.numel()) // len(descriptors)  # of one task
    size = max(1, NUMBERS_PER_GROUP["cpu" if descriptors.device.type == "cpu" else "gpu"] // max(1, numbers))
    split = [[torch.split(field, size) for field in batch] for batch in (support, query)]
    return zip(torch.split(descriptors, size), *(zip(*fields, strict=True) for fields in split), strict=True)


def _scores(
    learner: Learner, state: State, support: Examples, query: Examples, steps: int
) -> tuple[list[dict[str, Tensor]], Tensor | None]:
    scores, instances = [], None
    if learner.replay is not None and learner.spec.kind == "classification":
        instances = objectives.instance_accuracies(learner.replay(state, support)[0], support)
    for step in range(steps + 1):
        outputs, _ = learner.predict(state, query.inputs)
        scores.append(objectives.scores(learner.spec.kind, query, outputs))
        if step < steps:
            state = learner.adapt(state, support)
    return scores, instances


def summary(values: list[float]) -> dict[str, Any]:
    """Return the mean of independent values, and its 95 % confidence interval (Student's t).

    A single value has an interval of zero width.
    """
    from scipy import stats  # imported here: it takes half a second, and only evaluation needs it

    with np.errstate(invalid="ignore", over="ignore"):  # after diverged adaptation, the mean is nan or infinite
        mean = float(np.mean(values))
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    width = error * float(stats.t.ppf(0.975, max(len(values) - 1, 1)))
    return {"mean": mean, "low": mean - width, "high": mean + width, "per_task": values}


def table(metrics: Mapping[str, Mapping[str, Any]], batch_norm: str | None = None) -> str:
    """Render metrics as text, one line each, then the batch norm mode, because accuracies depend on it."""
    lines = [f"{'metric':<20} {'mean':>10}   95 % interval"]
    for name, values in metrics.items():
        lines.append(f"{name:<20} {values['mean']:>10.4g}   [{values['low']:.4g}, {values['high']:.4g}]")
    if batch_norm is not None:
        lines.append(f"batch norm: {batch_norm}")
    return "\n".join(lines)
