"""The only training loop: sample tasks, adapt, move the meta-parameters; log, checkpoint."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Generator, Tensor

from metarl import runs
from metarl.control import check_tasks
from metarl.runs import logger
from metarl.safety import time_limit
from metarl.seeding import stream
from metarl.signs import Ends, Regime
from metarl.speed import (
    Graphs,
    Ranks,
    fastest_convolutions,
    float32,
    keep_freed_memory,
    ranks,
    refuse_autocast,
    resolve_device,
    send,
    singly,
)
from metarl.trained import Trained, Trains
from metarl.training import iteration
from metarl.training.callbacks import Evaluate, validation
from metarl.training.compiling import Compiling
from metarl.training.interrupts import stop_on_interrupt
from metarl.training.iteration import Outcome
from metarl.training.progress import Callback, Iteration, Learnt, Progress, TrainingError, Watch, training_score
from metarl.training.settings import Settings
from metarl.training.stages import Stages, options_of, warn_of_edits
from metarl.types import (
    Algorithm,
    Chunked,
    Family,
    Learner,
    Outer,
    Params,
    Role,
    Selective,
    holding,
    labelled_tasks,
    learner_for,
)

MAX_REFUSED = 5
"""Updates in a row that may be refused for a meta-gradient that is not finite, before training gives up."""


SAME_EVERY = 10
"""Iterations between comparisons of the ranks' parameters, which also take place after the first two."""


