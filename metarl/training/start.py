"""Starting a run, saving that of a loop of one's own, going on with one, and opening one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarl import origins, plugins, runs
from metarl.control import check_tasks
from metarl.files import expanded
from metarl.runs import logger
from metarl.seeding import stream
from metarl.speed import Device, ranks, resolve_device, usual_modes
from metarl.trained import Trained
from metarl.training.experiment import Experiment, Source, check_logs
from metarl.training.loop import Run, read_numbers
from metarl.training.progress import Callback, Progress, training_score
from metarl.training.settings import Settings
from metarl.types import Algorithm, Family, Outer, Params, Split, holding, learner_for


@usual_modes()
def train(  # noqa: PLR0913  # all but two have defaults, and are given by name
    algorithm: Algorithm | str,
    family: Family | str,
    outer: Outer | str | None = None,
    settings: Settings | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    quiet: bool = True,
    start_from: Params | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> Trained:
    """Meta-train an algorithm on a family of tasks.

    ``algorithm``, ``family`` and ``outer`` are objects, or installed names (with their default options). ``outer`` is
    by default the algorithm's own, else TRPO for control and Adam otherwise. With ``out``, everything goes into that
    run folder. Meta-parameters and buffers begin with those of ``start_from``, by name; the others as usual.

    With ``resume``, the same call goes on with the run that it has started in ``out``, and opens one that is done. So a
    script or a notebook can be run again. The number of iterations and the device may be others than at first. Rows are
    those of the whole run.

    Raises:
        ValueError: an option or a combination is wrong, out holds a run already (RunError), or, with resume, a run that
            was begun with other options.
        TrainingError: several meta-gradients in a row were not finite.
        RolloutError: an environment broke.
    """
    experiment = Experiment(algorithm, family, outer, settings)
    if not resume:
        return experiment.train(out, overwrite, quiet, start_from, callbacks)
    if out is None:
        raise ValueError("resume=True goes on with the run of a folder: give out too")
    try:
        run, progress = begin(experiment, out, overwrite, start_from, resume=True)
    except runs.FinishedError:
        return open_run(out, device=experiment.settings.device)
    before = logger.read_rows(expanded(out) / runs.PROGRESS, progress.iteration) if progress.iteration else []
    found = run.train(progress, quiet, callbacks)
    return replace(found, rows=[*before, *found.rows])


def begin(
    experiment: Experiment,
    out: Path | str,
    overwrite: bool = False,
    start_from: Params | None = None,
    resume: bool = False,
) -> tuple[Run, Progress]:
    """Start a run, or with ``resume`` reopen the one that the same experiment has started in the folder.

    Raises:
        ValueError: the folder holds a run already (RunError), or with ``resume`` a run that was begun with other
            options; both ``overwrite`` and ``resume`` are asked for.
        FinishedError: the run is done.
    """
    folder = expanded(out)
    replaced = runs.unfinished(folder)
    if resume and (replaced or (folder / runs.CONFIG).exists()):
        if overwrite:
            raise ValueError("resume goes on with a run and overwrite replaces it: give one of them")
        if not replaced:
            check_same(experiment, folder, start_from)
        return reopen(folder, experiment.settings.iterations, experiment.settings.device)
    run = experiment.start(out, overwrite, start_from)
    return run, run.first()


def check_same(experiment: Experiment, folder: Path, start_from: Params | None = None) -> None:
    """Raise ValueError if the run of a folder was begun with other options, or from other parameters."""
    told = runs.difference(recorded(folder).record(), experiment.record()) or _other_start(folder, start_from or {})
    if told is not None:
        raise ValueError(
            f"{folder} was begun with {told} is asked for now: give the options that it was begun with, or choose "
            "another folder (--out)"
        )


def _other_start(folder: Path, start_from: Params) -> str | None:
    """Tell what a run started from, and what it is asked to start from now; None if it is the same."""
    begun, asked = runs.read_config(folder).get("start_from", {}), runs.digests(start_from)
    if isinstance(begun, list):  # older runs record names only
        begun = {name: asked.get(name, "") for name in begun}
    if begun == asked:
        return None
    if not (begun and asked):
        return "a start (--start-from), and none" if begun else "no start, and one (--start-from)"
    differ = next(name for name in sorted(begun | asked) if begun.get(name) != asked.get(name))
    return f"another start ({differ} differs), and this one"


class Saving:
    """Saves what a loop of one's own reaches, see ``save_run``."""

    def __init__(self, run: Run, log: Callable[[Mapping[str, float]], None]) -> None:
        self.progress = self.first = run.first()
        """Where the run stands: at first, initial meta-parameters and the outer update's first state."""
        self.learner = run.learner
        self.device = run.device
        self._run, self._log, self._saved = run, log, 0

    def __call__(self, progress: Progress, row: Mapping[str, Tensor | float]) -> None:
        """Save what was reached by one more meta-iteration, and its metrics, as scalars by name.

        Its row and checkpoints are written as often as the settings say. ``best.pt`` are the parameters before the
        iteration with the best training score: those that had it.

        Raises:
            ValueError: it is not the next iteration, or its parameters and state are not those of the experiment.
            TrainingError: a parameter is not finite.
        """
        self._check(progress)
        numbers = read_numbers({"iteration": progress.iteration, **row})
        due = progress.iteration % self._run.settings.log_every == 0
        if due:
            self._log(numbers)
        reached = progress._replace(best=self.progress.best)
        self.progress = self._run.save(self.progress, reached, training_score(numbers) if due else None, False)
        if progress.iteration % self._run.settings.checkpoint_every == 0:
            self._saved = progress.iteration

    def end(self) -> None:
        """Write a checkpoint of where the run stands, unless there is one."""
        if self._saved < self.progress.iteration:
            self._run.save(self.progress, self.progress, None, True)
            self._saved = self.progress.iteration

    def _check(self, progress: Progress) -> None:
        expected = self.progress.iteration + 1
        if progress.iteration != expected:
            raise ValueError(f"iteration {progress.iteration} was given to be saved: expected {expected}, the next one")
        ours, theirs = (
            {name: tuple(value.shape) for name, value in (one.params | one.buffers).items()}
            for one in (self.first, progress)
        )
        if ours != theirs:
            name = next(name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name))
            raise ValueError(
                f"the parameter or buffer {name} has shape {theirs.get(name, 'absent')}: the experiment's algorithm "
                f"has {ours.get(name, 'no such one')}"
            )
        assert self._run.folder is not None
        runs.check_state(self.first.outer, progress.outer, self._run.folder / runs.CHECKPOINT)


