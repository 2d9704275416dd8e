"""The training loop: exact resume after every kind of stop, determinism, refused updates, full disks."""

import dataclasses
import errno
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from metarl import cli, outer, runs, training
from metarl.algorithms.maml import MAML
from metarl.algorithms.multitask import MultiTask
from metarl.control.rollouts import RolloutError
from metarl.control.sampling import Sampling
from metarl.environments.mdp import MDPVectorEnv
from metarl.fewshot import NWayKShot, Regression
from metarl.networks.options import Network
from metarl.outer import adapted
from metarl.outer.gradient import Adam
from metarl.runs import logger, writers
from metarl.seeding import stream
from metarl.speed import each_group, resolve_device
from metarl.testing.batches import tensors
from metarl.training import Source
from metarl.training.callbacks import StopAtScore
from metarl.training.iteration import gather
from metarl.training.loop import Run, TrainingError
from metarl.training.settings import Settings
from metarl.types import Experience, Learner, Outer, Params, Spec, Split, Tasks, Update
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation

ALGORITHM = MAML(network=Network(hidden=(8,)))
BANDIT = Bandit(arms=3, sampling=Sampling(episodes=2, horizon=5))
NAVIGATION = PointNavigation(sampling=Sampling(episodes=2, horizon=5))
UPDATES: list[Outer] = [outer.TRPO(), outer.ProMP(), outer.Adam()]
TINY = ["--meta-batch-size", "3", "--device", "cpu", "--algorithm.hidden", "8", "--tasks.arms", "3",
        "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "5"]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """More would only wait for each other on matrices of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def ordered_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads its files by name: second, process, number. One process resumes within a second here."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the toolkit catches it."""


@dataclasses.dataclass(frozen=True)
class Faulty:
    """An update that finds a meta-gradient that is not finite in the iterations that it is told."""

    bad: tuple[int, ...] = ()

    def init(self, params: Params) -> dict[str, Any]:
        return {"calls": 0}

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        calls = {"calls": state["calls"] + 1}
        if calls["calls"] in self.bad:
            return Update(params, calls, {}, finite=False)
        return Update({name: value + 1 for name, value in params.items()}, calls, {"outer/kl": 0.5})


def settings(iterations: int, every: int = 2, **options: Any) -> Settings:
    return Settings(iterations=iterations, meta_batch_size=3, device="cpu", checkpoint_every=every, **options)


def start(folder: Path, iterations: int, update: Outer | None = None, every: int = 2, family: Any = BANDIT) -> Run:
    return training.start(
        Source(ALGORITHM), Source(family), update or outer.Adam(), settings(iterations, every), folder
    )


def rows(folder: Path) -> list[dict[str, str]]:
    """Rows of progress.csv without what a clock says."""
    found = logger.read_progress(folder / "progress.csv")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(value, other[name]) for name, value in one.items())
    return bool(torch.equal(one, other)) if isinstance(one, torch.Tensor) else bool(one == other)


def assert_same(one: Path, other: Path) -> None:
    """Two run folders hold the same result, bit for bit."""
    for name in ("checkpoint.pt", "best.pt"):
        assert equal(*(torch.load(folder / name, weights_only=True) for folder in (one, other))), name
    assert rows(one) == rows(other)
    assert [list(row) for row in rows(one)] == [list(row) for row in rows(other)]
    assert not list(one.glob("*.tmp"))


def steps_on_tensorboard(folder: Path, tag: str = "return/step_0") -> list[int]:
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


