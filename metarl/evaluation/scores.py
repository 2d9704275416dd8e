"""How well, and how fast, a meta-learner adapts to held-out tasks: scores after 0, 1, ..., k adaptation steps."""

import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from metarl import objectives
from metarl.evaluation.adaptation import Adapted, Watch, adapt
from metarl.evaluation.drawing import Group, drawn_at_once, drawn_in_groups
from metarl.evaluation.noiseless import acting_by_the_mean
from metarl.evaluation.ranges import of_parameter
from metarl.evaluation.summaries import summary
from metarl.seeding import stream
from metarl.selection import drawn_in_whole, select_tasks
from metarl.speed import float32, ranks, usual_modes
from metarl.types import (
    Batch,
    DrawsGroups,
    Examples,
    Family,
    Learner,
    Params,
    Role,
    Rollout,
    Spec,
    Split,
    Tasks,
    check_served,
    environments_of,
    policy_of,
)


@dataclass(frozen=True)
class Evaluation:
    """Scores of every task after every number of adaptation steps."""

    scores: dict[str, Tensor]
    """``[step, task]`` by name: return, or loss and accuracy."""
    tasks: Tasks
    queries: Sequence[Batch]
    """What the scores of each step were measured on. Examples that were drawn in groups are drawn again when they are
    read."""
    instances: Tensor | None = None
    """``[instance, task]``, for classifiers with memory: accuracy on the first, second, ... support item of a class,
    predicted before its label is shown."""
    environment_steps: Tensor | None = None
    """``[step, task]``, for control: environment steps of a task that a policy had learnt from. With a memory, those of
    its own lane, on average; otherwise those of all the task's episodes."""
    practice: Sequence[Rollout] = ()
    """For control: the episodes that each step's policies adapt to. With ``mean``, they are not what is scored."""

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

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each task and step: ``task``, ``step``, the task's parameters and its scores, by name.

        A parameter of several numbers has a column for each: ``goal_0``, ``goal_1``, ..., and ``matrix_0_1`` where it
        has two axes. Tasks come in their order, and the steps of a task one after another.

        Raises ValueError where two columns would have the same name.
        """
        parameters = [column for name, values in self.tasks.parameters.items() for column in of_parameter(name, values)]
        names = ["task", "step", *(name for name, _ in parameters), *self.scores]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"two columns would be called {twice[0]}: rename that task parameter, or read scores and "
                "tasks.parameters"
            )
        scores = {name: values.tolist() for name, values in self.scores.items()}
        steps, tasks = next(iter(self.scores.values())).shape
        return [
            {"task": task, "step": step}
            | {name: values[task] for name, values in parameters}
            | {name: values[step][task] for name, values in scores.items()}
            for task in range(tasks)
            for step in range(steps)
        ]

    def to_frame(self) -> Any:
        """Return ``records`` as a ``pandas.DataFrame``; without pandas, as they are: a list of dictionaries."""
        if importlib.util.find_spec("pandas") is None:
            return self.records()
        import pandas  # optional, and slow to import

        return pandas.DataFrame(self.records())


def sample_tasks(family: Family, number: int, split: Split = "test", seed: int = 0) -> Tasks:
    """Sample the tasks of an evaluation. Task k depends on the family, the split and the seed alone.

    Raises ValueError for an unknown split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}: expected one of {', '.join(get_args(Split))}")
    return family.sample(number, split, stream(seed, f"tasks/{split}"))


class DivergenceWarning(UserWarning):
    """Scores are not finite: adaptation to some of the tasks diverges."""


