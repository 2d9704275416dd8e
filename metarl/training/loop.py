"""The only training loop: sample tasks, adapt, move the meta-parameters; log, checkpoint, resume."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from metarl import iteration, logger, plugins, runs
from metarl.compiled import Compiling
from metarl.control import ControlTasks, check_environment
from metarl.devices import float32, send
from metarl.experience import training_score
from metarl.graphs import Graphs
from metarl.interrupts import stop_on_interrupt
from metarl.iteration import Outcome
from metarl.memory import keep_freed_memory
from metarl.outer import default_outer
from metarl.rollouts import can_be_compiled
from metarl.seeding import stream
from metarl.settings import Device, Settings, default_settings, resolve_device
from metarl.types import Algorithm, Family, Learner, Outer, Params, Split

MAX_REFUSED = 5
"""Updates in a row that may be refused for a meta-gradient that is not finite, before training gives up."""


class TrainingError(RuntimeError):
    """Training cannot go on; the last checkpoint is intact."""


class Progress(NamedTuple):
    """Where a run stands: everything that the next iteration depends on."""

    iteration: int
    params: Params
    outer: dict[str, Any]
    best: float | None
    """Best training score so far."""
    refused: int


class Result(NamedTuple):
    """What training returns."""

    params: Params
    learner: Learner
    rows: list[dict[str, float]]
    """One row of metrics for each iteration of this call."""
    interrupted: bool


class Iteration(NamedTuple):
    """What a callback is told of a meta-iteration."""

    run: "Run"
    """Its learner, family, settings, device and folder."""
    progress: Progress
    """Where the run stands after it."""
    row: Mapping[str, float] | None
    """The metrics that were logged of it; None in iterations that are not logged."""


Callback = Callable[[Iteration], bool | None]
"""Called after every iteration, before its checkpoint; False stops training. ``metarl.callbacks`` has some."""


def train(
    algorithm: Algorithm | str,
    family: Family | str,
    outer: Outer | None = None,
    settings: Settings | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    quiet: bool = True,
    start_from: Params | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Meta-train an algorithm on a family of tasks.

    ``algorithm`` and ``family`` are objects, or installed names (with their default options). ``outer`` is the
    algorithm's own default, else TRPO for control and Adam otherwise. With ``out``, everything goes into that run
    folder. Meta-parameters begin with those of ``start_from``, by name; the others are drawn.

    Raises:
        ValueError: an option or a combination is wrong, or out holds a run already (RunError).
        TrainingError: several meta-gradients in a row were not finite.
        RolloutError: an environment broke.
    """
    run = start(source("algorithms", algorithm), source("tasks", family), outer, settings, out, overwrite, start_from)
    return run.train(run.first(), quiet, callbacks)


def resume(
    folder: Path | str,
    iterations: int | None = None,
    quiet: bool = True,
    callbacks: Sequence[Callback] = (),
    device: Device | None = None,
) -> Result:
    """Go on with a run exactly where its checkpoint stands; ``iterations`` may change the number to reach.

    ``device`` is where to go on, by default where it was trained; the run folder keeps what it says of that.

    Raises:
        RunError: the folder holds no usable run, or it has reached its last iteration.
        ValueError: the device cannot be had.
    """
    run, progress = reopen(Path(folder), iterations, device)
    return run.train(progress, quiet, callbacks)


class Source(NamedTuple):
    """An algorithm or a family, and the name or ``module:attribute`` under which it was asked for, if any."""

    target: Any
    reference: str | None = None


def source(group: plugins.Group, target: Any) -> Source:
    """Return an object as it is, or load a name with its default options. Raises PluginError."""
    if not isinstance(target, str):
        return Source(target)
    loaded = plugins.load(group, target)
    try:
        return Source(loaded() if isinstance(loaded, type) else loaded, target)
    except TypeError as error:
        raise plugins.PluginError(
            f"{target} cannot be made without options ({error}): give its fields defaults, or bind an object of it to "
            "a name and pass 'module:name'"
        ) from error


def start(
    algorithm: Source,
    family: Source,
    outer: Outer | None = None,
    settings: Settings | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    start_from: Params | None = None,
) -> "Run":
    """Check that everything fits together, and make the run folder. Raises ValueError."""
    outer = outer or default_outer(algorithm.target, family.target.spec)
    folder = None if out is None else Path(out)
    _check_wandb(settings, folder)
    run = Run(algorithm.target, family.target, outer, settings or default_settings(family.target.spec), folder)
    run.start_from = start_from or {}
    first = run.first()._asdict() if start_from else None
    if folder is not None:
        record: dict[str, Any] = {
            "algorithm": runs.describe(*algorithm),
            "tasks": runs.describe(*family),
            "outer": runs.describe(outer),
            "settings": asdict(run.settings),
        }
        if start_from:
            record["start_from"] = sorted(start_from)
        runs.create(folder, record, overwrite, first)
    return run


