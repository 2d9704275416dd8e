"""How much of the gap between a pre-trained network and an oracle a run closes. The oracle knows each task.

Unlike returns, this number can be compared across simulators.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metarl import origins, runs
from metarl.files import typed

Metrics = Mapping[str, Mapping[str, Any]]
SAME = ("tasks", "split", "seed", "episodes")
"""Two evaluations can be compared if these, and the family, are equal."""
TRAINING_ONLY = ("train_shots", "train_ways", "queries", "copies")
"""Options of few-shot families that do not affect test tasks."""
RESAMPLES = 1000


def gap_closed(metrics: Metrics, oracle: Metrics, pretrained: Metrics) -> dict[str, dict[str, float | None]]:
    """Return ``(score - pretrained) / (oracle - pretrained)`` for every score after every number of steps, by name.

    Scores are means over tasks. The pre-trained network's score is taken after the same number of steps; the oracle's
    before any step, because it knows the task. The 95 % interval is a percentile bootstrap over the tasks, which all
    three share. All values are None if oracle and pre-trained network have the same score. Scores by instance, which
    only learners with a memory have, are left out.
    """
    shares = {}
    for name, own in metrics.items():
        if "/step_" not in name:
            continue
        best = oracle[f"{name.partition('/')[0]}/step_0"]
        shares[name] = _share(*(np.array(values["per_task"]) for values in (own, best, pretrained[name])))
    return shares


def _share(own: np.ndarray, oracle: np.ndarray, pretrained: np.ndarray) -> dict[str, float | None]:
    gap = oracle.mean() - pretrained.mean()
    if gap == 0:
        return {"mean": None, "low": None, "high": None}
    # Percentile bootstrap: draw tasks with replacement, the same ones for all three.
    chosen = np.random.default_rng(0).integers(len(own), size=(RESAMPLES, len(own)))
    gains = (own - pretrained)[chosen].mean(1)
    gaps = (oracle - pretrained)[chosen].mean(1)
    shares = gains[gaps != 0] / gaps[gaps != 0]
    low, high = np.percentile(shares, [2.5, 97.5]).tolist()
    return {"mean": float((own.mean() - pretrained.mean()) / gap), "low": low, "high": high}


def comparable(folder: Path, asked: Mapping[str, Any], steps: int) -> Metrics:
    """Return the scores in a run's evaluation.json, if they can be compared with the evaluation ``asked`` for.

    Raises:
        RunError: there is no evaluation, or it used other tasks, or fewer adaptation steps than ``steps``.
    """
    again = f"evaluate it again: metarl evaluate {typed(folder)} with the same options"
    if not (folder / runs.EVALUATION).exists():
        raise runs.RunError(f"{folder} has not been evaluated; {again}")
    record = runs.read_evaluation(folder)
    for name in SAME:
        if record.get(name) != asked[name]:
            raise runs.RunError(f"{folder} was evaluated with {name}={record.get(name)}, not {asked[name]}; {again}")
    recorded, wanted = (_family(evaluation.get("family", {})) for evaluation in (record, asked))
    if recorded != wanted:
        names = [name for name in (*recorded, *wanted) if recorded.get(name) != wanted.get(name)]
        difference = f"{names[0]}={recorded.get(names[0])}, not {wanted.get(names[0])}"
        raise runs.RunError(f"{folder} was evaluated on other tasks, with {difference}; {again}")
    if changed := _changed(record.get("definition"), asked.get("definition")):
        raise runs.RunError(f"{folder} was evaluated on other tasks: {changed}; {again}")
    if record["steps"] < steps:
        raise runs.RunError(f"{folder} was evaluated for {record['steps']} steps, fewer than {steps}; {again}")
    metrics: Metrics = record["metrics"]
    return metrics


def _changed(*definitions: Mapping[str, Any] | None) -> str | None:
    """Tell what differs in the tasks of a ``module:name`` between two evaluations; None where nothing is known to."""
    known = [definition for definition in definitions if definition is not None]
    return origins.difference(*map(_of_tests, known)) if len(known) == 2 else None


def _of_tests(definition: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in definition.get("options", {}).items() if name not in TRAINING_ONLY}
    return {**definition, "options": options}


def _family(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the class and the options that determine a family's test tasks, by name."""
    options = {name: value for name, value in described.get("options", {}).items() if name not in TRAINING_ONLY}
    return {"tasks": described.get("reference"), **options}


def table(gap: Mapping[str, Mapping[str, float | None]]) -> str:
    """Render the result of ``gap_closed`` as text, one line for each score."""
    lines = [f"{'gap closed':<20} {'share':>10}   95 % interval"]
    for name, values in gap.items():
        mean, low, high = (values[key] for key in ("mean", "low", "high"))
        if mean is None:
            lines.append(f"{name:<20} {'none':>10}   the oracle and the pre-trained network score the same")
        else:
            lines.append(f"{name:<20} {mean:>10.1%}   [{low:.1%}, {high:.1%}]")
    return "\n".join(lines)