def when(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, call: int, action: Callable[[], Any]) -> None:
    """Let ``action`` happen before call number ``call`` (from 1) of ``target.name``."""
    original, calls = getattr(target, name), iter(range(1, 1_000_000))

    def spied(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            action()
        return original(*arguments, **options)

    monkeypatch.setattr(target, name, spied)


def die() -> None:
    raise Killed


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("family", [BANDIT, NAVIGATION], ids=["bandit", "navigation"])
@pytest.mark.parametrize("update", UPDATES, ids=["trpo", "promp", "adam"])
def test_a_stopped_run_goes_on_exactly(tmp_path: Path, update: Outer, family: Any) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = start(whole, 5, update, family=family)
    params = expected.train(expected.first()).params
    first = start(parts, 1, update, family=family)
    first.train(first.first())
    training.resume(parts, iterations=2)
    result = training.resume(parts, iterations=5)
    assert equal(result.params, params)
    assert [row["iteration"] for row in result.rows] == [3, 4, 5]
    assert_same(whole, parts)
    assert runs.read_config(parts)["settings"] == runs.read_config(whole)["settings"]


def test_only_every_so_many_iterations_are_logged_and_chosen_from(tmp_path: Path) -> None:
    dense, sparse = (
        training.start(Source(ALGORITHM), Source(BANDIT), outer.Adam(), settings(7, log_every=every), tmp_path / name)
        for name, every in [("dense", 1), ("sparse", 3)]
    )
    every, some = dense.train(dense.first()), sparse.train(sparse.first())
    assert equal(some.params, every.params)
    logged = [row for row in every.rows if row["iteration"] in (3, 6, 7)]
    assert [row["return/step_1"] for row in some.rows] == [row["return/step_1"] for row in logged]
    assert [row["iteration"] for row in logger.read_progress(tmp_path / "sparse" / "progress.csv")] == ["3", "6", "7"]
    best = runs.load_checkpoint(tmp_path / "sparse" / "best.pt")["best"]
    assert best == max(row["return/step_1"] for row in logged)


def test_labelled_examples_get_settings_of_their_own() -> None:
    assert training.default_settings(BANDIT.spec) == Settings(500, 40, checkpoint_every=10, log_every=1)
    assert training.default_settings(Spec((1,), 1, "regression")).log_every == 100


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five iterations of Adam on bandits, with checkpoints after 2, 4 and 5, that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run = start(folder, 5)
    run.train(run.first())
    return folder


def test_a_run_killed_before_any_write_goes_on_exactly(tmp_path: Path) -> None:
    """Whatever write the kill precedes: of a row, of a best or last checkpoint, of its sync or of its renaming."""
    expected = start(tmp_path / "whole", 3)
    expected.train(expected.first())
    killed, place = True, 0
    while killed:
        place += 1
        folder = tmp_path / str(place)
        run = start(folder, 3)
        with pytest.MonkeyPatch.context() as patch:
            killed = _killed_at(patch, place, run)
        if killed:
            training.resume(folder)
        assert_same(folder, tmp_path / "whole")
    assert place > 9, "three rows, two checkpoints, one best"


def _killed_at(patch: pytest.MonkeyPatch, place: int, run: Run) -> bool:
    """Train, and die before write number ``place``; tell whether there were so many."""
    writes = iter(range(1, 1000))

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **options: Any) -> Any:
            if next(writes) == place:
                raise Killed
            return original(*arguments, **options)

        return write

    for target, name in ((os, "fsync"), (Path, "replace"), (writers.ProgressCSV, "write")):
        patch.setattr(target, name, counted(getattr(target, name)))
    try:
        run.train(run.first())
    except Killed:
        return True
    return False


def test_a_run_killed_again_and_again_goes_on_exactly(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path, 5)
    for call in (2, 3, 1, 2):
        with monkeypatch.context() as patch:
            when(patch, Run, "learn", call, die)
            with pytest.raises(Killed):
                training.resume(tmp_path)
    training.resume(tmp_path)
    assert_same(tmp_path, whole)
    assert steps_on_tensorboard(tmp_path) == [1, 2, 3, 4, 5]