class Run:
    """The parts of one training run, put together and checked."""

    def __init__(
        self,
        algorithm: Algorithm,
        family: Family,
        outer: Outer,
        settings: Settings,
        folder: Path | None = None,
    ) -> None:
        self.algorithm, self.family, self.outer, self.settings = algorithm, family, outer, settings.filled(family.spec)
        self.folder = folder and folder.absolute()  # environments may change the working folder
        self.start_from: Params = {}
        self.experiment: Trains | None = None
        self.claim: runs.Claim | None = None
        self.device = resolve_device(settings.device)
        self.ranks: Ranks | None = None
        built = learner_for(algorithm, family.spec)
        self.learner = singly(built) if settings.exact_sums else built
        bounds = check_tasks(family, "train", settings.compile and self.device.type == "cpu")
        self.ends = bounds and Ends(*(bound.to(torch.get_default_dtype()) for bound in bounds))
        with float32(self.device):
            _check_outer(outer, holding(self.learner), self.settings.meta_batch_size)
        _check_compiled(self.learner, settings.compile)
        # Labelled examples make one graph of an iteration; episodes some of its parts.
        self.compiling = Compiling(self._plain, self._streams) if settings.compile and not family.spec.control else None
        self.graphs = Graphs() if settings.compile and family.spec.control else None
        self.stages = Stages(self) if self.settings.schedules else None
        for stage in self.stages.check() if self.stages is not None else ():
            with float32(self.device):
                _check_outer(stage.outer, stage.learner, stage.settings.meta_batch_size)

    def first(self) -> Progress:
        """Return where a new run stands. Raises ValueError where the parameters to start from are not the learner's."""
        params = self.learner.init(stream(self.settings.seed, "initialisation"))
        buffers = {} if self.learner.buffers is None else self.learner.buffers.init()
        _check_names(params, buffers)
        _check_start(params | buffers, self.start_from)
        params, buffers = (
            {name: send(self.start_from.get(name, value), self.device) for name, value in values.items()}
            for values in (params, buffers)
        )
        return Progress(0, params, self.outer.init(params), None, 0, buffers)

    def restore(self, path: Path) -> Progress:
        """Return where a checkpoint stands. Raises RunError when it does not fit."""
        saved, first = runs.load_progress(path, self.device), self.first()
        runs.check_architecture(first.params, saved["params"], path)
        runs.check_architecture(first.buffers, saved["buffers"], path)
        runs.check_state(first.outer, saved["outer"], path)
        return Progress(*(saved[name] for name in Progress._fields))

    def train(self, progress: Progress, quiet: bool = True, callbacks: Sequence[Callback] = ()) -> Trained:
        """Iterate to the end, or to the iteration in which Ctrl-C was pressed or a callback returned False."""
        try:
            with self._together(), self._claimed(), time_limit(self.settings.step_timeout):
                return self._train(progress, quiet or not ranks.is_first(), callbacks)
        except SystemExit as stop:  # which would end the whole program, perhaps as if it had succeeded
            raise TrainingError(f"the task family, or a callback, called sys.exit({stop.code!r})") from stop
        except BaseException as error:
            if self.folder is not None and (told := runs.aside_note(self.folder)):
                error.add_note(f"{self.folder} has no checkpoint yet{told}")
            raise

    def join(self) -> None:
        """Meet the other ranks of the run, if there are any; they must have the same options and packages.

        Raises:
            ValueError: they have not, or there are fewer tasks than ranks, or the run is compiled.
            RankError: they did not come.
        """
        met = ranks.join(self.device, self.settings.rank_timeout)
        with ranks.together(met):
            _check_ranks(self, met)
        self.ranks = met

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Work with the other ranks, of which the first one speaks for all."""
        try:
            with ranks.together(self.ranks, self.settings.exact_sums), warnings.catch_warnings():
                if not ranks.is_first():
                    warnings.simplefilter("ignore")
                yield
        finally:
            ranks.leave(self.ranks)
            self.ranks = None

    def _claimed(self) -> AbstractContextManager[object]:
        """Return the lock of the run folder, taken where the run was made or else now."""
        held, self.claim = self.claim, None
        if self.folder is None:
            return nullcontext()
        return held or runs.claim(self.folder, "training")

    def _train(self, progress: Progress, quiet: bool, callbacks: Sequence[Callback]) -> Trained:
        last = self.settings.iterations
        if self.device.type == "cpu":
            keep_freed_memory()
        rows, asked = list[dict[str, float]](), list[Callback]([*validation(self.settings), *callbacks])
        asked = [callback for callback in asked if ranks.is_first() or isinstance(callback, Evaluate)]
        options = options_of(self) if callbacks else {}
        ends, watch = progress.iteration >= last, Watch(self.family.spec.kind, self.settings.when_diverging)
        regime = Regime(begins=progress.iteration == 0)
        with (
            logger.open_all(self.folder, progress.iteration, last, quiet) as log,
            stop_on_interrupt() as stop,
            fastest_convolutions(self.device, last - progress.iteration),
        ):
            # Asked once for each iteration: Ctrl-C while it is saved means the next one, which then saves a checkpoint.
            while not ends:
                reached, row, experience = self.learn(progress)
                logged, score = None, None
                if reached.iteration % self.settings.log_every == 0 or reached.iteration == last:
                    logged = read_numbers(row)
                    rows.append(logged)
                    log(logged)
                    watch.see(logged)
                    regime.see(logged)
                    score = training_score(logged)
                iterated = Iteration(self, reached, logged, experience)
                answers = [_answered(callback, iterated) for callback in asked]
                del iterated, experience  # before the next episodes are in memory, too
                options = warn_of_edits(options, self, reached.iteration) if callbacks else {}
                ends = self._ends(reached, reached.iteration == last or stop.is_set() or False in answers)
                progress = self.save(progress, reached, score, ends)
        return Trained(
            self.algorithm,
            self.family,
            holding(self._plain_learner(), progress.buffers),
            progress.params,
            self.device,
            progress.iteration,
            rows,
            interrupted=progress.iteration < last,
            signal=stop.signal,
            experiment=self.experiment,  # type: ignore[arg-type]  # the speed suite makes runs without one
        )

    def _plain_learner(self) -> Learner:
        """Return the learner as it is used after training."""
        return self.algorithm.build(self.family.spec) if self.settings.exact_sums else self.learner

    def _ends(self, reached: Progress, asked: bool) -> bool:
        """Return whether a rank asks to stop. Raises RankError where the ranks' parameters have become different."""
        if not ranks.is_shared():
            return asked
        number = reached.iteration
        due = asked or number <= 2 or number % SAME_EVERY == 0
        mine = ranks.digest(reached.params | reached.buffers) if due else 0
        told = ranks.gathered_numbers([number, due, mine, asked], "comparing parameters")
        if all(rank_due for _, rank_due, _, _ in told):
            ranks.require_same([digest for _, _, digest, _ in told], f"the parameters after iteration {number}")
        return any(asking for *_, asking in told)

    def iterate(self, progress: Progress) -> tuple[Progress, dict[str, Tensor | float]]:
        """Run one meta-iteration and return its row of metrics, scalars that may still be on the device."""
        reached, row, _ = self.learn(progress)
        return reached, row

    def learn(self, progress: Progress) -> Learnt:
        """Run one meta-iteration and return all that came of it."""
        if self.stages is not None:
            return self.stages.learn(progress)
        number, began = progress.iteration + 1, time.perf_counter()
        share = progress.iteration / self.settings.iterations
        refuse_autocast()
        with float32(self.device):
            outcome = self._learn(progress, share, number)
        update, times = outcome.update, _times(outcome, time.perf_counter() - began)
        refused = 0 if update.finite else progress.refused + 1
        if refused >= MAX_REFUSED:
            raise TrainingError(
                f"the meta-gradient was not finite in {refused} iterations in a row, up to iteration {number}; "
                f"the parameters before them are kept; {self._advice(number)}"
            )
        seen = {"tasks/seen": number * self.settings.meta_batch_size, "outer/refused": refused}
        row = {"iteration": number, **outcome.scores, **outcome.signs, **update.metrics, **seen, **times}
        buffers = outcome.buffers or progress.buffers
        reached = Progress(number, update.params, update.state, progress.best, refused, buffers)
        return Learnt(reached, row, outcome.experience)

    def _advice(self, number: int) -> str:
        """Tell what to do about a meta-gradient that is not finite: labelled examples can be drawn again."""
        if not self.family.spec.control:
            streams = self._streams(number)
            tasks = labelled_tasks(self.family.sample(self.settings.meta_batch_size, "train", next(streams)))
            for role in get_args(Role):
                for name, values in vars(tasks.draw(role, next(streams))).items():
                    if values is not None and not values.isfinite().all():
                        return f"the family's data are to blame: {role} {name} hold numbers that are not finite"
            first = self.first()
            with float32(self.device):
                again = self._plain(first.params, first.outer, 0.0, self._streams(number), first.buffers)
            if not again.update.finite:
                return (
                    "it is not with the initial parameters either: see that labels are from 0 to 1, classes sum to 1, "
                    "descriptors that tell kinds of tasks apart are one-hot, and numbers are of a size of about 1; "
                    "then try a smaller inner step size"
                )
        return "try a smaller step size"

    def _learn(self, progress: Progress, share: float, number: int) -> Outcome:
        if self.compiling is not None:
            return self.compiling(progress.params, progress.outer, share, number)
        with self.graphs.used(number) if self.graphs is not None else nullcontext():
            return self._plain(progress.params, progress.outer, share, self._streams(number), progress.buffers)

    def _plain(
        self,
        params: Params,
        state: dict[str, Any],
        progress: float,
        streams: Iterator[Generator],
        buffers: Params | None = None,
    ) -> Outcome:
        fixed = self.learner, self.family, self.outer, self.settings.meta_batch_size
        return iteration.iterate(*fixed, params, state, progress, streams, buffers, self.ends)

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
            _check_finite(reached)
            path = self.folder / runs.CHECKPOINT
            runs.save_checkpoint(path, reached._asdict(), keep=path.with_name(runs.PREVIOUS))
            runs.settle(self.folder)
        return reached