def _check_wandb(settings: Settings | None, folder: Path | None) -> None:
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
    except TypeError as error:
        raise runs.RunError(f"{folder / runs.CONFIG} holds settings that cannot be used: {error}") from error
    return Recorded(algorithm, family, outer, settings if device is None else replace(settings, device=device))


def load(folder: Path, device: Device | None = None) -> "Run":
    """Rebuild what a run folder trains. Raises RunError, PluginError or ValueError where that is impossible."""
    return Run(*recorded(folder, device), folder)


def reopen(folder: Path, iterations: int | None = None, device: Device | None = None) -> tuple["Run", "Progress"]:
    """Rebuild a run and where it stands. Raises RunError where there is nothing to go on with."""
    run = load(folder, device)
    _check_wandb(run.settings, folder)
    if iterations is not None:
        run.settings = replace(run.settings, iterations=iterations)
    path = folder / runs.CHECKPOINT
    # A run killed before its first checkpoint starts over, from the same seed and so with the same result.
    progress = run.restore(path) if path.exists() else run.first()
    if progress.iteration >= run.settings.iterations:
        raise runs.RunError(
            f"{folder} stands at iteration {progress.iteration} of {run.settings.iterations}: nothing is left to do; "
            "ask for more with --iterations"
        )
    if iterations is not None:
        config = runs.read_config(folder)
        runs.write_json(folder / runs.CONFIG, config | {"settings": config["settings"] | {"iterations": iterations}})
    return run, progress


class Run:
    """The parts of one training run, put together and checked."""

    def __init__(
        self,
        algorithm: Algorithm,
        family: Family,
        outer: Outer,
        settings: Settings,
        folder: Path | None = None,
        split: Split = "train",
    ) -> None:
        self.algorithm, self.family, self.outer, self.settings = algorithm, family, outer, settings
        self.folder = folder
        self.start_from: Params = {}
        self.device = resolve_device(settings.device)
        self.learner = algorithm.build(family.spec)
        _check_tasks(family, split, settings.compile and self.device.type == "cpu")
        check = getattr(outer, "check", None)
        if check is not None:
            check(self.learner)
        chunks = getattr(outer, "chunks", None)
        if chunks is not None and chunks > settings.meta_batch_size:
            raise ValueError(f"chunks={chunks} is more than the {settings.meta_batch_size} tasks of a meta-batch")
        # Labelled examples make one graph of an iteration; episodes some of its parts.
        self.compiling = Compiling(self._plain, self._streams) if settings.compile and not family.spec.control else None
        self.graphs = Graphs() if settings.compile and family.spec.control else None

    def first(self) -> Progress:
        """Return where a new run stands. Raises ValueError where the parameters to start from are not the learner's."""
        params = self.learner.init(stream(self.settings.seed, "initialisation"))
        _check_start(params, self.start_from)
        params |= self.start_from
        params = {name: send(value, self.device) for name, value in params.items()}
        return Progress(0, params, self.outer.init(params), None, 0)

    def restore(self, path: Path) -> Progress:
        """Return where a checkpoint stands. Raises RunError when it does not fit."""
        saved = runs.load_checkpoint(path, self.device)
        runs.check_architecture(self.first().params, saved["params"], path)
        return Progress(*(saved[name] for name in Progress._fields))

    def train(self, progress: Progress, quiet: bool = True, callbacks: Sequence[Callback] = ()) -> Result:
        """Iterate to the end, or to the iteration in which Ctrl-C was pressed or a callback returned False."""
        last = self.settings.iterations
        if self.device.type == "cpu":
            keep_freed_memory()
        rows, asked = list[dict[str, float]](), list[Callback]([*self.settings.validation(), *callbacks])
        ends = progress.iteration >= last
        with logger.open_all(self.folder, progress.iteration, last, quiet) as log, stop_on_interrupt() as stop:
            # Asked once for each iteration: Ctrl-C while it is saved means the next one, which then saves a checkpoint.
            while not ends:
                reached, row = self.iterate(progress)
                logged, score = None, None
                if reached.iteration % self.settings.log_every == 0 or reached.iteration == last:
                    logged = _numbers(row)
                    rows.append(logged)
                    log(logged)
                    score = training_score(logged)
                answers = [callback(Iteration(self, reached, logged)) for callback in asked]
                ends = reached.iteration == last or stop.is_set() or False in answers
                progress = self.save(progress, reached, score, ends)
        return Result(progress.params, self.learner, rows, interrupted=progress.iteration < last)

    def iterate(self, progress: Progress) -> tuple[Progress, dict[str, Tensor | float]]:
        """Run one meta-iteration and return its row of metrics, scalars that may still be on the device."""
        number, began = progress.iteration + 1, time.perf_counter()
        share = progress.iteration / self.settings.iterations
        with float32(self.device):
            outcome = self._learn(progress.params, progress.outer, share, number)
        update, times = outcome.update, _times(outcome, time.perf_counter() - began)
        refused = 0 if update.finite else progress.refused + 1
        if refused >= MAX_REFUSED:
            raise TrainingError(
                f"the meta-gradient was not finite in {refused} iterations in a row, up to iteration {number}; "
                "the parameters before them are kept; try a smaller step size"
            )
        seen = {"tasks/seen": number * self.settings.meta_batch_size, "outer/refused": refused}
        row = {"iteration": number, **outcome.scores, **update.metrics, **seen, **times}
        return Progress(number, update.params, update.state, progress.best, refused), row

    def _learn(self, params: Params, state: dict[str, Any], progress: float, number: int) -> Outcome:
        if self.compiling is not None:
            return self.compiling(params, state, progress, number)
        with self.graphs.used() if self.graphs is not None else nullcontext():
            return self._plain(params, state, progress, self._streams(number))

    def _plain(self, params: Params, state: dict[str, Any], progress: float, streams: Iterator[Generator]) -> Outcome:
        tasks = self.settings.meta_batch_size
        return iteration.iterate(self.learner, self.family, self.outer, tasks, params, state, progress, streams)

    def _streams(self, number: int) -> Iterator[Generator]:
        return iteration.streams(self.settings.seed, number, self.device)

    def save(self, acted: Progress, reached: Progress, score: float | None, ends: bool) -> Progress:
        """Keep the parameters that acted when the training score was best, and a checkpoint every so often."""
        best = -math.inf if reached.best is None or math.isnan(reached.best) else reached.best
        better = score is not None and (score > best or best == -math.inf)
        reached = reached._replace(best=score if better else reached.best)
        if self.folder is not None and better:
            runs.save_checkpoint(self.folder / runs.BEST, acted._replace(best=score)._asdict())
        if self.folder is not None and (ends or reached.iteration % self.settings.checkpoint_every == 0):
            runs.save_checkpoint(self.folder / runs.CHECKPOINT, reached._asdict())
        return reached