def test_a_run_killed_before_its_first_checkpoint_starts_over(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, 5)
    with monkeypatch.context() as patch:
        when(patch, runs, "save_checkpoint", 2, die)  # the first is of the best parameters
        with pytest.raises(Killed):
            run.train(run.first())
    assert not (tmp_path / "checkpoint.pt").exists()
    assert len(rows(tmp_path)) > 0
    training.resume(tmp_path)
    assert_same(tmp_path, whole)
    assert steps_on_tensorboard(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("left", [1, 40, -1], ids=["one byte", "some", "no newline"])
def test_a_last_row_that_was_cut_short_is_written_again(tmp_path: Path, whole: Path, left: int) -> None:
    run = start(tmp_path, 4)
    run.train(run.first())
    csv = tmp_path / "progress.csv"
    *lines, last = csv.read_text().splitlines(keepends=True)
    csv.write_text("".join(lines) + last + last.replace("4,", "5,", 1)[:left])
    training.resume(tmp_path, iterations=5)
    assert_same(tmp_path, whole)


def test_tensorboard_shows_no_step_twice(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path, 5)
    when(monkeypatch, Run, "save", 4, die)  # whose row is written, but not its checkpoint
    with pytest.raises(Killed):
        run.train(run.first())
    assert len(rows(tmp_path)) > run.restore(tmp_path / "checkpoint.pt").iteration
    training.resume(tmp_path)
    assert steps_on_tensorboard(tmp_path) == [1, 2, 3, 4, 5]
    written = EventAccumulator(str(tmp_path)).Reload().Scalars("return/step_1")
    assert [event.value for event in written] == pytest.approx([float(row["return/step_1"]) for row in rows(tmp_path)])


PATIENCE = 1800
"""Seconds after which something hangs: a busy machine is many times slower than a quiet one."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "metarl.cli", *arguments]


def wait_for_rows(process: "subprocess.Popen[bytes]", folder: Path, count: int) -> None:
    limit = time.monotonic() + PATIENCE
    path = folder / "progress.csv"
    while not path.exists() or path.read_bytes().count(b"\n") <= count:
        assert process.poll() is None, "the process ended by itself"
        assert time.monotonic() < limit, "no progress"
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_killed_twice_by_the_system_goes_on_exactly(tmp_path: Path) -> None:
    folder, expected = tmp_path / "killed", tmp_path / "whole"
    options = ["--checkpoint-every", "7", "--outer", "promp", "--quiet", *TINY]
    moments = random.Random(time.time_ns())
    # So long that it cannot end before it is killed, however late that may be.
    started = command("train", "maml", "bandit", "--out", str(folder), "--iterations", "100000", *options)
    first, second = moments.randint(1, 6), moments.randint(8, 30)
    for arguments, count in ((started, first), (command("resume", str(folder), "--quiet"), second)):
        with subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            wait_for_rows(process, folder, count)
            time.sleep(moments.uniform(0, 0.02))
            process.kill()
        assert process.returncode == -signal.SIGKILL
    length = str(len(rows(folder)) + 5)
    assert cli.main(["resume", str(folder), "--iterations", length, "--quiet"]) == 0
    assert cli.main(["train", "maml", "bandit", "--out", str(expected), "--iterations", length, *options]) == 0
    assert_same(folder, expected)


def test_ctrl_c_stops_a_process_after_the_iteration_with_a_checkpoint(tmp_path: Path) -> None:
    folder, expected = tmp_path / "stopped", tmp_path / "whole"
    options = ["--checkpoint-every", "100000", "--outer", "adam", "--quiet", *TINY]
    arguments = command("train", "maml", "bandit", "--out", str(folder), "--iterations", "100000", *options)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:  # fmt: skip
        wait_for_rows(process, folder, 1)
        process.send_signal(signal.SIGINT)
        told, warned = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert told == f"stopped; the checkpoint is saved. Go on with: metarl resume {folder}\n"
    assert warned == "stopping after this iteration; press Ctrl-C again to stop at once\n"
    reached = len(rows(folder))
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["iteration"] == reached
    assert cli.main(["resume", str(folder), "--iterations", str(reached + 2), "--quiet"]) == 0
    whole = ["train", "maml", "bandit", "--out", str(expected), "--iterations", str(reached + 2), *options]
    assert cli.main(whole) == 0
    assert_same(folder, expected)


@pytest.mark.parametrize("place", ["learn", "save"])
def test_ctrl_c_at_any_moment_leaves_a_checkpoint_of_the_last_row(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run, before = start(tmp_path, 5, every=100), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        when(patch, Run, place, 2, interrupt)
        result = run.train(run.first())
    assert result.interrupted
    assert signal.getsignal(signal.SIGINT) is before
    saved = run.restore(tmp_path / "checkpoint.pt")
    assert saved.iteration == len(rows(tmp_path)) == len(result.rows) < 5
    assert equal(saved.params, result.params)
    training.resume(tmp_path)
    assert_same(tmp_path, whole)


def test_ctrl_c_while_a_checkpoint_is_written_stops_with_a_later_one(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was decided that this iteration needs none."""
    run = start(tmp_path, 5, every=100)
    with monkeypatch.context() as patch:
        when(patch, runs, "save_checkpoint", 1, interrupt)  # of the best parameters, in iteration 1
        result = run.train(run.first())
    assert result.interrupted
    assert run.restore(tmp_path / "checkpoint.pt").iteration == len(rows(tmp_path)) == 2
    training.resume(tmp_path)
    assert_same(tmp_path, whole)


def test_ctrl_c_in_the_last_iteration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path, 2)
    when(monkeypatch, Run, "learn", 2, interrupt)
    assert not run.train(run.first()).interrupted
    with pytest.raises(runs.RunError, match="nothing is left to do"):
        training.resume(tmp_path)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = start(tmp_path, 5), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        when(patch, Run, "learn", 3, interrupt)
        when(patch, adapted, "mean_gradient", 3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.train(run.first())
    assert signal.getsignal(signal.SIGINT) is before
    assert run.restore(tmp_path / "checkpoint.pt").iteration == 2
    training.resume(tmp_path)
    assert_same(tmp_path, whole)


def test_training_works_outside_the_main_thread(whole: Path) -> None:
    results = []
    run = training.start(Source(ALGORITHM), Source(BANDIT), outer.Adam(), settings(5))
    worker = threading.Thread(target=lambda: results.append(run.train(run.first())))
    worker.start()
    worker.join()
    assert equal(results[0].params, torch.load(whole / "checkpoint.pt", weights_only=True)["params"])


@pytest.mark.parametrize("update", UPDATES, ids=["trpo", "promp", "adam"])
def test_one_seed_gives_one_result_and_another_seed_another(update: Outer) -> None:
    one, same, other = (training.train(ALGORITHM, NAVIGATION, update, settings(2, seed=seed)) for seed in (3, 3, 4))
    assert equal(one.params, same.params)
    assert not equal(one.params, other.params)
    for row, again in zip(one.rows, same.rows, strict=True):
        kept = [name for name in row if not name.startswith("time/")]
        assert [row[name] for name in kept] == [again[name] for name in kept]


def test_the_global_generators_are_untouched(tmp_path: Path) -> None:
    states = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    run = start(tmp_path, 2, outer.TRPO())
    run.train(run.first())
    training.resume(tmp_path, iterations=3)
    training.load(tmp_path)
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[0])
    assert after["state"]["pos"] == states[1]["state"]["pos"]
    assert (after["state"]["key"] == states[1]["state"]["key"]).all()
    assert random.getstate() == states[2]


