"""How well, and how fast, a meta-learner adapts to held-out tasks: scores after 0, 1, ..., k adaptation steps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from metarl import objectives
from metarl.control import ControlTasks
from metarl.seeding import stream
from metarl.speed import float32, send
from metarl.types import Batch, Examples, Family, Learner, Params, Split, State, Tasks

NUMBERS_PER_GROUP = {"cpu": 2**20, "gpu": 2**22}
"""How many numbers of examples' inputs are gone through at once: larger groups are no faster (measured on a CPU)."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of every task after every number of adaptation steps."""

    scores: dict[str, Tensor]
    """``[step, task]`` by name: return; or loss and accuracy."""
    tasks: Tasks
    queries: tuple[Batch, ...]
    """What the scores of each step were measured on; the last episodes' advantages, which nobody needs, are nan."""
    instances: Tensor | None = None
    """``[instance, task]`` of a learner with memory that classifies: how often it told the first, second, ... support
    item of a class before it was shown the label."""

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Mean, 95 % interval and every task's score by ``name/step_k``, and perhaps by ``accuracy/instance_k``."""
        by_step = {
            f"{name}/step_{step}": summary(values)
            for name, steps in self.scores.items()
            for step, values in enumerate(steps.tolist())
        }
        instances = [] if self.instances is None else self.instances.tolist()
        return by_step | {f"accuracy/instance_{k}": summary(values) for k, values in enumerate(instances, start=1)}


def sample_tasks(family: Family, number: int, split: Split = "test", seed: int = 0) -> Tasks:
    """Sample the tasks that every evaluation of this number, split and seed meets."""
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
    """Adapt to ``tasks`` tasks of a split and score every step on the way.

    The tasks depend on family, split and seed only, so every algorithm meets the same ones. Control: each adaptation
    uses fresh episodes, whose mean return is the score before it. Examples: each adaptation uses the support set
    again, and scores are measured on the query set.

    Raises:
        ValueError: fewer than one task, or a negative number of steps.
    """
    if tasks < 1 or steps < 0:
        raise ValueError(f"evaluation needs at least 1 task and 0 steps, not {tasks} and {steps}")
    sampled = sample_tasks(family, tasks, split, seed)
    device = torch.device(device)
    with torch.no_grad(), float32(device):
        draw = _control if learner.spec.control else _examples
        scores, queries, instances = draw(learner, params, sampled, steps, seed, device)
    named = {name: torch.stack([step[name] for step in scores]).cpu() for name in scores[0]}
    return Evaluation(named, sampled, tuple(queries), instances)


Tensors = tuple[Tensor, ...]
Steps = tuple[list[dict[str, Tensor]], list[Batch], Tensor | None]


class Adapted(NamedTuple):
    """What a learner knows of tasks after some adaptation steps, and the episodes that its policies then had."""

    state: State
    rollout: Batch


def adapt(
    learner: Learner, params: Params, tasks: Tasks, steps: int, seed: int = 0, device: torch.device | str = "cpu"
) -> list[Adapted]:
    """Adapt policies to tasks, on fresh episodes before every step; return them after 0, 1, ..., ``steps`` steps.

    Raises:
        ValueError: the learner makes no policies, or ``steps`` is negative.
    """
    if not learner.spec.control or steps < 0:
        raise ValueError(f"adapting policies needs a control family and 0 steps or more: {learner.spec}, {steps} steps")
    return _adapted(learner, params, tasks, steps, seed, torch.device(device))


def _adapted(
    learner: Learner, params: Params, tasks: Tasks, steps: int, seed: int, device: torch.device, judged: bool = False
) -> list[Adapted]:
    """See ``adapt``; where they are only ``judged``, nothing is estimated of the last episodes for one more step."""
    with torch.no_grad(), float32(device):
        state = learner.begin(params, send(tasks.descriptors, device))
        adapted: list[Adapted] = []
        for step in range(steps + 1):
            state = learner.adapt(*adapted[-1]) if adapted else state
            generator = stream(seed, "evaluation", step, device=device)
            watched = judged and step == steps
            adapted.append(Adapted(state, _episodes(tasks, learner, state, generator, watched)))
    return adapted


def _episodes(tasks: Tasks, learner: Learner, state: State, generator: Generator, watched: bool) -> Batch:
    if watched and isinstance(tasks, ControlTasks) and type(tasks).draw is ControlTasks.draw:
        return tasks.watch(learner, state, generator)
    return tasks.draw(learner, state, "support", generator)


def _control(learner: Learner, params: Params, tasks: Tasks, steps: int, seed: int, device: torch.device) -> Steps:
    rollouts = [found.rollout for found in _adapted(learner, params, tasks, steps, seed, device, judged=True)]
    scores = [objectives.scores(learner.spec.kind, rollout) for rollout in rollouts]
    if any("success" in step for step in scores):  # an environment may tell only when there is some
        scores = [{"success": torch.zeros_like(step["return"])} | step for step in scores]
    return scores, rollouts, None


def _examples(learner: Learner, params: Params, tasks: Tasks, steps: int, seed: int, device: torch.device) -> Steps:
    descriptors = send(tasks.descriptors, device)
    state = learner.begin(params, descriptors)
    support = _drawn(learner, tasks.draw(learner, state, "support", stream(seed, "evaluation", 0, device=device)))
    query = _drawn(learner, tasks.draw(learner, state, "query", stream(seed, "evaluation", 1, device=device)))
    groups = [
        _scores(learner, learner.begin(params, told), Examples(*shown), Examples(*asked), steps)
        for told, shown, asked in _grouped(descriptors, support, query)
    ]
    scores = [{name: torch.cat([group[step][name] for group, _ in groups]) for name in groups[0][0][0]}
              for step in range(steps + 1)]  # fmt: skip
    found = [instances for _, instances in groups if instances is not None]
    return scores, [query], torch.cat(found, dim=1).cpu() if found else None


def _drawn(learner: Learner, batch: Batch) -> Examples:
    if not isinstance(batch, Examples):
        raise ValueError(f"a {learner.spec.kind} family must draw Examples, not {type(batch).__name__}")
    return batch


def _grouped(descriptors: Tensor, support: Examples, query: Examples) -> Iterator[tuple[Tensor, Tensors, Tensors]]:
    """Cut the tasks into groups: a network's activations take a hundred times the memory of what it reads."""
    numbers = (support.inputs.numel() + query.inputs.numel()) // len(descriptors)
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
    """Mean of independent values with its 95 % confidence interval (Student's t; of zero width for a single one)."""
    from scipy import stats  # half a second to import, and only evaluation needs it

    with np.errstate(invalid="ignore", over="ignore"):  # where adaptation diverged, the mean says so
        mean = float(np.mean(values))
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    width = error * float(stats.t.ppf(0.975, max(len(values) - 1, 1)))
    return {"mean": mean, "low": mean - width, "high": mean + width, "per_task": values}


def table(metrics: Mapping[str, Mapping[str, Any]], batch_norm: str | None = None) -> str:
    """Render metrics as text, one line each, and how batch norm was used, which accuracies depend on."""
    lines = [f"{'metric':<20} {'mean':>10}   95 % interval"]
    for name, values in metrics.items():
        lines.append(f"{name:<20} {values['mean']:>10.4g}   [{values['low']:.4g}, {values['high']:.4g}]")
    if batch_norm is not None:
        lines.append(f"batch norm: {batch_norm}")
    return "\n".join(lines)
