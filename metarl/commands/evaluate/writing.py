"""The files of an evaluation: its record, its pictures, and the episodes that it played."""

from pathlib import Path
from typing import Any

from metarl import evaluation, plugins, runs
from metarl.commands.evaluate.options import EvaluateOptions
from metarl.evaluation import predictions
from metarl.fewshot import own_units
from metarl.pictures import plotting
from metarl.pictures import predictions as drawn
from metarl.runs import logger
from metarl.trained import Trained, save_rollouts
from metarl.types import Pictured, Units, valid


def keep(chosen: EvaluateOptions, run: Trained, found: evaluation.Evaluation, record: dict[str, Any]) -> None:
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