def _check_start(params: Params, given: Params) -> None:
    """Raise ValueError unless all given parameters are among those of the learner, with their shapes."""
    theirs, ours = ({name: tuple(value.shape) for name, value in values.items()} for values in (given, params))
    if wrong := [name for name, shape in theirs.items() if ours.get(name) != shape]:
        raise ValueError(
            f"cannot start from parameters of another network: {wrong[0]} has shape {theirs[wrong[0]]} where "
            f"{ours.get(wrong[0], 'no such parameter')} was expected"
        )


def _check_tasks(family: Family, split: Split, compiled: bool) -> None:
    """Raise ValueError, before anything is run, for a split that cannot serve, and environments that belie the Spec.

    Or, where episodes are all that might be ``compiled``, for those that cannot be.
    """
    tasks = family.sample(1, split, stream(0, "check"))
    if isinstance(tasks, ControlTasks):
        env = tasks.environment(1, torch.device("cpu"))
        check_environment(env, 1, family.spec)
        refused = compiled and not can_be_compiled(env)
        env.close()
        if refused:
            raise ValueError(
                "compile=True: the steps of this environment are no graph (they are, of one that is written in PyTorch "
                "and has a snapshot()), and on a CPU nothing else of control is compiled; leave it out"
            )


def _times(outcome: Outcome, seconds: float) -> dict[str, Tensor | float]:
    times: dict[str, Tensor | float] = {"time/iteration_seconds": seconds}
    if outcome.sampling_seconds is not None:
        times["time/sampling_seconds"] = outcome.sampling_seconds
    if outcome.environment_steps is not None:
        times["time/environment_steps_per_second"] = outcome.environment_steps / seconds
    return times


def _numbers(row: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Read a row of metrics, those of a device at once: it is waited for whenever something is read."""
    scalars = {name: value for name, value in row.items() if isinstance(value, Tensor)}
    read: dict[str, float] = {}
    for device in {value.device for value in scalars.values()}:
        there = {name: value.double() for name, value in scalars.items() if value.device == device}
        read |= zip(there, torch.stack(list(there.values())).tolist(), strict=True)
    return {name: read[name] if isinstance(value, Tensor) else value for name, value in row.items()}
