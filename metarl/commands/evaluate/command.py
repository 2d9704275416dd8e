"""Scores after 0..k adaptation steps on held-out tasks, of one run or of a group."""

from metarl import evaluation, plugins, runs
from metarl.cli import DONE, Execute
from metarl.commands import groups
from metarl.commands.evaluate.loading import evaluated
from metarl.commands.evaluate.options import EVALUATE_HELP, EvaluateOptions
from metarl.commands.evaluate.record import asked_for, circumstances, tell_differences, training_ranges
from metarl.commands.evaluate.scoring import compared_with, references, scores, without_repetition
from metarl.commands.evaluate.writing import keep
from metarl.commands.parsing import parse
from metarl.evaluation import comparison
from metarl.safety import time_limit


def prepare(arguments: list[str]) -> Execute:
    """``RUN``: scores after 0..k adaptation steps on held-out tasks."""
    changes = any(word.startswith(("--algorithm.", "--tasks.")) for word in arguments)
    chosen = parse(EvaluateOptions, arguments, "evaluate", EVALUATE_HELP, partial=changes)
    words = arguments if changes else None
    if groups.is_group(chosen.run):
        if chosen.save_rollouts is not None:
            raise ValueError(f"--save-rollouts is for one run, and {chosen.run} is a group: name one of its runs")
        return groups.evaluated(chosen, lambda one: _of_run(one, words), lambda record: compared_with(chosen, record))
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
    run = evaluated(chosen, folder, changes)
    config = runs.read_config(folder)
    # Asked before anything is run: a family may have fewer tasks.
    evaluation.sample_tasks(run.family, chosen.tasks, chosen.split, chosen.seed)
    trained_on = runs.rebuild(config["tasks"], "tasks")
    asked = asked_for(chosen, run, config, trained_on)
    compared = compared_with(chosen, asked)
    trained_in = training_ranges(trained_on)

    def execute() -> int:
        with time_limit(chosen.step_timeout):
            found = scores(chosen, run, asked["steps"])
        metrics = found.metrics if chosen.steps is not None else without_repetition(found.metrics)
        asked["steps"] = max(int(name.rpartition("_")[2]) for name in metrics if "/step_" in name)
        record = {"metrics": metrics, **asked, **circumstances(found, run), **trained_in}
        record |= references(chosen, run)
        print(evaluation.table({**metrics, **record.get("references", {})}, run.learner.batch_norm))
        tell_differences(found.tasks, record)
        if compared:
            record |= groups.gap_record(chosen, metrics, compared, record["strata"])
            print(comparison.table(record["gap_closed"]))
        keep(chosen, run, found, record)
        return DONE

    return execute