def test_threads_and_gradient_mode_are_given_back() -> None:
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    training.train(ALGORITHM, BANDIT, outer.TRPO(), settings(1))
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()) == before


@dataclasses.dataclass(frozen=True)
class Recorded(Bandit):
    """Keeps the meta-batches that it was asked for, but not the single task by which a family may be checked."""

    seen: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def sample(self, num_tasks: int, split: Split, generator: torch.Generator) -> Any:
        tasks = super().sample(num_tasks, split, generator)
        if num_tasks > 1:
            self.seen.append(tasks.descriptors)
        return tasks


@pytest.mark.parametrize("kind", [outer.TRPO, outer.ProMP, outer.Adam])
def test_tasks_and_results_do_not_depend_on_chunks(kind: Any, float64: None) -> None:
    families = [Recorded(arms=3, sampling=Sampling(2, 5)) for _ in range(2)]
    results = [
        training.train(ALGORITHM, family, kind(chunks=chunks), settings(3))
        for family, chunks in zip(families, (1, 3), strict=True)
    ]
    assert torch.equal(torch.stack(families[0].seen), torch.stack(families[1].seen))
    assert results[0].rows[0]["return/step_1"] == results[1].rows[0]["return/step_1"]
    for name, value in results[0].params.items():
        torch.testing.assert_close(value, results[1].params[name], rtol=1e-6, atol=1e-9)


def test_tasks_do_not_depend_on_how_they_are_sampled_or_learnt() -> None:
    few, many = (Recorded(arms=3, sampling=Sampling(episodes, 5)) for episodes in (1, 3))
    training.train(ALGORITHM, few, outer.Adam(), settings(2))
    training.train(MAML(network=Network(hidden=(4,)), steps=2), many, outer.TRPO(), settings(2))
    assert torch.equal(torch.stack(few.seen), torch.stack(many.seen))
    assert torch.equal(few.seen[1], BANDIT.sample(3, "train", stream(0, "tasks/train", 2)).descriptors)


def test_every_step_of_every_task_is_logged_under_the_promised_names() -> None:
    result = training.train(MAML(network=Network(hidden=(8,)), steps=2), BANDIT, outer.TRPO(), settings(2))
    assert {
        "iteration", "return/step_0", "return/step_1", "return/step_2", "outer/kl", "outer/surrogate",
        "outer/line_search_steps", "outer/refused", "tasks/seen", "time/iteration_seconds",
        "time/environment_steps_per_second",
    } <= set(result.rows[1])  # fmt: skip
    assert [row["tasks/seen"] for row in result.rows] == [3, 6]
    assert all(0 <= row["return/step_0"] <= 5 for row in result.rows)


def test_the_best_checkpoint_holds_the_parameters_that_earned_the_best_score(tmp_path: Path) -> None:
    run = start(tmp_path, 6, outer.Adam(learning_rate=0.3))
    visited = []
    progress = run.first()
    for _ in range(6):
        reached, row = run.iterate(progress)
        visited.append((row["return/step_1"], progress.params))
        progress = reached
    run.train(run.first())
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    scores = [score for score, _ in visited]
    index = scores.index(max(scores))
    assert best["best"] == max(scores) == torch.load(tmp_path / "checkpoint.pt", weights_only=True)["best"]
    assert best["iteration"] == index, "the first of the best, after so many updates"
    assert equal(best["params"], visited[index][1])


@pytest.mark.parametrize(
    ("row", "score"),
    [
        ({"return/step_0": 9.0, "return/step_1": 2.0, "time/x": 7.0}, 2.0),
        ({"loss/step_3": 0.5, "accuracy/step_3": 0.9}, -0.5),
        ({f"return/step_{step}": float(step) for step in range(12)}, 11.0),
        ({"outer/loss": 3.0, "time/x": 7.0}, -3.0),
    ],
)
def test_the_training_score_is_that_of_the_last_adaptation(row: dict[str, float], score: float) -> None:
    assert training.training_score(row) == score


def test_where_nothing_tells_a_score_there_is_none() -> None:
    assert math.isnan(training.training_score({"time/x": 7.0}))
    told: Any = SimpleNamespace(row={"time/x": 7.0})
    assert StopAtScore(0.0)(told)


