"""How much of the gap between a pre-trained network and an oracle a run closes. The oracle knows each task.

Unlike returns, this number can be compared across simulators.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarl import origins, runs
from metarl.evaluation.bootstrap import Metrics, resampled
from metarl.files import typed

SAME = ("tasks", "split", "seed", "episodes")
"""Two evaluations can be compared if these, and the family, are equal."""
TRAINING_ONLY = ("train_shots", "train_ways", "queries", "copies")
"""Options of few-shot families that do not affect test tasks."""
FALLS = ("loss",)
"""Scores that are better when they are lower."""
UNDECIDED = 0.025
"""Share of resamples without a gap above which the gap closed has no 95 % interval."""


def gap_closed(
    metrics: Metrics, oracle: Metrics, pretrained: Metrics, among: Sequence[int] | None = None
) -> dict[str, dict[str, float | None]]:
    """Return ``(score - pretrained) / (oracle - pretrained)`` for every score after every number of steps, by name.

    Scores are means over tasks. The pre-trained network's score is taken after the same number of steps; the oracle's
    before any step, because it knows the task. The 95 % interval is a percentile bootstrap over the tasks, which all
    three share, and over the seeds of each that is a group (``of_seeds``); ``among`` are the tasks' strata (see
    ``evaluation.strata``). Scores by instance, which only learners with a memory have, are left out.

    All values are None for a score in which the oracle is not better than the pre-trained network: there is no gap.
    The interval is None for a single task, and where 1 of 40 resamples or more has no gap.
    """
    shares = {}
    for name, own in metrics.items():
        if "/step_" not in name:
            continue
        best = oracle[f"{name.partition('/')[0]}/step_0"]
        ours, knowing, given = (_by_seed(one) for one in (own, best, pretrained[name]))
        shares[name] = _share(ours, knowing, given, among, _sign(name))
    return shares


def of_seeds(metrics: Sequence[Metrics]) -> dict[str, dict[str, Any]]:
    """Join the scores of several seeds on the same tasks, for ``gap_closed``: means, and ``per_seed [seed, task]``."""
    names = [name for name in metrics[0] if all(name in one for one in metrics)]
    per_seed = {name: np.array([one[name]["per_task"] for one in metrics], float) for name in names}
    return {name: {"mean": float(rows.mean()), "per_seed": rows.tolist()} for name, rows in per_seed.items()}


def _by_seed(values: Mapping[str, Any]) -> np.ndarray:
    """Return a score ``[seed, task]``."""
    return np.array(values["per_seed"] if "per_seed" in values else [values["per_task"]], float)


def falls(name: str) -> bool:
    """Return whether a score, such as loss/step_1, is better when it is lower."""
    return name.partition("/")[0] in FALLS


def _sign(name: str) -> int:
    return -1 if falls(name) else 1


def _share(
    own: np.ndarray, oracle: np.ndarray, pretrained: np.ndarray, among: Sequence[int] | None, sign: int
) -> dict[str, float | None]:
    gap, tasks = oracle.mean() - pretrained.mean(), own.shape[1]
    if not sign * gap > 0:
        return {"mean": None, "low": None, "high": None}
    mean = float((own.mean() - pretrained.mean()) / gap)
    chosen = resampled(tasks, among)  # the same tasks for all three
    ours, knowing, given = (_means(scores, chosen, kind) for kind, scores in enumerate((own, oracle, pretrained)))
    gains, gaps = ours - given, knowing - given
    usable = sign * gaps > 0
    if tasks == 1 or 1 - usable.mean() >= UNDECIDED:
        return {"mean": mean, "low": None, "high": None}
    low, high = np.percentile(gains[usable] / gaps[usable], [2.5, 97.5]).tolist()
    return {"mean": mean, "low": low, "high": high}


def _means(scores: np.ndarray, tasks: np.ndarray, kind: int) -> np.ndarray:
    """Return the mean of scores ``[seed, task]`` in each resample of tasks ``[resample, task]``, and of seeds."""
    seeds = np.random.default_rng([1, kind]).integers(len(scores), size=(len(tasks), len(scores)))
    means: np.ndarray = scores[seeds[:, :, None], tasks[:, None, :]].mean((1, 2))
    return means


def check_oracle(oracle: Metrics, pretrained: Metrics, steps: int) -> None:
    """Raise RunError if the oracle is better than the pre-trained network in no score after 0 to ``steps`` steps."""
    told = []
    for name, values in pretrained.items():
        score, _, step = name.partition("/step_")
        best = oracle.get(f"{score}/step_0")
        if not step or int(step) > steps or best is None:
            continue
        if _sign(name) * (best["mean"] - values["mean"]) > 0:
            return
        told.append(f"{name}: {best['mean']:.4g} against {values['mean']:.4g}")
    if told:
        raise runs.RunError(
            f"the oracle is not better than the pre-trained network ({'; '.join(told)}), so there is no gap to close: "
            "train the oracle for longer, or check which run is which"
        )


class AtSteps(NamedTuple):
    """A run's score with a budget of environment steps in each task."""

    adaptations: int
    """Adaptation steps taken within the budget."""
    used: float
    """Environment steps of a task that they took, on average."""
    score: Mapping[str, Any]
    """Mean, interval and tasks' scores after them."""


