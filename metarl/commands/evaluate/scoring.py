"""The scores of a run on held-out tasks, and those that they are compared with."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarl import evaluation, plugins, runs
from metarl.commands import groups
from metarl.commands.evaluate.options import EvaluateOptions
from metarl.evaluation import comparison
from metarl.runs import logger
from metarl.safety import time_limit
from metarl.trained import Trained

Metrics = Mapping[str, Mapping[str, Any]]


def scores(chosen: EvaluateOptions, run: Trained, steps: int) -> evaluation.Evaluation:
    """Adapt to the held-out tasks. Raises RunError where that diverges."""
    asked = chosen.tasks, steps, chosen.split, chosen.seed, run.device, chosen.mean
    name = plugins.run_folder(chosen.run).resolve().name
    with logger.open_bar(f"evaluating {name}") as progress, warnings.catch_warnings():
        warnings.simplefilter("error", evaluation.DivergenceWarning)
        try:
            return evaluation.evaluate(run.learner, run.params, run.family, *asked, progress)
        except evaluation.DivergenceWarning as told:
            raise runs.RunError(f"{told}; nothing is written") from None


def references(chosen: EvaluateOptions, run: Trained) -> dict[str, Any]:
    """Return the scores of policies that know nothing, on the same tasks, where they are asked for."""
    if not chosen.references or not run.learner.spec.control:
        return {}
    with time_limit(chosen.step_timeout), logger.open_bar("scoring policies that know nothing") as progress:
        asked = chosen.tasks, chosen.split, chosen.seed, run.device
        return {"references": evaluation.references(run.family, *asked, progress)}


def without_repetition(metrics: Metrics) -> Metrics:
    """Leave out last steps that change no task's score: metric learners learn everything in one step."""
    steps = sorted({int(name.rpartition("_")[2]) for name in metrics if "/step_" in name})
    while len(steps) > 2 and all(
        values == metrics[f"{name.rpartition('_')[0]}_{steps[-2]}"]
        for name, values in metrics.items()
        if name.endswith(f"/step_{steps[-1]}")
    ):
        metrics = {name: values for name, values in metrics.items() if not name.endswith(f"/step_{steps[-1]}")}
        steps.pop()
    return metrics


def compared_with(chosen: EvaluateOptions, asked: Mapping[str, Any]) -> list[Metrics]:
    """Return the scores of the oracle and of the pre-trained run, if they are asked for. Raises RunError."""
    compared = [
        _known(run, asked, steps)
        for run, steps in ((chosen.oracle, 0), (chosen.pretrained, asked["steps"]))
        if run is not None
    ]
    if compared:
        comparison.check_oracle(compared[0], compared[1], asked["steps"])
    return compared


def _known(run: Path, asked: Mapping[str, Any], steps: int) -> Metrics:
    """Return the scores of an evaluated run, or of all seeds of a group."""
    if not groups.is_group(run):
        return comparison.comparable(plugins.run_folder(run), asked, steps)
    seeds = groups.read_group(run).runs.values()
    return comparison.of_seeds([comparison.comparable(folder, asked, steps) for folder in seeds])
