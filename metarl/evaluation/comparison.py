"""How much of the gap between a pre-trained network and an oracle, which knows each task, a run closes.

It is the number that can be compared across simulators.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metarl import runs

Metrics = Mapping[str, Mapping[str, Any]]
SAME = ("tasks", "split", "seed", "episodes")
"""What two evaluations must have in common, beside the family, to be compared."""
TRAINING_ONLY = ("train_shots", "train_ways", "queries", "copies")
"""Options of few-shot families that test tasks do not depend on."""
RESAMPLES = 1000


def gap_closed(metrics: Metrics, oracle: Metrics, pretrained: Metrics) -> dict[str, dict[str, float | None]]:
    """Return ``(score - pretrained) / (oracle - pretrained)`` of every score after every number of steps, by its name.

    Mean scores are compared, the pre-trained network's after as many steps, the oracle's before the first: it knows the
    task. The 95 % interval is that of the percentile bootstrap over tasks, which all three have in common. All is None
    where the oracle and the pre-trained network score the same. Scores by instance, which only learners with a memory
    have, are left out.
    """
    found = {}
    for name, own in metrics.items():
        if "/step_" not in name:
            continue
        known = oracle[f"{name.partition('/')[0]}/step_0"]
        found[name] = _share(*(np.array(one["per_task"]) for one in (own, known, pretrained[name])))
    return found


def _share(own: np.ndarray, oracle: np.ndarray, pretrained: np.ndarray) -> dict[str, float | None]:
    gap = oracle.mean() - pretrained.mean()
    if gap == 0:
        return {"mean": None, "low": None, "high": None}
    chosen = np.random.default_rng(0).integers(len(own), size=(RESAMPLES, len(own)))
    gains, gaps = (own - pretrained)[chosen].mean(1), (oracle - pretrained)[chosen].mean(1)
    shares = gains[gaps != 0] / gaps[gaps != 0]
    low, high = np.percentile(shares, [2.5, 97.5]).tolist()
    return {"mean": float((own.mean() - pretrained.mean()) / gap), "low": low, "high": high}


def comparable(folder: Path, asked: Mapping[str, Any], steps: int) -> Metrics:
    """Return the scores in a run's evaluation.json, to be compared with those of the evaluation that is ``asked`` for.

    Raises:
        RunError: there are none, or they are of other tasks, or of fewer adaptation steps than ``steps``.
    """
    again = f"evaluate it again: metarl evaluate {folder} with the same options"
    if not (folder / runs.EVALUATION).exists():
        raise runs.RunError(f"{folder} has not been evaluated; {again}")
    record = runs.read_evaluation(folder)
    for name in SAME:
        if record.get(name) != asked[name]:
            raise runs.RunError(f"{folder} was evaluated with {name}={record.get(name)}, not {asked[name]}; {again}")
    told, wanted = (_family(one.get("family", {})) for one in (record, asked))
    if told != wanted:
        names = [name for name in (*told, *wanted) if told.get(name) != wanted.get(name)]
        shown = f"{names[0]}={told.get(names[0])}, not {wanted.get(names[0])}"
        raise runs.RunError(f"{folder} was evaluated on other tasks, with {shown}; {again}")
    if record["steps"] < steps:
        raise runs.RunError(f"{folder} was evaluated for {record['steps']} steps, fewer than {steps}; {again}")
    metrics: Metrics = record["metrics"]
    return metrics


def _family(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a family's test tasks depend on, by name."""
    options = {name: value for name, value in described.get("options", {}).items() if name not in TRAINING_ONLY}
    return {"tasks": described.get("reference"), **options}


def table(gap: Mapping[str, Mapping[str, float | None]]) -> str:
    """Render what ``gap_closed`` returned as text, one line each."""
    lines = [f"{'gap closed':<20} {'share':>10}   95 % interval"]
    for name, values in gap.items():
        mean, low, high = (values[key] for key in ("mean", "low", "high"))
        if mean is None:
            lines.append(f"{name:<20} {'none':>10}   the oracle and the pre-trained network score the same")
        else:
            lines.append(f"{name:<20} {mean:>10.1%}   [{low:.1%}, {high:.1%}]")
    return "\n".join(lines)