def at_environment_steps(record: Mapping[str, Any], name: str, budget: float) -> AtSteps:
    """Return a run's score ``name`` ("return") after the last adaptation step that a budget of data allows.

    So learners that take different amounts of data in an adaptation step, as MAML (all episodes of a task) and RL^2
    (one episode in each lane), are compared at equal numbers of environment steps. ``record`` is what
    ``metarl evaluate`` writes; ``budget`` is the number of environment steps of one task that a policy may learn from.

    Raises:
        ValueError: the record has no such score, or was written without counts of environment steps.
    """
    counts = record.get("environment_steps")
    if not isinstance(counts, list) or not counts:
        raise ValueError("this evaluation did not count environment steps: evaluate the run again")
    if budget < 0:
        raise ValueError(f"a budget of {budget} environment steps: expected at least 0")
    within = [step for step, used in enumerate(counts) if used <= budget and f"{name}/step_{step}" in record["metrics"]]
    if not within:
        raise ValueError(f"this evaluation has no score {name!r}: expected {', '.join(_names(record['metrics']))}")
    return AtSteps(within[-1], counts[within[-1]], record["metrics"][f"{name}/step_{within[-1]}"])


def _names(metrics: Metrics) -> list[str]:
    return sorted({name.partition("/step_")[0] for name in metrics if "/step_" in name})


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
    if _without_noise(record) != _without_noise(asked):
        raise runs.RunError(
            f"{folder} was evaluated with mean={_without_noise(record)}, not {_without_noise(asked)}; {again}"
        )
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


def apart(one: Mapping[str, Any], other: Mapping[str, Any], *more: str) -> str | None:
    """Tell in what two evaluations differ that makes them incomparable, as "NAME=VALUE, and VALUE"; None if nothing.

    Compared are the tasks that they were measured on, how actions were chosen, and what else is named in ``more``.
    """
    if _without_noise(one) != _without_noise(other):
        return f"mean={_without_noise(one)}, and {_without_noise(other)}"
    for name in (*SAME, *more):
        if one.get(name) != other.get(name):
            return f"{name}={one.get(name)}, and {other.get(name)}"
    ours, theirs = (_family(record.get("family", {})) for record in (one, other))
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            return f"{name}={ours.get(name)}, and {theirs.get(name)}"
    if (changed := _changed(one.get("definition"), other.get("definition"))) is not None:
        return f"other tasks ({changed})"
    rows = one.get("parameters"), other.get("parameters")
    return None if None in rows or rows[0] == rows[1] else "other sampled tasks"


def _without_noise(record: Mapping[str, Any]) -> bool:
    """Return whether policies took their most likely actions; earlier versions, and baselines, say it otherwise."""
    return bool(record.get("mean") or record.get("deterministic"))


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
            lines.append(f"{name:<20} {'none':>10}   the oracle is not better than the pre-trained network")
        elif low is None or high is None:
            lines.append(f"{name:<20} {mean:>10.1%}   no interval: one task, or a gap that is not clearly above 0")
        else:
            lines.append(f"{name:<20} {mean:>10.1%}   [{low:.1%}, {high:.1%}]")
    return "\n".join(lines)