@contextmanager
def save_run(experiment: Experiment, out: Path | str, overwrite: bool = False, quiet: bool = True) -> Iterator[Saving]:
    """Make the run folder of a training loop of one's own, as ``train`` makes it for metarl's.

    ::

        with save_run(experiment, "runs/own") as save:
            for number in range(1, 101):
                ...  # reach new parameters and a new state of the outer update from save.progress
                save(Progress(number, params, state), {"return/step_1": score})

    At the end, also by Ctrl-C, the last iteration's checkpoint is saved. ``open_run``, ``resume`` and all commands work
    on the folder. ``resume`` goes on with metarl's own loop: bit for bit as one's own, if that samples and draws from
    ``metarl.training.streams``. After any other exception, the checkpoint before it stays.

    Raises:
        ValueError: what ``Experiment.train`` raises, such as RunError where the folder holds a run already.
    """
    if ranks.are_many():
        raise ValueError("a training loop of one's own is saved by one process: start it without torchrun")
    run = experiment.start(out, overwrite)
    held, run.claim = run.claim, None
    assert held is not None
    with held, logger.open_all(run.folder, 0, run.settings.iterations, quiet) as log:
        saving = Saving(run, log)
        try:
            yield saving
        except KeyboardInterrupt:
            saving.end()
            raise
        saving.end()


@usual_modes()
def resume(
    folder: Path | str,
    iterations: int | None = None,
    quiet: bool = True,
    callbacks: Sequence[Callback] = (),
    device: Device | None = None,
    allow_changes: bool = False,
    allow_code: bool = False,
) -> Trained:
    """Go on with a run exactly where its checkpoint stands; ``iterations`` may change the number to reach.

    ``device`` is where to go on, by default where it was trained; the run folder keeps what it says of that. With
    ``allow_changes``, a run goes on with what its ``module:name`` is now, and records that. ``allow_code`` imports code
    outside of installed plugins also for a run that was not trained here by this user.

    Raises:
        RunError: the folder holds no usable run, it has reached its last iteration, or what it names as ``module:name``
            has changed since it was trained.
        ValueError: the device cannot be had.
    """
    run, progress = reopen(expanded(folder), iterations, device, allow_changes, allow_code)
    return run.train(progress, quiet, callbacks)


