"""``metarl evaluate RUN_OR_GROUP``: scores after 0..k adaptation steps on held-out tasks."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from metarl import evaluation, origins, plugins, runs, training
from metarl.cli import DONE, Execute
from metarl.commands import elsewhere, groups
from metarl.commands.groups import OTHER_TASKS
from metarl.commands.parsing import parse
from metarl.control import resampled
from metarl.evaluation import comparison, predictions, ranges
from metarl.fewshot import own_units
from metarl.files import check_place
from metarl.pictures import plotting
from metarl.pictures import predictions as drawn
from metarl.runs import logger
from metarl.safety import time_limit
from metarl.speed import Device
from metarl.trained import Trained, check_recording, save_rollouts
from metarl.types import Family, Learner, Pictured, Split, Tasks, Units, valid

Metrics = Mapping[str, Mapping[str, Any]]

MOST_NUMBERS = 64
"""Of a task parameter that evaluation.json records; matrices of transitions are longer."""
EVALUATED = ("tasks", "split", "seed", "steps", "checkpoint", "schedule", "episodes", "mean")
"""Options that evaluation.json records."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``metarl evaluate``."""

    run: Positional[Path]
    """Run folder, group of seeds, or pretrained:NAME."""
    tasks: int = 40
    """Held-out tasks to adapt to."""
    steps: int | None = None
    """Adaptation steps. Scores are reported after 0, 1, ..., this many steps. By default 3, or as many as in training
    where those are more, or 1 for learners with memory on labelled examples."""
    split: Split = "test"
    """Split of the tasks."""
    seed: int = 0
    """Seed of the tasks and of all random numbers in adaptation."""
    checkpoint: runs.Checkpoint = "last"
    """last: the last one; best: that with the best training score (the MAML paper's protocol); validated: that with the
    best validation score; previous: the one before the last; or a kept one, such as checkpoint-100."""
    schedule: tuple[float, ...] | None = None
    """Factors of the inner step size at steps 1, 2, ...; by default the run's own."""
    episodes: int | None = None
    """Episodes before each adaptation step; by default the run's own."""
    mean: bool = False
    """Score policies without noise: they take their most likely actions, as a robot will. They adapt to episodes with
    noise, as in training."""
    on: str | None = None
    """Evaluate on another family instead: an installed name, or module:attribute, such as the same family with wider
    ranges; or NAME:PATH, an installed one with another folder or file, such as images:/data/birds. It needs the same
    observations and actions, or inputs and outputs."""
    oracle: Path | None = None
    """Evaluated run, or group of seeds, of an algorithm that observes the task parameters. With --pretrained, it gives
    the gap closed:
    (score - pretrained) / (oracle - pretrained)."""
    pretrained: Path | None = None
    """Evaluated run, or group of seeds, of a network that was trained on all tasks together. Needs --oracle."""
    references: bool = True
    """For control: also score zero actions and random actions on the same tasks, in up to five episodes of each."""
    allow_changes: bool = False
    """Evaluate with what the run's module:name is now, also if it has changed since training."""
    device: Device = "auto"
    """Device for networks and data; auto uses cuda if it is available."""
    step_timeout: float | None = 600.0
    """Seconds that one step or reset of an environment may take; None: no limit."""
    save_rollouts: str | None = None
    """Save the episodes of policies, of all tasks and steps: a file that ends in .npz, for NumPy and metarl adapt
    --data; or minari:NAME-v0, a data set of Minari (pip install 'metarl-toolkit[minari]')."""
    out: Path | None = None
    """File to write, ending in .json; pictures are written beside it, and nothing into the run folder. By default
    evaluation.json in the run folder; the previous one is kept as evaluation-1.json, evaluation-2.json, ... Of
    pretrained:NAME, scores are only printed by default. Of a group, every run is evaluated, and all joined."""
    allow_code: bool = False
    """Import code that the run names outside of installed plugins, also if you did not train it here."""

    def __post_init__(self) -> None:
        if self.out is not None:
            if self.out.suffix != ".json":
                raise ValueError(f"--out {self.out}: expected a file that ends in .json")
            if os.path.lexists(self.out):
                raise ValueError(f"--out {self.out} exists: nothing is overwritten; choose another file")
            check_place(self.out)
        if self.save_rollouts is not None:
            check_recording(self.save_rollouts)
        if (self.oracle is None) != (self.pretrained is None):
            raise ValueError("--oracle and --pretrained must be given together: the gap is measured between them")
        if self.step_timeout is not None and not self.step_timeout > 0:
            raise ValueError(f"--step-timeout {self.step_timeout}: expected more than 0 seconds, or None")
        if self.tasks < 1:
            raise ValueError(f"--tasks {self.tasks}: expected at least 1")
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"--steps {self.steps}: expected at least 0")


