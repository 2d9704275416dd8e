"""Several seeds in one command: the same runs as one by one, resumed as a whole, and refused in one line."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl import runs
from metarl.cli import main
from metarl.commands.groups import Manner, folder, processes, training
from metarl.runs.logger import read_progress

SMALL = ["--recipe", "none", "--meta-batch-size", "2", "--algorithm.hidden", "4", "--device", "cpu"]
TRAIN = ["train", "maml", "sinusoid", *SMALL, "--log-every", "1"]
Captured = pytest.CaptureFixture[str]


def call(*words: Any) -> int:
    return main([str(word) for word in words])


def refused(capsys: Captured, *words: Any) -> str:
    capsys.readouterr()
    assert call(*words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    return told.err


def reached(run: Path) -> int:
    return int(runs.load_progress(run / "checkpoint.pt")["iteration"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group of two seeds; not to be changed."""
    group = tmp_path_factory.mktemp("group") / "ours"
    assert call(*TRAIN, "--iterations", 2, "--out", group, "--seeds", 3, 1, "--jobs", 2, "--quiet") == 0
    return group


@pytest.fixture
def group(trained: Path, tmp_path: Path) -> Path:
    """A group to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_a_group_holds_the_runs_that_are_trained_one_by_one(trained: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == ["group.json", "seed-1", "seed-3"]
    assert json.loads((trained / "group.json").read_text())["seeds"] == [1, 3]
    assert call(*TRAIN, "--iterations", 2, "--out", tmp_path / "alone", "--seed", 3, "--quiet") == 0
    ours, alone = (runs.load_progress(run / "checkpoint.pt") for run in (trained / "seed-3", tmp_path / "alone"))
    torch.testing.assert_close(ours, alone)
    assert runs.read_config(trained / "seed-3")["settings"] == runs.read_config(tmp_path / "alone")["settings"]


def test_a_group_goes_on_as_a_whole(group: Path, capsys: Captured) -> None:
    assert call("resume", group, "--iterations", 3, "--jobs", 1) == 0
    told = capsys.readouterr().out
    assert "seed 3: done (3 iterations)" in told and "seed 1: done (3 iterations)" in told
    assert [reached(group / name) for name in ("seed-1", "seed-3")] == [3, 3]
    assert [row["iteration"] for row in read_progress(group / "seed-1" / "progress.csv")] == ["1", "2", "3"]
    assert not list(group.glob("*.log")), "processes that ended well leave nothing"


def test_the_same_command_can_be_repeated(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def recorded(works: Any, jobs: int, quiet: bool) -> Any:
        asked.append([work.seed for work in works])
        return processes.Ended({}, False, None)

    monkeypatch.setattr(training, "train_all", recorded)
    again = [*TRAIN, "--out", group, "--resume", "--quiet", "--iterations", 2]
    assert call(*again, "--seeds", 3, 1) == 0
    assert call(*again, "--seeds", 3, 1, 5) == 0
    assert folder.seeds(group) == [1, 3, 5]
    shutil.rmtree(group / "seed-1")
    assert call(*again, "--seeds", 1) == 0
    assert asked == [[], [5], [1, 5]], "what is done is not done again, what is missing is started"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "0", "0"], "--seeds names 0 twice"),
        (["--seeds", "0", "--jobs", "0"], "--jobs 0: expected at least 1"),
        (["--jobs", "2"], "--jobs is for several seeds: give --seeds too"),
        (["--seeds", "0", "--seed", "1"], "--seed and --seeds were given"),
        (["--seeds", "0", "--overwrite"], "--overwrite replaces one run, not a group of seeds"),
        (["--seeds", "0", "--algorithm.step-size", "-1"], "step_size"),
    ],
)
def test_wrong_groups_are_refused_and_leave_nothing(
    words: list[str], told: str, tmp_path: Path, capsys: Captured
) -> None:
    assert told in refused(capsys, *TRAIN, *words, "--out", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_group_is_not_mixed_with_others(group: Path, trained: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "already contains a group of seeds; go on with it" in refused(capsys, *TRAIN, "--seeds", 3, "--out", group)
    told = refused(capsys, *TRAIN, "--seeds", 3, "--out", group, "--resume", "--algorithm.step-size", 0.5)
    assert "seed-3 was begun with algorithm.step_size=0.1, and 0.5 is asked for now" in told
    assert "contains a run: a group needs a folder of its own" in refused(
        capsys, *TRAIN, "--seeds", 3, "--out", group / "seed-3"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    told = refused(capsys, *TRAIN, "--seeds", 3, "--out", tmp_path / "mine")
    assert "is not empty and contains no group (thesis.txt)" in told
    assert f"--jobs is for a group of seeds, and {trained / 'seed-1'} is not one" in refused(
        capsys, "resume", trained / "seed-1", "--jobs", 1
    )


def test_a_missing_or_unknown_seed_is_told(group: Path, capsys: Captured) -> None:
    shutil.copytree(group / "seed-1", group / "seed-7")
    assert "seed-7 is of no seed of this group (1, 3)" in refused(capsys, "resume", group)
    (group / "group.json").unlink()
    assert "seed-7 was trained with seed 1, not 7" in refused(capsys, "resume", group)
    shutil.rmtree(group / "seed-7")
    folder.write_group(group, [9])
    assert "is a group of the seeds 1, 3, 9, and has no run of seed 9" in refused(capsys, "resume", group)
    (group / "group.json").write_text('{"format": 1, "seeds": "all"}')
    assert "group.json is damaged" in refused(capsys, "resume", group)


def test_runs_that_differ_in_more_than_their_seed_are_no_group(group: Path, capsys: Captured) -> None:
    config = runs.read_config(group / "seed-1")
    config["algorithm"]["options"]["step_size"] = 0.5
    runs.write_record(group / "seed-1" / "config.json", config)
    told = refused(capsys, "resume", group)
    assert "differ in more than their seed: algorithm.step_size is 0.5 for seed 1, and 0.1 for seed 3" in told


def test_runs_of_a_job_array_are_a_group(trained: Path, tmp_path: Path) -> None:
    for seed in (1, 3):
        shutil.copytree(trained / f"seed-{seed}", tmp_path / f"seed-{seed}")
    assert folder.is_group(tmp_path)
    assert list(folder.read_group(tmp_path).runs) == [1, 3]
    assert not folder.is_group(trained / "seed-1")


def test_a_failure_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    works = [
        processes.Work(seed, tmp_path / f"seed-{seed}", 0, 1, words)
        for seed, words in ((0, ["xyz"]), (1, ["--version"]))
    ]
    ended = processes.train_all(works, 1, quiet=True)
    assert list(ended.failed) == [0] and not ended.stopped
    assert "seed 0 failed (exit code 2): unknown command 'xyz'" in ended.failed[0]
    assert [path.name for path in tmp_path.iterdir()] == ["seed-0.log"]


def test_each_process_has_its_share_of_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    class Process:
        def __init__(self, *arguments: Any, env: dict[str, str], **keywords: Any) -> None:
            given.append(env)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(processes, "usable_cpus", lambda: 8)
    monkeypatch.setattr(processes, "POLL", 0.0)
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    processes.train_all([processes.Work(seed, tmp_path / str(seed), 0, 1, []) for seed in range(5)], 2, quiet=True)
    assert {name: {env[name] for env in given} for name in processes.THREADS} == {
        "METARL_CPUS": {"4"},
        "OMP_NUM_THREADS": {"2"},
        "OPENBLAS_NUM_THREADS": {"4"},
        "MKL_NUM_THREADS": {"4"},
    }


@pytest.mark.slow
def test_a_signal_stops_all_and_the_group_goes_on(tmp_path: Path) -> None:
    group = tmp_path / "group"
    words = [*TRAIN, "--iterations", "1000000", "--out", str(group), "--seeds", "0", "1", "--jobs", "2"]
    process = subprocess.Popen([sys.executable, "-m", "metarl", *words], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not all((group / f"seed-{seed}" / "progress.csv").exists() for seed in (0, 1)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"Go on with: metarl resume {group}" in told
    ends = max(reached(group / f"seed-{seed}") for seed in (0, 1)) + 1
    assert training.resumed(group, Manner(iterations=ends, quiet=True))() == 0
    assert [reached(group / f"seed-{seed}") for seed in (0, 1)] == [ends, ends]
