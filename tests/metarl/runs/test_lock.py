"""One writer at a time: the second is refused in one line, a dead one is in nobody's way, readers do not wait."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from metarl import cli, files, runs, training
from metarl.algorithms.maml import MAML
from metarl.control.sampling import Sampling
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.runs import lock
from metarl.runs.layout import RunError
from metarl.runs.lock import RUN_LOCK, claim
from metarl.runs.logger import read_progress
from metarl.training.settings import Settings
from metarl_envs.bandit import Bandit

ALGORITHM, FAMILY = MAML(network=Network(hidden=(4,))), Bandit(arms=2, sampling=Sampling(episodes=2, horizon=3))
SMALL = ["--iterations", "2", "--outer", "adam", "--meta-batch-size", "2", "--algorithm.hidden", "4", "--device", "cpu",
         "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "3", "--quiet"]  # fmt: skip


def owner(**changes: Any) -> dict[str, Any]:
    """What the lock of a living process tells: this one's."""
    told: dict[str, Any] = json.loads(lock._record("abc", "training"))
    return told | changes


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def run(tmp_path: Path) -> Path:
    training.train(ALGORITHM, FAMILY, Adam(), Settings(2, 2, device="cpu"), tmp_path / "run")
    return tmp_path / "run"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_second_writer_is_told_of_the_first(tmp_path: Path) -> None:
    held = claim(tmp_path, "training")
    with pytest.raises(
        RunError, match=rf"{tmp_path} is in use: process {os.getpid()} on .* is training there since 20"
    ):
        claim(tmp_path, "training")
    with claim(tmp_path, "evaluating", lock.EVALUATION_LOCK):
        pass
    held.release()
    held.release()
    claim(tmp_path, "training").release()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_nobody_refers_to_is_none(tmp_path: Path) -> None:
    held = claim(tmp_path, "training")
    ring: list[Any] = [held]
    ring.append(ring)  # only the garbage collector finds it
    del held, ring
    claim(tmp_path, "training").release()


@pytest.mark.parametrize(
    "changes",
    [
        lambda: {"process": dead_process()},
        lambda: {"process": 2**40},
        lambda: {"started": "some-boot 12"},
        lambda: {"process": 1},
    ],
    ids=["its process has ended", "no such process", "a later process has its number", "another one has it"],
)
def test_the_lock_of_a_dead_process_is_no_lock(tmp_path: Path, changes: Callable[[], dict[str, Any]]) -> None:
    (tmp_path / RUN_LOCK).write_text(json.dumps(owner(**changes())))
    claim(tmp_path, "training").release()
    assert not list(tmp_path.iterdir())


def test_a_killed_process_whose_parent_does_not_ask_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = lock.process_start(process.pid)
        (tmp_path / RUN_LOCK).write_text(json.dumps(owner(process=process.pid, started=started)))
        with pytest.raises(RunError, match="is in use"):
            claim(tmp_path, "training")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        claim(tmp_path, "training").release()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps(owner(machine="0" * 8, host="far", process=7)), "process 7 on far .*or, if it has ended, remove "),
        ("", "cannot be read as a lock; if no process writes there, remove that file"),
        ("[" * 5000, "cannot be read as a lock"),
        ('{"token": "a/../b"}', "cannot be read as a lock"),
        (json.dumps(owner(token="../../x")), "cannot be read as a lock"),
        (json.dumps(owner(process=-1)), "cannot be read as a lock"),
    ],
)
def test_a_lock_of_which_nobody_knows_stands_and_says_what_to_do(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / RUN_LOCK).write_text(text)
    with pytest.raises(RunError, match=told) as caught:
        claim(tmp_path, "training")
    assert str(tmp_path / RUN_LOCK) in str(caught.value)
    assert (tmp_path / RUN_LOCK).read_text() == text