EVALUATE_HELP = """Adapt to held-out tasks, and score every adaptation step.

Options of the run's algorithm and tasks can be changed, such as --algorithm.step-size 0.05 or --tasks.shots 5."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN``: scores after 0..k adaptation steps on held-out tasks."""
    changes = any(word.startswith(("--algorithm.", "--tasks.")) for word in arguments)
    chosen = parse(EvaluateOptions, arguments, "evaluate", EVALUATE_HELP, partial=changes)
    words = arguments if changes else None
    if groups.is_group(chosen.run):
        if chosen.save_rollouts is not None:
            raise ValueError(f"--save-rollouts is for one run, and {chosen.run} is a group: name one of its runs")
        return groups.evaluated(chosen, lambda one: _of_run(one, words), lambda record: _compared(chosen, record))
    return _of_run(chosen, words)


def _of_run(chosen: EvaluateOptions, changes: list[str] | None) -> Execute:
    if chosen.out is not None or plugins.is_pretrained(chosen.run):
        return _prepared(chosen, changes)
    runs.read_config(chosen.run)  # first, so that no lock is written into a folder without a run
    held = runs.claim(chosen.run, "evaluating", runs.EVALUATION_LOCK)
    try:
        execute = _prepared(chosen, changes)
    except BaseException:
        held.release()
        raise

    def execute_and_release() -> int:
        with held:
            return execute()

    return execute_and_release


def _prepared(chosen: EvaluateOptions, changes: list[str] | None) -> Execute:
    """Load the run and those that it is compared with. ``changes``: the command line, if it changes options."""
    folder = plugins.run_folder(chosen.run)
    run = _evaluated(chosen, folder, changes)
    config = runs.read_config(folder)
    if chosen.tasks >= 1:  # asked before anything is run: a family may have fewer tasks
        evaluation.sample_tasks(run.family, chosen.tasks, chosen.split, chosen.seed)
    trained_on = runs.rebuild(config["tasks"], "tasks")
    asked = _asked(chosen, run, config, trained_on)
    compared = _compared(chosen, asked)
    trained_in = _training_ranges(trained_on)

    def execute() -> int:
        with time_limit(chosen.step_timeout):
            found = _scores(chosen, run, asked["steps"])
        metrics = found.metrics if chosen.steps is not None else _without_repetition(found.metrics)
        asked["steps"] = max(int(name.rpartition("_")[2]) for name in metrics if "/step_" in name)
        record = {"metrics": metrics, **asked, **_circumstances(found, run), **trained_in}
        record |= _references(chosen, run)
        print(evaluation.table({**metrics, **record.get("references", {})}, run.learner.batch_norm))
        _tell_differences(found.tasks, record)
        if compared:
            record |= groups.gap_record(chosen, metrics, compared, record["strata"])
            print(comparison.table(record["gap_closed"]))
        _keep(chosen, run, found, record)
        return DONE

    return execute


def _asked(chosen: EvaluateOptions, run: Trained, config: Mapping[str, Any], trained_on: Family) -> dict[str, Any]:
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


def _tell_differences(tasks: Tasks, record: Mapping[str, Any]) -> None:
    """Print in what the evaluated tasks differ from those of training."""
    if "differs" in record:
        print(f"{OTHER_TASKS}: {record['differs']}")
    values = ranges.columns(ranges.numbers_of(tasks, MOST_NUMBERS))
    if (beyond := ranges.told(values, record.get("training_ranges", {}))) is not None:
        print(beyond)


def _training_ranges(family: Family) -> dict[str, Any]:
    """Return the ranges of the parameters of training tasks, where the data to sample these are still there."""
    try:
        return {"training_ranges": {name: list(ends) for name, ends in ranges.training_ranges(family).items()}}
    except (ValueError, OSError):  # of other data that --tasks.root names, scores are asked for, and these may be gone
        return {}


def _scores(chosen: EvaluateOptions, run: Trained, steps: int) -> evaluation.Evaluation:
    asked = chosen.tasks, steps, chosen.split, chosen.seed, run.device, chosen.mean
    name = plugins.run_folder(chosen.run).resolve().name
    with logger.open_bar(f"evaluating {name}") as progress, warnings.catch_warnings():
        warnings.simplefilter("error", evaluation.DivergenceWarning)
        try:
            return evaluation.evaluate(run.learner, run.params, run.family, *asked, progress)
        except evaluation.DivergenceWarning as told:
            raise runs.RunError(f"{told}; nothing is written") from None


def _references(chosen: EvaluateOptions, run: Trained) -> dict[str, Any]:
    """Return the scores of policies that know nothing, on the same tasks, where they are asked for."""
    if not chosen.references or not run.learner.spec.control:
        return {}
    with time_limit(chosen.step_timeout), logger.open_bar("scoring policies that know nothing") as progress:
        asked = chosen.tasks, chosen.split, chosen.seed, run.device
        return {"references": evaluation.references(run.family, *asked, progress)}