def test_a_learner_of_examples_without_metrics_trains(tmp_path: Path) -> None:
    """It died of an IndexError. Its best parameters are those of the smallest meta-loss."""

    class Silent:
        def build(self, spec: Spec) -> Learner:
            learner = MAML(network=Network(hidden=(4,))).build(spec)
            return learner._replace(meta_loss=lambda *given: (learner.meta_loss(*given)[0], {}))

    lines = Regression(lambda inputs, slope: slope * inputs, {"slope": (-1.0, 1.0)}, shots=2)
    run = Run(Silent(), lines, Adam(), Settings(iterations=5, meta_batch_size=2, device="cpu"), tmp_path)
    rows = run.train(run.first()).rows
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["best"] == -min(row["outer/loss"] for row in rows)


@pytest.mark.parametrize("lacking", ["params", "outer", "iteration", "refused", "buffers"])
def test_a_checkpoint_that_lacks_a_field_is_told(lacking: str, tmp_path: Path) -> None:
    lines = Regression(lambda inputs, slope: slope * inputs, {"slope": (-1.0, 1.0)}, shots=2)
    run = Run(MAML(network=Network(hidden=(4,))), lines, Adam(), Settings(1, 2, device="cpu"), tmp_path)
    run.train(run.first())
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del saved[lacking]
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(runs.RunError, match=f"checkpoint.pt is damaged: {lacking} is missing"):
        run.restore(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_in_a_line(dtype: torch.dtype) -> None:
    """It raised 'Bad in-place call', and worker threads did not follow it."""
    lines = Regression(lambda inputs, slope: slope * inputs, {"slope": (-1.0, 1.0)}, shots=2)
    algorithm = MAML(network=Network(hidden=(4,)))
    run, learner = Run(algorithm, lines, Adam(), Settings(1, 2, device="cpu")), algorithm.build(lines.spec)
    first = run.first()
    state = learner.begin(first.params, torch.zeros(2, 1))
    support = lines.sample(2, "train", torch.Generator()).draw("support", torch.Generator())
    with torch.autocast("cpu", dtype=dtype):
        for refused in (
            lambda: run.iterate(first),
            lambda: learner.adapt(state, support),
            lambda: each_group(lambda group: group, [1, 2]),
        ):
            with pytest.raises(ValueError, match=r"torch\.autocast is on, which adaptation and outer updates do not"):
                refused()
        with torch.autocast("cpu", enabled=False):
            run.iterate(first)


@pytest.mark.parametrize("scores", [[float("nan"), -2.0, -3.0], [-2.0, float("nan"), -3.0]])
def test_a_score_that_is_no_number_is_never_the_best_for_long(scores: list[float]) -> None:
    run = training.start(Source(ALGORITHM), Source(BANDIT), outer.Adam(), settings(5))
    progress = run.first()
    for score in scores:
        progress = run.save(progress, progress, score, ends=False)
    assert progress.best == -2.0


class TestRefusedUpdates:
    def test_they_are_counted_in_a_row_and_keep_the_parameters(self, tmp_path: Path) -> None:
        run = start(tmp_path, 9, Faulty((1, 2, 3, 4, 6, 7, 8, 9)))
        first = run.first()
        result = run.train(first)
        assert [row["outer/refused"] for row in result.rows] == [1, 2, 3, 4, 0, 1, 2, 3, 4]
        assert equal(result.params, {name: value + 1 for name, value in first.params.items()})
        saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert (saved["refused"], saved["outer"]) == (4, {"calls": 9})

    def test_five_in_a_row_stop_training_and_the_checkpoint_stays(self, tmp_path: Path) -> None:
        run = start(tmp_path, 9, Faulty((3, 4, 5, 6, 7)))
        first = run.first()
        with pytest.raises(TrainingError, match="not finite in 5 iterations in a row, up to iteration 7"):
            run.train(first)
        saved = run.restore(tmp_path / "checkpoint.pt")
        assert (saved.iteration, saved.refused) == (6, 4)
        assert equal(saved.params, {name: value + 1 + 1 for name, value in first.params.items()})
        with pytest.raises(TrainingError):
            training.resume(tmp_path)
        run.outer = Faulty()
        assert run.train(saved).rows[0]["outer/refused"] == 0

    def test_the_count_is_resumed(self, tmp_path: Path) -> None:
        run = start(tmp_path, 3, Faulty((1, 2, 3, 4, 5)))
        run.train(run.first())
        with pytest.raises(TrainingError, match="up to iteration 5"):
            training.resume(tmp_path, iterations=9)

    def test_the_columns_survive_a_refused_first_iteration(self, tmp_path: Path) -> None:
        folders = [tmp_path / name for name in ("whole", "parts")]
        run = start(folders[0], 4, Faulty((1, 3)), every=1)
        run.train(run.first())
        assert [row["outer/kl"] for row in rows(folders[0])] == ["", "0.5", "", "0.5"]
        assert [row["outer/refused"] for row in rows(folders[0])] == ["1", "0", "1", "0"]
        run = start(folders[1], 1, Faulty((1, 3)), every=1)
        run.train(run.first())
        training.resume(folders[1], iterations=3)
        training.resume(folders[1], iterations=4)
        assert_same(*folders)

    @pytest.mark.parametrize("update", UPDATES, ids=["trpo", "promp", "adam"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_every_outer_update_refuses(self, monkeypatch: pytest.MonkeyPatch, update: Outer, value: float) -> None:
        run = training.start(Source(ALGORITHM), Source(BANDIT), update, settings(2))
        before, _ = run.iterate(run.first())
        gradient, surrogate_gradient = adapted.gradient, adapted.surrogate_gradient

        def spoilt(*arguments: Any, **options: Any) -> torch.Tensor:
            found = gradient(*arguments, **options)
            found[0] = value
            return found

        def spoilt_with_loss(lines: Any) -> Any:
            loss, found, outputs = surrogate_gradient(lines)
            found[0] = value
            return loss, found, outputs

        monkeypatch.setattr(adapted, "gradient", spoilt)
        monkeypatch.setattr(adapted, "surrogate_gradient", spoilt_with_loss)
        after, row = run.iterate(before)
        assert row["outer/refused"] == after.refused == 1
        assert equal(after.params, before.params)
        assert equal(after.outer, before.outer)

    def test_a_loss_that_is_not_finite_is_refused_from_end_to_end(self) -> None:
        """A learner whose outputs are right, but whose gradient is not a number."""

        @dataclasses.dataclass(frozen=True)
        class Spoilt(MAML):
            def build(self, spec: Any) -> Learner:
                learner = super().build(spec)

                def predict(state: Any, inputs: torch.Tensor) -> Any:
                    outputs, state = learner.predict(state, inputs)
                    return outputs + (outputs - outputs.detach()).abs().sqrt(), state  # 0 / 0 in its gradient

                return learner._replace(predict=predict)

        run = training.start(Source(Spoilt(network=Network(hidden=(8,)))), Source(BANDIT), outer.TRPO(), settings(9))
        first = run.first()
        reached, row = run.iterate(first)
        assert row["outer/refused"] == 1
        assert equal(reached.params, first.params)
        with pytest.raises(TrainingError, match="5 iterations in a row"):
            run.train(first)


class TestFailures:
    def test_an_environment_that_raises_leaves_the_last_checkpoint(
        self, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        start(tmp_path, 5)
        with monkeypatch.context() as patch:
            when(patch, MDPVectorEnv, "step", 33, lambda: 1 / 0)  # 10 steps an iteration
            assert cli.main(["resume", str(tmp_path), "--quiet"]) == 1
        told = capsys.readouterr().err
        assert "Traceback" in told
        assert "ZeroDivisionError" in told
        assert "RolloutError" in told
        assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 2
        assert cli.main(["resume", str(tmp_path), "--quiet"]) == 0
        assert_same(tmp_path, whole)

    def test_a_reward_that_is_not_finite_stops_training(
        self, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = MDPVectorEnv.step

        def step(env: MDPVectorEnv, actions: Any) -> Any:
            observations, rewards, *rest = original(env, actions)
            return (observations, rewards.index_fill(0, torch.tensor([5]), float("nan")), *rest)

        run = start(tmp_path, 5)
        with monkeypatch.context() as patch:
            patch.setattr(MDPVectorEnv, "step", step)
            with pytest.raises(RolloutError, match=r"rewards.*task 2.*lane 5.*step"):
                run.train(run.first())
        training.resume(tmp_path)
        assert_same(tmp_path, whole)

    def test_a_disk_that_is_full_at_any_sync_leaves_what_was_there(
        self, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, calls = start(tmp_path / "0", 5), list[int]()
        with monkeypatch.context() as patch:
            fsync = os.fsync
            patch.setattr(os, "fsync", lambda descriptor: [calls.append(descriptor), fsync(descriptor)][1])
            run.train(run.first())
        assert len(calls) > 4
        for call in range(1, len(calls) + 1):
            folder = tmp_path / str(call)
            run = start(folder, 5)
            with monkeypatch.context() as patch:
                when(patch, os, "fsync", call, full)
                with pytest.raises(OSError, match=rf"could not write {folder}.*No space left") as caught:
                    run.train(run.first())
            assert caught.value.errno == errno.ENOSPC
            assert not list(folder.glob("*.tmp"))
            for path in folder.glob("*.pt"):
                runs.load_checkpoint(path)
            training.resume(folder)
            assert_same(folder, whole)

    def test_a_row_that_finds_no_room_is_named_and_written_later(
        self, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = start(tmp_path, 5)
        with monkeypatch.context() as patch:
            when(patch, writers.csv.DictWriter, "writerow", 4, full)
            with pytest.raises(OSError, match=f"could not write {tmp_path}/progress.csv: No space left"):
                run.train(run.first())
        training.resume(tmp_path)
        assert_same(tmp_path, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a file system takes root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


# TensorBoard writes in a thread of its own, and tells a second time there that it could not.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_up_leaves_a_run_that_goes_on(
    small_disk: Path, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path / "run", 4)
    run.train(run.first())
    before, codes = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True), []
    for pages in range(8):
        folder, filler = small_disk / str(pages), small_disk / "filler"
        shutil.copytree(tmp_path / "run", folder)
        with filler.open("wb", buffering=0) as file:
            while (free := os.statvfs(small_disk).f_bavail) > pages:
                file.write(b"x" * 4096 * (free - pages))
        codes.append(cli.main(["resume", str(folder), "--iterations", "5", "--quiet"]))
        told = capsys.readouterr().err
        filler.unlink()
        if codes[-1]:
            assert "Traceback" not in told or codes[-1] == 1
            assert "No space left on device" in told
            assert not list(folder.glob("*.tmp"))
            assert equal(torch.load(folder / "checkpoint.pt", weights_only=True), before)
            assert cli.main(["resume", str(folder), "--iterations", "5", "--quiet"]) == 0
        assert_same(folder, whole)
        shutil.rmtree(folder)
    assert set(codes) >= {0, 2}


class TestBadInput:
    @pytest.mark.parametrize("name", ["iterations", "meta_batch_size", "checkpoint_every", "log_every"])
    def test_settings_below_one_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name}=0.* must be at least 1"):
            Settings(**{name: 0})

    def test_more_chunks_than_tasks_are_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="chunks=4 is more than the 3 tasks"):
            start(tmp_path / "run", 5, outer.TRPO(chunks=4))
        assert not (tmp_path / "run").exists()

    def test_a_folder_that_holds_a_run_is_refused(self, tmp_path: Path) -> None:
        start(tmp_path, 5)
        with pytest.raises(runs.RunError, match=r"already contains a run.*--overwrite"):
            training.train(ALGORITHM, BANDIT, outer.Adam(), settings(1), out=tmp_path)

    def test_overwriting_leaves_nothing_of_the_old_run(self, tmp_path: Path, whole: Path) -> None:
        training.train(ALGORITHM, BANDIT, outer.Adam(), settings(7, seed=1), out=tmp_path)
        (tmp_path / "evaluation.json").write_text("{}")
        training.train(ALGORITHM, BANDIT, outer.Adam(), settings(5), out=tmp_path, overwrite=True)
        assert_same(tmp_path, whole)
        assert not (tmp_path / "evaluation.json").exists()
        assert steps_on_tensorboard(tmp_path) == [1, 2, 3, 4, 5]

    def test_a_finished_run_is_not_resumed(self, whole: Path) -> None:
        with pytest.raises(runs.RunError, match=r"stands at iteration 5 of 5: nothing is left to do.*--iterations"):
            training.resume(whole)
        with pytest.raises(runs.RunError, match="stands at iteration 5 of 4"):
            training.resume(whole, iterations=4)
        assert runs.read_config(whole)["settings"]["iterations"] == 5

    def test_cuda_is_refused_where_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match="finds no CUDA device"):
            training.train(ALGORITHM, BANDIT, settings=Settings(device="cuda"))
        assert resolve_device("auto") == torch.device("cpu")

    def test_an_unknown_name_tells_the_nearest(self) -> None:
        with pytest.raises(LookupError, match="did you mean 'bandit'"):
            training.train("maml", "bandits")


def test_names_stand_for_their_default_options(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Run] = []
    monkeypatch.setattr(Run, "train", lambda run, *arguments: built.append(run))
    training.train("maml", "bandit")
    assert (built[0].algorithm, built[0].family, built[0].outer) == (MAML(), Bandit(), outer.TRPO())


def test_the_table_is_written_every_ten_iterations_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    training.train(ALGORITHM, BANDIT, outer.Adam(), settings(12), quiet=False)
    told = capsys.readouterr()
    assert told.out.count("step_0") == 2
    assert told.err == "", "a bar is for terminals"
    training.train(ALGORITHM, BANDIT, outer.Adam(), settings(10))
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_the_returns_beside_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    last = training.train(ALGORITHM, BANDIT, outer.Adam(), settings(3), quiet=False).rows[-1]
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "3/3" in shown
    assert f"return/step_1={last['return/step_1']:.4g}" in shown
    training.train(ALGORITHM, BANDIT, outer.Adam(), settings(5, log_every=2), quiet=False)
    assert "5/5" in capsys.readouterr().err.split("\r")[-1]


def test_a_checkpoint_holds_all_that_the_next_iteration_depends_on(whole: Path) -> None:
    for name, iteration in (("checkpoint.pt", 5), ("best.pt", None)):
        saved = torch.load(whole / name, weights_only=True)
        assert set(saved) == {"format", "iteration", "params", "outer", "best", "refused", "buffers"}
        assert iteration in (None, saved["iteration"])
        assert {key: tuple(value.shape) for key, value in saved["params"].items()} == {
            "hidden_0.weight": (8, 1), "hidden_0.bias": (8,), "head.weight": (3, 8), "head.bias": (3,)
        }  # fmt: skip
        assert set(saved["outer"]) == {"count", "first", "second"}


def test_parameters_of_another_precision_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path, 2)
    run.train(run.first())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(runs.RunError, match=r"hidden_0\.weight is torch\.float32 .* and torch\.float64"):
            training.resume(tmp_path, iterations=3)
        run = start(tmp_path / "double", 1)
        run.train(run.first())
        assert training.resume(tmp_path / "double", iterations=2).params["head.bias"].dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


def test_gathering_keeps_no_graph_and_draws_fresh_episodes_for_every_step() -> None:
    learner = MAML(network=Network(hidden=(8,)), steps=2).build(BANDIT.spec)
    params = {name: value.requires_grad_() for name, value in learner.init(stream(0, "a")).items()}
    tasks: Tasks = BANDIT.sample(3, "train", stream(0, "b"))
    draws = (stream(0, "c", index) for index in range(9))
    experience, scores = gather(learner, params, tasks, draws)
    batches = [*experience.supports, experience.query]
    assert len(batches) == 3
    assert not any(tensor.requires_grad for batch in batches for tensor in tensors(batch))
    assert not torch.equal(batches[0].actions, batches[1].actions)  # type: ignore[union-attr]
    assert list(scores) == ["return/step_0", "return/step_1", "return/step_2"]
    returns = [float(batch.rewards.sum(2).mean()) for batch in batches]  # type: ignore[union-attr]
    assert list(scores.values()) == pytest.approx(returns)


@dataclasses.dataclass(frozen=True)
class Pole:
    """A family whose targets are infinite where a task's parameter is above a half: nothing that a few tries tell."""

    most: float = 1.0

    @property
    def spec(self) -> Spec:
        return Spec((1,), 1, "regression", 1)

    def sample(self, num_tasks: int, split: Split, generator: torch.Generator) -> Any:
        family = Regression(lambda inputs, height: inputs * height, {"height": (0.0, self.most)}, shots=3)
        tasks = family.sample(num_tasks, split, generator)
        return dataclasses.replace(tasks, function=lambda inputs, height: inputs * (height / (height < 0.5)))


def test_data_that_are_not_finite_are_blamed_for_it() -> None:
    algorithm = MAML(network=Network(hidden=(4,)))
    with pytest.raises(
        TrainingError, match="the family's data are to blame: support targets hold numbers that are not f"
    ):
        training.train(algorithm, Pole(), settings=settings(20))
    sgd = outer.SGD(learning_rate=1e30)
    with pytest.raises(TrainingError, match="are kept; try a smaller step size"):
        training.train(algorithm, Pole(0.4), sgd, settings(20))
    with pytest.raises(TrainingError, match=r"not with the initial parameters either: .* a smaller inner step size"):
        training.train(dataclasses.replace(algorithm, step_size=1e30), Pole(0.4), sgd, settings(20))
    numbers = MultiTask(multi_label=True, network=Network(hidden=(4,)))  # which reads labels: from 0 to 1
    with pytest.raises(TrainingError, match="not with the initial parameters either: see that labels are from 0 to 1"):
        training.train(numbers, Pole(0.4), settings=settings(20))


def few(validation: int, test: int) -> NWayKShot:
    """Six classes for training, and so many for validation and for test."""
    classes = {"train": range(6), "validation": range(6, 6 + validation), "test": range(9, 9 + test)}
    return NWayKShot(torch.arange(60.0).unsqueeze(1), torch.arange(60) % 12, ways=3, classes=classes)


def test_splits_that_are_too_small_are_told_before_training() -> None:
    def begin(family: NWayKShot, **options: Any) -> None:
        parts = Source(MAML(network=Network(hidden=(4,)))), Source(family)
        training.start(*parts, settings=settings(2, **options))

    with pytest.raises(ValueError, match="the test split has 2 classes, but a task takes 3"):
        begin(few(3, 2))
    with pytest.warns(
        UserWarning, match="the validation split has 2 classes, but a task takes 3: no validation will be"
    ):
        begin(few(2, 3))
    with pytest.raises(ValueError, match="the validation split has 2 classes, but a task takes 3"):
        begin(few(2, 3), validate_every=1)
    begin(few(0, 0))  # which are not asked for
    begin(few(3, 3), validate_every=1)