def test_without_hard_links_files_are_created_exclusively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(source: Any, target: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    with claim(tmp_path, "training"):
        assert names(tmp_path) == {RUN_LOCK}
        with pytest.raises(RunError, match="is training there since"):
            claim(tmp_path, "training")
    assert not list(tmp_path.iterdir())


def test_a_link_whose_answer_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def lossy(source: Any, target: Any) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", lossy)
    claim(tmp_path, "training").release()
    assert not list(tmp_path.iterdir())


def test_a_child_does_not_release_the_lock(tmp_path: Path) -> None:
    held = claim(tmp_path, "training")
    child = os.fork()
    if not child:
        held.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert held.path.exists()
    held.release()


def test_only_its_own_lock_is_released(tmp_path: Path) -> None:
    held = claim(tmp_path, "training")
    held.path.write_text(json.dumps(owner(token="another")))
    held.release()
    assert held.path.exists()


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = {
        f"metarl-{files.machine()}-{os.getppid()}-00000000.tmp", f"metarl-00000000-{dead_process()}-00000000.tmp",
        "mine.tmp", "metarl-x.tmp",
    }  # fmt: skip
    for name in (*kept, f"metarl-{files.machine()}-{dead_process()}-00000000.tmp"):
        (tmp_path / name).touch()
    claim(tmp_path, "training").release()
    assert names(tmp_path) == kept


RACER = """
import sys
from pathlib import Path
from metarl.runs.lock import claim
print("ready", flush=True)
for folder in map(str.strip, sys.stdin):
    try:
        held = claim(Path(folder), "training")
    except ValueError:
        held = None
    print(held is not None, flush=True)
    sys.stdin.readline()  # all have tried while the winner holds it
    held = held and held.release()
    print("released", flush=True)
"""


def test_of_many_that_begin_at_once_one_gets_the_lock(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]

    def ask(line: str) -> list[str]:
        for racer in racers:
            print(line, file=racer.stdin, flush=True)
        return [racer.stdout.readline().strip() for racer in racers]  # type: ignore[union-attr]

    assert [racer.stdout.readline().strip() for racer in racers] == ["ready"] * 4  # type: ignore[union-attr]
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if attempt % 2:
            (folder / RUN_LOCK).write_text(json.dumps(owner(process=2**40)))
        assert sorted(ask(str(folder))) == ["False"] * 3 + ["True"], f"attempt {attempt}"
        assert ask("") == ["released"] * 4
        assert not list(folder.iterdir())
    for racer in racers:
        racer.communicate()


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [bytes([65 + index]) * 100_000 for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            list(pool.map(lambda text: files.write_bytes(path, text), texts))
            assert path.read_bytes() in texts
    assert list(tmp_path.iterdir()) == [path]


def second(capsys: Any, *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "is in use: process" in said
    return str(said)


def test_commands_refuse_to_be_the_second_writer_and_readers_do_not_wait(run: Path, capsys: Any) -> None:
    before = {name: (run / name).stat().st_mtime_ns for name in names(run)}
    with claim(run, "training"):
        for more in (["--overwrite"], []):
            assert "training" in second(capsys, "train", "maml", "bandit", "--out", run, *more, *SMALL)
        assert "training" in second(capsys, "resume", run, "--iterations", 9)
        assert "training" in second(capsys, "baseline", "ppo", "bandit", "--out", run, "--overwrite")
        with claim(run, "evaluating", lock.EVALUATION_LOCK):
            assert "evaluating" in second(capsys, "evaluate", run)
        assert {name: (run / name).stat().st_mtime_ns for name in names(run) - {RUN_LOCK}} == before
        assert cli.main(["evaluate", str(run), "--tasks", "2", "--steps", "0"]) == 0
        assert cli.main(["plot", str(run)]) == 0
        assert runs.load_checkpoint(run / "checkpoint.pt")["iteration"] == 2
    with claim(run, "evaluating", lock.EVALUATION_LOCK):
        assert "evaluating" in second(capsys, "train", "maml", "bandit", "--out", run, "--overwrite", *SMALL)
    assert cli.main(["train", "maml", "bandit", "--out", str(run), "--overwrite", *SMALL]) == 0
    assert not {name for name in names(run) if "lock" in name or "metarl" in name}


def test_training_holds_the_lock_to_its_end(tmp_path: Path) -> None:
    def look(told: Any) -> None:
        with pytest.raises(RunError, match="is in use"):
            training.resume(tmp_path, iterations=9)

    settings = Settings(2, 2, device="cpu")
    training.train(ALGORITHM, FAMILY, Adam(), settings, tmp_path, callbacks=[look])
    assert not (tmp_path / RUN_LOCK).exists()

    def fail(told: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        training.train(ALGORITHM, FAMILY, Adam(), settings, tmp_path, overwrite=True, callbacks=[fail])
    assert not (tmp_path / RUN_LOCK).exists()


@pytest.mark.slow
def test_of_three_trainings_that_begin_at_once_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "metarl.cli", "train", "maml", "bandit", "--out", str(out), *SMALL]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 2, 2], said
    assert all(len(told.splitlines()) == 1 for told, process in zip(said, started, strict=True) if process.returncode)
    assert [row["iteration"] for row in read_progress(out / "progress.csv")] == ["1", "2"]
    assert not {name for name in names(out) if "lock" in name or "metarl" in name}


@pytest.mark.slow
def test_a_killed_training_is_resumed_though_its_lock_is_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [*SMALL, "--iterations", "100000", "--checkpoint-every", "1"]
    command = [sys.executable, "-m", "metarl.cli", "train", "maml", "bandit", "--out", str(out), *options]
    with subprocess.Popen(command) as process:
        while not (out / "checkpoint.pt").exists():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    assert (out / RUN_LOCK).exists()
    shutil.copytree(out, tmp_path / "copy")
    reached = runs.load_checkpoint(out / "checkpoint.pt")["iteration"]
    training.resume(out, iterations=reached + 1)
    assert not {name for name in names(out) if "lock" in name or "metarl" in name}