def _answered(callback: Callback, iteration: Iteration) -> bool | None:
    """Ask a callback. Validation is the work of all ranks; any other callback is asked on the first one only."""
    if isinstance(callback, Evaluate):
        return callback(iteration)
    with ranks.apart():
        return callback(iteration)


def _check_ranks(run: Run, met: Ranks | None) -> None:
    """Raise ValueError unless all ranks have the same options and packages, and each has a task."""
    if met is None:
        return
    names = {name: type(getattr(run, name)).__name__ for name in ("algorithm", "family", "outer")}
    told = names | runs.versions() | {name: value for name, value in options_of(run).items() if _is_plain(value)}
    for rank, theirs in enumerate(found := ranks.gathered(told, "comparing options")):
        if wrong := [name for name in (found[0] | theirs) if found[0].get(name) != theirs.get(name)]:
            raise ValueError(
                f"the ranks of a run must be alike: {wrong[0]} is {found[0].get(wrong[0])!r} in rank 0 and "
                f"{theirs.get(wrong[0])!r} in rank {rank}; start all with the same options and packages"
            )
    ranks.require_tasks(run.settings.meta_batch_size, met)
    if run.settings.compile:
        raise ValueError("compile=True is for one process: sums over ranks are no part of a graph; leave it out")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | tuple)