@usual_modes()
def evaluate(  # noqa: PLR0913  # all but three have defaults, and are given by name
    learner: Learner,
    params: Params,
    family: Family,
    tasks: int = 40,
    steps: int = 3,
    split: Split = "test",
    seed: int = 0,
    device: torch.device | str = "cpu",
    mean: bool = False,
    progress: Watch | None = None,
) -> Evaluation:
    """Adapt to ``tasks`` tasks of a split, and score every step.

    Task k depends only on family, split and seed, so every algorithm gets the same ones. Control: each
    adaptation uses fresh episodes, and their mean return is the score before it. Examples: each adaptation uses the
    same support set, and scores are measured on the query set.

    With ``mean``, policies are scored in more episodes, in which they take their most likely actions, as a robot would;
    they still adapt to episodes with noise. ``progress`` is called with the share that is done, from 0 to 1.

    Where adaptation diverges, scores are infinite or nan, and a ``DivergenceWarning`` says so.

    Raises:
        ValueError: fewer than one task, a negative number of steps, a family whose spec is not the learner's, or
            ``mean`` where there are no actions.
    """
    if tasks < 1 or steps < 0:
        raise ValueError(f"evaluation needs at least 1 task and 0 steps, not {tasks} and {steps}")
    _check_spec(learner.spec, family.spec)
    check_served(learner, family.spec)
    sampled = sample_tasks(family, tasks, split, seed)
    device = torch.device(device)
    if mean and not learner.spec.control:
        raise ValueError(f"mean=True is for policies, which act: this learner is for {learner.spec.kind}")
    asked = _Asked(steps, seed, device, mean, progress or (lambda share: None))
    by_ranks = ranks.number_of_ranks() in range(2, tasks + 1)
    found = (_by_ranks if by_ranks else _evaluated)(learner, params, sampled, asked)
    if (told := _divergence(found.scores)) is not None:
        warnings.warn(told, DivergenceWarning, stacklevel=3)
    return found


def _divergence(scores: Mapping[str, Tensor]) -> str | None:
    """Return what to say of scores ``[step, task]`` that are not finite, at the first step that has some."""
    for name, values in scores.items():
        wrong = (~values.isfinite()).sum(1).tolist()
        for step, number in enumerate(wrong):
            if number:
                return (
                    f"the {name} of {number} of {values.shape[1]} tasks is not finite after {step} steps: adaptation "
                    "diverges; take fewer steps, or smaller ones (a smaller step_size, or a schedule such as 1 0.5)"
                )
    return None


def _evaluated(learner: Learner, params: Params, sampled: Tasks, asked: "_Asked") -> Evaluation:
    device = asked.device
    with torch.no_grad(), float32(device):
        run = _control if learner.spec.control else _examples
        scores, queries, instances, counts, practice = run(learner, params, sampled, asked)
    named = {name: torch.stack([step[name] for step in scores]).cpu() for name in scores[0]}
    return Evaluation(named, sampled, queries, instances, counts, practice)


class _Asked(NamedTuple):
    steps: int
    seed: int
    device: torch.device
    mean: bool
    progress: Watch


def _by_ranks(learner: Learner, params: Params, sampled: Tasks, asked: _Asked) -> Evaluation:
    """Evaluate this rank's share of the tasks, and put the scores of all together; the queries are this rank's."""
    mine = list[Evaluation]()

    def work() -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
        own = ranks.share(len(sampled.descriptors))
        some = drawn_in_whole(sampled, own) if ranks.is_exact() else select_tasks(sampled, own)
        found = _evaluated(learner, params, some, asked)
        mine.append(found)
        return {name: scores.T for name, scores in found.scores.items()}, found.instances, found.environment_steps

    told = ranks.agreed("evaluating", work)
    of_ranks = [one for one, _, _ in told]
    by_all = [{name: one[name] for name in one if _told_in_all(name, of_ranks)} for one in of_ranks]
    scores = ranks.task_values(by_all[0], by_all)
    instances, counts = (
        None if values[0] is None else torch.cat([value for value in values if value is not None], dim=1)
        for values in ([one for _, one, _ in told], [one for _, _, one in told])
    )
    named = {name: values.T for name, values in scores.items()}
    return Evaluation(named, sampled, mine[0].queries, instances, counts, mine[0].practice)


def _learnt_from(learner: Learner, rollouts: Sequence[Batch]) -> Tensor:
    """Return how many environment steps ``[step, task]`` lie behind each step's policies."""
    steps = [rollout.mask.sum(-1) for rollout in rollouts if isinstance(rollout, Rollout)]
    each = torch.stack([count.mean(1) if learner.memory is not None else count.sum(1) for count in steps]).cpu()
    return each.cumsum(0) - each