def _compared(chosen: EvaluateOptions, asked: Mapping[str, Any]) -> list[Metrics]:
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


def _circumstances(found: evaluation.Evaluation, run: Trained) -> dict[str, Any]:
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


def _keep(chosen: EvaluateOptions, run: Trained, found: evaluation.Evaluation, record: dict[str, Any]) -> None:
    """Write an evaluation, where it is one of a run's own, and the episodes, where they are asked for."""
    if chosen.out is not None or not plugins.is_pretrained(chosen.run):
        _write(chosen, run, found, record)
    if chosen.save_rollouts is not None:
        print(f"saved the episodes: {save_rollouts(chosen.save_rollouts, found, run.family)}")


def _write(chosen: EvaluateOptions, run: Trained, found: evaluation.Evaluation, record: dict[str, Any]) -> None:
    """Write an evaluation and its pictures, into the run folder or beside the file ``--out``."""
    if chosen.out is None:
        folder, prefix = chosen.run, ""
        if (kept := runs.write_evaluation(folder, record)) is not None:
            print(f"kept the evaluation before this one as {kept}")
    else:
        folder, prefix = chosen.out.parent, f"{chosen.out.stem}-"
        folder.mkdir(parents=True, exist_ok=True)
        runs.write_record(chosen.out, record)
        print(f"wrote {chosen.out}")
    name = plugins.run_folder(chosen.run).resolve().name
    pictures = [plotting.adaptation_curve({name: record}, folder / f"{prefix}adaptation.png")]
    if isinstance(run.family, Pictured):
        pictures.append(run.family.picture(found.tasks, found.queries, folder / f"{prefix}tasks.png"))
    if predictions.has_pictures(run.learner):
        shown = predictions.predicted(run.learner, run.params, found.tasks, record["steps"], chosen.seed, run.device)
        pictures.append(_drawn(shown, own_units(run.family), folder / f"{prefix}predictions.png"))
    if chosen.out is None:
        logger.write_adaptation(folder, record["metrics"], pictures[0])
    for picture in pictures:
        print(f"wrote {picture}")


def _drawn(shown: predictions.Predicted, units: Units, path: Path) -> Path:
    parts = []
    for examples in (shown.support, shown.query):
        images = examples.inputs if units.inputs is None else units.inputs.undo(examples.inputs)
        parts += [images, examples.targets.masked_fill(valid(examples) == 0, -1)]
    support, support_classes, query, query_classes = (values.numpy(force=True) for values in parts)
    classes = shown.classes.numpy(force=True)
    return drawn.predictions(support, support_classes, query, query_classes, classes, path)


def _without_repetition(metrics: Metrics) -> Metrics:
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


def _evaluated(chosen: EvaluateOptions, folder: Path, changes: list[str] | None) -> Trained:
    """Rebuild the run with the options of the evaluation."""
    recorded = training.recorded(folder, chosen.device, chosen.allow_changes, chosen.allow_code)
    algorithm, trained_on = recorded.algorithm, recorded.tasks
    family = trained_on if chosen.on is None else elsewhere.other_family(chosen.on, trained_on, changes or [])
    if changes is not None:
        fields: list[Any] = [
            ("request", OmitArgPrefixes[EvaluateOptions]),
            ("algorithm", type(algorithm), algorithm),
            ("family", Annotated[type(family), arg(name="tasks")], family),
        ]
        both = parse(dataclasses.make_dataclass("Evaluate", fields), changes, "evaluate", EVALUATE_HELP)
        algorithm, family = (
            plugins.absolute_paths(plugins.checked_options(part)) for part in (both.algorithm, both.family)
        )
    config = runs.read_config(folder)
    if chosen.on is None and not elsewhere.has_other_folder(family, trained_on):
        origins.check_data(config, family, folder)
    algorithm = _with_option(algorithm, "schedule", chosen.schedule)
    family = family if chosen.episodes is None else resampled(family, episodes=chosen.episodes)
    # Changed, or another one, it would have units of its own.
    family = origins.in_recorded_units(config, family)
    origins.check_units(config, family)
    asked = dataclasses.replace(recorded, algorithm=algorithm, tasks=family)
    return training.opened(asked, runs.checkpoint(folder, chosen.checkpoint), chosen.split)


def _steps(learner: Learner) -> int:
    """Return the default number of steps. A memory is trained to read the support items once."""
    return 1 if learner.memory is not None and not learner.spec.control else max(3, learner.adaptations)


def _with_option(target: Any, name: str, value: Any) -> Any:
    if value is None:
        return target
    if not hasattr(target, name):
        raise ValueError(f"{type(target).__name__} has no option {name}, so --{name} cannot be given")
    return dataclasses.replace(target, **{name: value})