def _check_outer(outer: Outer, learner: Learner, tasks: int) -> None:
    """Raise ValueError for an outer update that does not serve the learner, or has more groups than there are tasks."""
    if isinstance(outer, Selective):
        outer.check(learner)
    if isinstance(outer, Chunked) and outer.chunks is not None and outer.chunks > tasks:
        raise ValueError(f"chunks={outer.chunks} is more than the {tasks} tasks of a meta-batch")


def _check_compiled(learner: Learner, compiled: bool) -> None:
    """Raise ValueError for buffers in iterations that are compiled as a whole, which have no place for them."""
    if compiled and learner.buffers is not None and not learner.spec.control:
        raise ValueError("compile: a learner of labelled examples that has buffers is not compiled; leave it out")


def _check_names(params: Params, buffers: Params) -> None:
    """Raise ValueError for a buffer with the name of a meta-parameter."""
    if both := [name for name in buffers if name in params]:
        raise ValueError(f"the learner has a buffer and a meta-parameter of one name, {both[0]}: rename the buffer")


def _check_finite(reached: Progress) -> None:
    """Raise TrainingError for parameters that are not finite: they must not take the place of the last good ones."""
    values = reached.params | reached.buffers
    wrong = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise TrainingError(
            f"the parameter {wrong[0]} is not finite after iteration {reached.iteration}; the last checkpoint is "
            "intact: try a smaller step size"
        )


def _check_start(params: Params, given: Params) -> None:
    """Raise ValueError unless all given parameters are among those of the learner, with their shapes."""
    theirs, ours = ({name: tuple(value.shape) for name, value in values.items()} for values in (given, params))
    if wrong := [name for name, shape in theirs.items() if ours.get(name) != shape]:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        others = f" (and so have {', '.join(wrong[1:8])}{more})" if wrong[1:] else ""
        raise ValueError(
            f"cannot start from parameters of another network: {wrong[0]} has shape {theirs[wrong[0]]} where "
            f"{ours.get(wrong[0], 'no such parameter')} was expected{others}; what is left out "
            "(--start-without) starts as always"
        )


def _times(outcome: Outcome, seconds: float) -> dict[str, Tensor | float]:
    times: dict[str, Tensor | float] = {"time/iteration_seconds": seconds}
    if outcome.sampling_seconds is not None:
        times["time/sampling_seconds"] = outcome.sampling_seconds
    if outcome.environment_steps is not None:
        times["time/environment_steps_per_second"] = outcome.environment_steps / seconds
    return times


def read_numbers(row: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Read a row of metrics, those of a device at once: it is waited for whenever something is read."""
    scalars = {name: value for name, value in row.items() if isinstance(value, Tensor)}
    read: dict[str, float] = {}
    for device in {value.device for value in scalars.values()}:
        there = {name: value.double() for name, value in scalars.items() if value.device == device}
        read |= zip(there, torch.stack(list(there.values())).tolist(), strict=True)
    return {name: read[name] if isinstance(value, Tensor) else value for name, value in row.items()}