@usual_modes()
def open_run(
    folder: Path | str,
    checkpoint: runs.Checkpoint = "last",
    device: Device = "auto",
    allow_changes: bool = False,
    allow_code: bool = False,
) -> Trained:
    """Open a run folder with its last parameters, or those of the best score in training or on validation tasks.

    ``pretrained:NAME`` opens a run that an installed package ships. What it returns is what ``train`` returned; its
    rows are those of the whole run, up to the checkpoint. With ``allow_changes``, what the run names as ``module:name``
    is taken as it is now. A run that names code outside of installed plugins imports it if this user trained the run
    here, or with ``allow_code``.

    Raises:
        RunError: the folder holds no usable run, or no such checkpoint; what it names as ``module:name`` has changed
            since it was trained; or it names code that is not allowed.
        PluginError: its algorithm or its task family is not installed, or no pretrained run has this name.
    """
    given, folder = str(folder), expanded(plugins.run_folder(folder))
    experiment = recorded(folder, None, allow_changes, allow_code)
    _check_origins(folder, experiment.tasks)
    found = opened(experiment, runs.checkpoint(folder, checkpoint), device=device)
    return replace(found, rows=logger.read_rows(folder / runs.PROGRESS, found.iteration), origin=given)


def opened(experiment: Experiment, path: Path, split: Split = "train", device: Device | None = None) -> Trained:
    """Load a checkpoint of an experiment, for use on tasks of a split, by default where it was trained. It has no rows.

    Raises:
        RunError: the checkpoint cannot be read, or holds parameters of another network.
        ValueError: the algorithm does not support the family, the family's environments do not match its spec, or the
            split has too few classes.
    """
    algorithm, family, settings = experiment.algorithm, experiment.tasks, experiment.settings
    where, learner = resolve_device(device or settings.device), learner_for(algorithm, family.spec)
    check_tasks(family, split)
    saved = runs.load_progress(path, where)
    runs.check_architecture(learner.init(stream(settings.seed, "initialisation")), saved["params"], path)
    runs.check_architecture({} if learner.buffers is None else learner.buffers.init(), saved["buffers"], path)
    learner = holding(learner, saved["buffers"])
    reached, params = saved["iteration"], saved["params"]
    interrupted = reached < settings.iterations
    return Trained(algorithm, family, learner, params, where, reached, interrupted=interrupted, experiment=experiment)


def start(
    algorithm: Source,
    family: Source,
    outer: Outer | Source | None = None,
    settings: Settings | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    start_from: Params | None = None,
) -> Run:
    """Check that parts fit together, and make the run folder. Raises ValueError."""
    update = outer if isinstance(outer, Source) else Source(outer)
    references = algorithm.reference, family.reference, update.reference
    experiment = Experiment(algorithm.target, family.target, update.target, settings, references=references)
    return experiment.start(out, overwrite, start_from)


def recorded(
    folder: Path, device: Device | None = None, allow_changes: bool = False, allow_code: bool = False
) -> Experiment:
    """Rebuild the experiment of a run, to be used on ``device`` (default: where it was trained).

    Raises RunError, PluginError or ValueError where that is impossible; RunError before anything is imported that is
    neither an installed plugin, nor allowed, nor of a run that this user trained here, and where a ``module:name`` is
    no longer what it was, unless ``allow_changes``.
    """
    config = runs.trusted_config(folder, allow_code)
    if "baseline" in config:
        raise runs.RunError(
            f"{folder} holds the baseline {config['baseline']}, which does not adapt and is not resumed; "
            f"{runs.EVALUATION} has its scores, and {runs.MODEL} is for Stable-Baselines3"
        )
    parts = {name: runs.rebuild(config[name], group) for name, group in runs.GROUPS.items()}
    origins.check_definitions(config, parts, folder, allow_changes)
    try:
        settings = Settings(**config["settings"])
        if settings.filled(parts["tasks"].spec) != settings:
            raise ValueError("some of them are missing")
    except (TypeError, ValueError) as error:
        raise runs.RunError(f"{folder / runs.CONFIG} holds settings that cannot be used: {error}") from error
    settings = settings if device is None else replace(settings, device=device)
    parts["tasks"] = origins.in_recorded_units(config, parts["tasks"])
    algorithm, tasks, outer = (config[name]["reference"] for name in runs.GROUPS)
    return Experiment(**parts, settings=settings, recipe=config.get("recipe"), references=(algorithm, tasks, outer))


def load(folder: Path, device: Device | None = None, allow_changes: bool = False, allow_code: bool = False) -> Run:
    """Rebuild what a run folder trains. Raises RunError, PluginError or ValueError where that is impossible."""
    return _run(recorded(folder, device, allow_changes, allow_code), folder)


