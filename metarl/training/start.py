"""Starting a run, going on with one, and opening one."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from metarl import plugins, runs
from metarl.control import check_tasks
from metarl.files import expanded
from metarl.outer import default_outer
from metarl.runs import logger
from metarl.seeding import stream
from metarl.speed import Device, resolve_device, usual_modes
from metarl.trained import Trained
from metarl.training.data import check_data, recorded_data
from metarl.training.loop import Run
from metarl.training.progress import Callback, Progress
from metarl.training.settings import Settings, default_settings
from metarl.types import Algorithm, ChecksSplits, Family, Outer, Params, Split


@usual_modes()
def train(
    algorithm: Algorithm | str,
    family: Family | str,
    outer: Outer | str | None = None,
    settings: Settings | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    quiet: bool = True,
    start_from: Params | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trained:
    """Meta-train an algorithm on a family of tasks.

    ``algorithm``, ``family`` and ``outer`` are objects, or installed names (with their default options). ``outer`` is
    by default the algorithm's own, else TRPO for control and Adam otherwise. With ``out``, everything goes into that
    run folder. Meta-parameters begin with those of ``start_from``, by name; the others are drawn.

    Raises:
        ValueError: an option or a combination is wrong, or out holds a run already (RunError).
        TrainingError: several meta-gradients in a row were not finite.
        RolloutError: an environment broke.
    """
    update = None if outer is None else source("outers", outer)
    run = start(source("algorithms", algorithm), source("tasks", family), update, settings, out, overwrite, start_from)
    return run.train(run.first(), quiet, callbacks)


@usual_modes()
def resume(
    folder: Path | str,
    iterations: int | None = None,
    quiet: bool = True,
    callbacks: Sequence[Callback] = (),
    device: Device | None = None,
) -> Trained:
    """Go on with a run exactly where its checkpoint stands; ``iterations`` may change the number to reach.

    ``device`` is where to go on, by default where it was trained; the run folder keeps what it says of that.

    Raises:
        RunError: the folder holds no usable run, or it has reached its last iteration.
        ValueError: the device cannot be had.
    """
    run, progress = reopen(expanded(folder), iterations, device)
    return run.train(progress, quiet, callbacks)


@usual_modes()
def open_run(folder: Path | str, checkpoint: runs.Checkpoint = "last", device: Device = "auto") -> Trained:
    """Open a run folder with its last parameters, or those of the best score in training or on validation tasks.

    ``pretrained:NAME`` opens a run that an installed package ships. What it returns is what ``train`` returned; its
    rows are those of the whole run, up to the checkpoint.

    Raises:
        RunError: the folder holds no usable run, or no such checkpoint.
        PluginError: its algorithm or its task family is not installed, or no pretrained run has this name.
    """
    folder = expanded(plugins.run_folder(folder))
    algorithm, family, _, settings = recorded(folder, device)
    check_data(runs.read_config(folder), family, folder)
    found = opened(algorithm, family, settings, runs.checkpoint(folder, checkpoint))
    return replace(found, rows=logger.read_rows(folder / runs.PROGRESS, found.iteration))


def opened(algorithm: Algorithm, family: Family, settings: Settings, path: Path, split: Split = "train") -> Trained:
    """Load a checkpoint of an algorithm trained on a family, for use on tasks of a split. It has no rows.

    Raises:
        RunError: the checkpoint cannot be read, or holds parameters of another network.
        ValueError: the algorithm does not support the family, the family's environments do not match its spec, or the
            split has too few classes.
    """
    device, learner = resolve_device(settings.device), algorithm.build(family.spec)
    check_tasks(family, split)
    saved = runs.load_progress(path, device)
    runs.check_architecture(learner.init(stream(settings.seed, "initialisation")), saved["params"], path)
    interrupted = saved["iteration"] < settings.iterations
    return Trained(algorithm, family, learner, saved["params"], device, saved["iteration"], interrupted=interrupted)


class Source(NamedTuple):
    """An algorithm, a family or an outer update, and the name or ``module:attribute`` that was asked for, if any."""

    target: Any
    reference: str | None = None


Make = Callable[[type], Any]


def source(group: plugins.Group, target: Any, make: Make = lambda kind: kind()) -> Source:
    """Return an object as it is, or load a name, of which ``make`` makes an object. Raises PluginError."""
    if not isinstance(target, str):
        return Source(target)
    loaded = plugins.load(group, target)
    try:
        return Source(make(loaded) if isinstance(loaded, type) else loaded, target)
    except TypeError as error:
        raise plugins.PluginError(
            f"{target} cannot be made without options ({error}): give its fields defaults, or bind an object of it to "
            "a name and pass 'module:name'"
        ) from error


def start(
    algorithm: Source,
    family: Source,
    outer: Outer | Source | None = None,
    settings: Settings | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    start_from: Params | None = None,
    recipe: str | None = None,
) -> Run:
    """Check that everything fits together, and make the run folder. Raises ValueError."""
    folder = None if out is None else expanded(out).absolute()  # families may change the working folder
    algorithm, family = _settled(algorithm), _settled(family)
    update = (
        outer if isinstance(outer, Source) else Source(outer or default_outer(algorithm.target, family.target.spec))
    )
    update = _settled(update)
    _check_logs(settings, folder)
    run = Run(algorithm.target, family.target, update.target, settings or default_settings(family.target.spec), folder)
    _check_splits(family.target, run.settings)
    run.start_from = start_from or {}
    first = run.first()._asdict() if start_from else None
    if folder is not None:
        record: dict[str, Any] = {
            "algorithm": runs.describe(*algorithm),
            "tasks": runs.describe(*family),
            "outer": runs.describe(*update),
            "settings": asdict(run.settings),
            **recorded_data(family.target),
        }
        if recipe is not None:
            record |= {"recipe": recipe, "recipe_sha256": plugins.recipe_hash(recipe)}
        if start_from:
            record["start_from"] = sorted(start_from)
        run.claim = runs.create(folder, record, overwrite, first)
    return run


def _settled(source: Source) -> Source:
    """Return what was asked for with options that mean the same elsewhere. Raises ValueError for a wrong type."""
    return source._replace(target=plugins.absolute_paths(plugins.checked_options(source.target)))


def _check_splits(family: Family, settings: Settings) -> None:
    """Raise ValueError where test tasks, or validation tasks that are asked for, could never be sampled."""
    if not isinstance(family, ChecksSplits):
        return
    family.check_split("test")
    try:
        family.check_split("validation")
    except ValueError as error:
        if settings.validate_every is not None:
            raise
        warnings.warn(f"{error}: no validation will be possible", stacklevel=4)


def _check_logs(settings: Settings | None, folder: Path | None) -> None:
    """Raise ValueError where a package that logs need is missing."""
    if folder is not None:
        logger.import_writers()
    if settings is not None and settings.wandb is not None:
        if folder is None:
            raise ValueError(f"wandb={settings.wandb!r} needs a run folder: give out too")
        logger.import_wandb()


class Recorded(NamedTuple):
    """What a run folder says that it trains."""

    algorithm: Algorithm
    family: Family
    outer: Outer
    settings: Settings


def recorded(folder: Path, device: Device | None = None) -> Recorded:
    """Rebuild the parts of a run, to be used on ``device`` (default: where it was trained).

    Raises RunError, PluginError or ValueError where that is impossible.
    """
    config = runs.read_config(folder)
    if "baseline" in config:
        raise runs.RunError(
            f"{folder} holds the baseline {config['baseline']}, which does not adapt and is not resumed; "
            f"{runs.EVALUATION} has its scores, and {runs.MODEL} is for Stable-Baselines3"
        )
    algorithm, family, outer = (runs.rebuild(config[name], group) for name, group in runs.GROUPS.items())
    try:
        settings = Settings(**config["settings"])
    except (TypeError, ValueError) as error:
        raise runs.RunError(f"{folder / runs.CONFIG} holds settings that cannot be used: {error}") from error
    return Recorded(algorithm, family, outer, settings if device is None else replace(settings, device=device))


def load(folder: Path, device: Device | None = None) -> Run:
    """Rebuild what a run folder trains. Raises RunError, PluginError or ValueError where that is impossible."""
    parts = recorded(folder, device)
    check_data(runs.read_config(folder), parts.family, folder)
    return Run(*parts, folder)


def reopen(folder: Path, iterations: int | None = None, device: Device | None = None) -> tuple[Run, Progress]:
    """Rebuild a run and where it stands. Raises RunError where there is nothing to go on with."""
    if plugins.is_pretrained(folder):
        raise runs.RunError(f"{folder} is the result of a run, without what is needed to go on with its training")
    if not runs.unfinished(folder):
        runs.read_config(folder)  # nothing is written into a folder that holds no run
    held = runs.claim(folder, "training")
    try:
        runs.put_back(folder)
        run, progress = _reopened(folder, iterations, device)
    except BaseException:
        held.release()
        raise
    run.claim = held
    return run, progress


def _reopened(folder: Path, iterations: int | None, device: Device | None) -> tuple[Run, Progress]:
    run = load(folder, device)
    _check_logs(run.settings, folder)
    config = runs.read_config(folder)
    if iterations is not None:
        run.settings = replace(run.settings, iterations=iterations)
    logger.read_progress(folder / runs.PROGRESS)  # raises RunError where training could not go on with it
    runs.read_curve(folder)
    path = folder / runs.CHECKPOINT
    began = path.exists() or (folder / runs.PREVIOUS).exists()
    if not began and "start_from" in config:
        raise runs.RunError(
            f"{folder} was stopped before it had saved the parameters that it starts from: begin it again, with "
            f"--overwrite{runs.aside_note(folder)}"
        )
    # A run killed before its first checkpoint starts over, from the same seed and so with the same result.
    progress = run.restore(path) if began else run.first()
    if progress.iteration >= run.settings.iterations:
        raise runs.RunError(
            f"{folder} stands at iteration {progress.iteration} of {run.settings.iterations}: nothing is left to do; "
            "ask for more with --iterations"
        )
    if iterations is not None:
        runs.write_record(
            folder / runs.CONFIG, config | {"settings": config["settings"] | {"iterations": run.settings.iterations}}
        )
    return run, progress