def _check_spec(built: Spec, asked: Spec) -> None:
    same = {"policy": None, "ragged": None}  # of algorithms; of families that a learner that honours masks serves, too
    ours, theirs = ({**asdict(spec), "input_shape": tuple(spec.input_shape), **same} for spec in (built, asked))
    wrong = [f"{name} {ours[name]}, and the family has {theirs[name]}" for name in ours if ours[name] != theirs[name]]
    if wrong:
        raise ValueError(
            f"the learner was built for tasks of another kind: {'; '.join(wrong)}; evaluate what was trained on such "
            "tasks, or build the learner for these: algorithm.build(family.spec)"
        )


Steps = tuple[list[dict[str, Tensor]], Sequence[Batch], Tensor | None, Tensor | None, Sequence[Rollout]]
"""Scores of each step, what they were measured on, accuracies by instance, environment steps, and practice."""


def _control(learner: Learner, params: Params, tasks: Tasks, asked: _Asked) -> Steps:
    share = 0.5 if asked.mean else 1.0
    adapted = adapt(
        learner, params, tasks, asked.steps, asked.seed, asked.device, lambda done: asked.progress(share * done)
    )
    practice = [one.rollout for one in adapted]
    rollouts = list(_without_noise(learner, tasks, adapted, asked)) if asked.mean else practice
    scores = [objectives.scores(learner.spec.kind, rollout) for rollout in rollouts]
    scores = [{name: values for name, values in step.items() if _told_in_all(name, scores)} for step in scores]
    if any("success" in step for step in scores):  # some environments report success only when there is some
        scores = [{"success": torch.zeros_like(step["return"])} | step for step in scores]
    return scores, tuple(rollouts), None, _learnt_from(learner, practice), tuple(practice)


def _told_in_all(name: str, scores: Sequence[Mapping[str, Tensor]]) -> bool:
    """Return whether a score is that of every step, or no number of infos, which some may not tell."""
    return not name.startswith(objectives.MEASURES) or all(name in step for step in scores)


def _without_noise(learner: Learner, tasks: Tasks, adapted: Sequence[Adapted], asked: _Asked) -> Iterator[Rollout]:
    environments, certain = environments_of(tasks), acting_by_the_mean(learner)
    for step, one in enumerate(adapted):
        generator = stream(asked.seed, "evaluation/mean", step, device=asked.device)
        yield environments.rollout(policy_of(certain, one.state), generator)
        asked.progress(0.5 + 0.5 * (step + 1) / len(adapted))


def _examples(learner: Learner, params: Params, tasks: Tasks, asked: _Asked) -> Steps:
    if isinstance(tasks, DrawsGroups):
        groups, queries = drawn_in_groups(learner, tasks, asked.seed, asked.device)
    else:
        groups, queries = drawn_at_once(learner, tasks, asked.seed, asked.device)
    results, done = [], 0
    for descriptors, support, query in groups:
        results.append(_scores(learner, params, (descriptors, support, query), asked.steps))
        done += len(descriptors)
        asked.progress(done / len(tasks.descriptors))
    first, _ = results[0]
    scores = [
        {name: torch.cat([group_scores[step][name] for group_scores, _ in results]) for name in first[step]}
        for step in range(asked.steps + 1)
    ]
    instances = [group_instances for _, group_instances in results if group_instances is not None]
    return scores, queries, torch.cat(instances, dim=1).cpu() if instances else None, None, ()


def _check_finite(*batches: Examples) -> None:
    for role, batch in zip(get_args(Role), batches, strict=True):
        for name, values in vars(batch).items():
            # Not on a GPU: the check would wait for it. There, such numbers show in the scores.
            if values is not None and values.device.type == "cpu" and not values.isfinite().all():
                raise ValueError(f"the {role} {name} that the family drew contain numbers that are not finite")


def _scores(
    learner: Learner, params: Params, group: Group, steps: int
) -> tuple[list[dict[str, Tensor]], Tensor | None]:
    (descriptors, support, query), scores, instances = group, [], None
    state = learner.begin(params, descriptors)
    if learner.memory is not None and learner.spec.kind == "classification" and support.mask is None:
        instances = objectives.instance_accuracies(learner.memory.unroll(state, support)[0], support)
    _check_finite(support, query)
    for step in range(steps + 1):
        outputs, _ = learner.predict(state, query.inputs)
        scores.append(objectives.targeted_scores(learner.spec, descriptors, query, outputs))
        if step < steps:
            state = learner.adapt(state, support)
    return scores, instances