def _check_origins(folder: Path, tasks: Family) -> None:
    """Raise RunError where the tasks are of other data, or in other units, than those that the run was trained on."""
    config = runs.read_config(folder)
    origins.check_data(config, tasks, folder)
    origins.check_units(config, tasks)


def _run(experiment: Experiment, folder: Path) -> Run:
    _check_origins(folder, experiment.tasks)
    run = Run(experiment.algorithm, experiment.tasks, experiment.outer, experiment.settings, folder)
    run.experiment = experiment
    return run


def reopen(
    folder: Path,
    iterations: int | None = None,
    device: Device | None = None,
    allow_changes: bool = False,
    allow_code: bool = False,
) -> tuple[Run, Progress]:
    """Rebuild a run and where it stands. Raises RunError where there is nothing to go on with.

    All ranks of a run in several processes must see its folder, into which only the first one writes.
    """
    if not ranks.are_many():
        return _reopened_here(folder, iterations, device, allow_changes, allow_code)
    run, progress = _reopened_together(folder, iterations, device, allow_changes, allow_code)
    run.join()
    if not ranks.is_first():
        run.folder = None
    return run, progress


def _reopened_together(
    folder: Path, iterations: int | None, device: Device | None, allow_changes: bool, allow_code: bool
) -> tuple[Run, Progress]:
    """Rebuild a run on all ranks: first on the one that writes, which may put files back or change the record."""
    found: tuple[Run, Progress] | None = None
    options = iterations, device, allow_changes, allow_code

    def first() -> str | None:
        nonlocal found
        try:
            with ranks.apart():
                found = _reopened_here(folder, *options) if ranks.is_first() else None
        except runs.FinishedError as error:
            return str(error)
        return None

    def others() -> None:
        nonlocal found
        with ranks.apart():
            found = found or _reopened(folder, *options, writes=False)

    met = ranks.join(torch.device("cpu"), WAIT)
    try:
        with ranks.together(met):
            finished, *_ = ranks.agreed("opening the run", first)
            if finished is not None:
                raise runs.FinishedError(finished)  # on all ranks
            ranks.agreed("opening the run", others)
    finally:
        ranks.leave(met)
    assert found is not None
    return found


WAIT = 1800.0
"""Seconds that ranks wait for each other until they have read the run's own ``rank_timeout``."""


def _reopened_here(
    folder: Path, iterations: int | None, device: Device | None, allow_changes: bool, allow_code: bool
) -> tuple[Run, Progress]:
    if plugins.is_pretrained(folder):
        raise runs.RunError(f"{folder} is the result of a run, without what is needed to go on with its training")
    if not runs.unfinished(folder):
        runs.read_config(folder)  # nothing is written into a folder that holds no run
    held = runs.claim(folder, "training")
    try:
        runs.put_back(folder)
        run, progress = _reopened(folder, iterations, device, allow_changes, allow_code)
    except BaseException:
        held.release()
        raise
    run.claim = held
    return run, progress


def _reopened(
    folder: Path,
    iterations: int | None,
    device: Device | None,
    allow_changes: bool,
    allow_code: bool,
    writes: bool = True,
) -> tuple[Run, Progress]:
    experiment = recorded(folder, device, allow_changes, allow_code)
    if iterations is not None:
        experiment = replace(experiment, settings=replace(experiment.settings, iterations=iterations))
    run = _run(experiment, folder)
    check_logs(run.settings, folder)
    config = runs.read_config(folder)
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
        raise runs.FinishedError(
            f"{folder} stands at iteration {progress.iteration} of {run.settings.iterations}: nothing is left to do; "
            "ask for more with --iterations"
        )
    changes = {} if iterations is None else {"settings": config["settings"] | {"iterations": iterations}}
    if allow_changes:
        changes |= _redefined(config, experiment, progress.iteration)
    if changes and writes:
        runs.rewrite_config(folder, config | changes)
    return run, progress


def _redefined(config: dict[str, Any], experiment: Experiment, iteration: int) -> dict[str, Any]:
    """Return what a run records where it goes on with what its ``module:name`` is now."""
    before = config.get(origins.DEFINITIONS, {})
    now = experiment.definitions(config).get(origins.DEFINITIONS, {})
    if all(origins.difference(before[name], now[name]) is None for name in before if name in now):
        return {}
    past = {"until_iteration": iteration, origins.DEFINITIONS: before}
    return {origins.DEFINITIONS: now, origins.PAST: [*config.get(origins.PAST, []), past]}
