"""What evaluation.json says of an evaluation, besides its scores."""

from collections.abc import Mapping
from typing import Any

from metarl import evaluation, origins, runs
from metarl.commands import elsewhere
from metarl.commands.evaluate.options import EVALUATED, EvaluateOptions
from metarl.commands.groups import OTHER_TASKS
from metarl.evaluation import ranges
from metarl.trained import Trained
from metarl.types import Family, Learner, Tasks

MOST_NUMBERS = 64
"""Of a task parameter that evaluation.json records; matrices of transitions are longer."""


def asked_for(chosen: EvaluateOptions, run: Trained, config: Mapping[str, Any], trained_on: Family) -> dict[str, Any]:
    """Return what an evaluation was asked for: scores of two runs are compared only where these agree.

    Raises ValueError for --mean where nothing acts.
    """
    if chosen.mean and not run.learner.spec.control:
        raise ValueError(f"--mean is for policies, which act: {chosen.run} learns {run.learner.spec.kind}")
    if chosen.save_rollouts is not None and not run.learner.spec.control:
        raise ValueError(f"--save-rollouts is for episodes of policies: {chosen.run} learns {run.learner.spec.kind}")
    algorithm, tasks = config["algorithm"]["reference"], config["tasks"]["reference"]
    if chosen.on is not None:
        tasks, _ = elsewhere.name_and_place(chosen.on)
    asked = {name: getattr(chosen, name) for name in EVALUATED}
    asked["steps"] = _steps(run.learner) if chosen.steps is None else chosen.steps
    asked |= {"algorithm": runs.describe(run.algorithm, algorithm), "family": runs.describe(run.family, tasks)}
    if (differs := elsewhere.differing(run.family, trained_on, (tasks, config["tasks"]["reference"]))) is not None:
        asked["differs"] = differs
    definition = origins.defined(run.family, tasks, revisions=False)
    return asked if definition is None else asked | {"definition": definition}


def _steps(learner: Learner) -> int:
    """Return the default number of steps. A memory is trained to read the support items once."""
    return 1 if learner.memory is not None and not learner.spec.control else max(3, learner.adaptations)


def tell_differences(tasks: Tasks, record: Mapping[str, Any]) -> None:
    """Print in what the evaluated tasks differ from those of training."""
    if "differs" in record:
        print(f"{OTHER_TASKS}: {record['differs']}")
    values = ranges.columns(ranges.numbers_of(tasks, MOST_NUMBERS))
    if (beyond := ranges.told(values, record.get("training_ranges", {}))) is not None:
        print(beyond)


def training_ranges(family: Family) -> dict[str, Any]:
    """Return the ranges of the parameters of training tasks, where the data to sample these are still there."""
    try:
        return {"training_ranges": {name: list(ends) for name, ends in ranges.training_ranges(family).items()}}
    except (ValueError, OSError):  # of other data that --tasks.root names, scores are asked for, and these may be gone
        return {}


def circumstances(found: evaluation.Evaluation, run: Trained) -> dict[str, Any]:
    """Return what the scores of an evaluation depend on, besides what was asked for."""
    used = found.environment_steps
    return {
        "batch_norm": run.learner.batch_norm,
        "iteration": run.iteration,
        "versions": runs.versions(),
        "strata": evaluation.strata(found.tasks),
        "parameters": _parameters(found.tasks),
        **origins.recorded_units(run.family),
        **({} if used is None else {"environment_steps": used.mean(1).tolist()}),
    }


def _parameters(tasks: Tasks) -> dict[str, Any]:
    """Return the tasks' parameters ``[task, ...]``, those of a few numbers, in the order of the scores."""
    return {
        name: values.tolist()
        for name, values in tasks.parameters.items()
        if values[0].numel() <= MOST_NUMBERS and bool(values.isfinite().all())
    }
