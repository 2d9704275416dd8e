"""Damaged rows and scores: one line that names the file; other runs are drawn all the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from metarl import runs
from metarl.algorithms import MAML
from metarl.cli import main
from metarl.networks import Network
from metarl.pictures import plotting
from metarl.runs.logger import read_progress
from metarl.training.settings import Settings
from metarl.training.start import resume, train

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = Settings(2, 2, device="cpu", validate_every=1, validation_tasks=2, validation_steps=1)
    train(MAML(network=Network(hidden=(4,))), "sinusoid", settings=settings, out=out)
    assert main(["evaluate", str(out), "--tasks", "2", "--steps", "1"]) == 0
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


DAMAGED_ROWS = [
    b"\xff\xfe iteration\n",
    b"iteration,loss/step_0\n1,0.5\x00\n",
    b"loss/step_0,other\n1,0.5\n",
    b"iteration,iteration\n1,0.5\n",
    b"iteration,\n1,0.5\n",
    b"iteration,loss/step_0\n1.5,0.5\n",
    b"iteration,loss/step_0\n-1,0.5\n",
    b"iteration,loss/step_0\n,0.5\n",
    b"iteration,loss/step_0\n1,abc\n",
    b"iteration,loss/step_0\n1,0.5,3\n",
    b"iteration,loss/step_0\n1," + b"9" * 200_000 + b"x\n",
]


@pytest.mark.parametrize("contents", DAMAGED_ROWS)
def test_damaged_rows_are_told_in_a_line(run: Path, tmp_path: Path, contents: bytes, capsys: Captured) -> None:
    (run / "progress.csv").write_bytes(contents)
    with pytest.raises(runs.RunError, match=r"progress.csv cannot be read; it may be damaged: "):
        read_progress(run / "progress.csv")
    for words in (["plot", str(run)], ["resume", str(run), "--iterations", "3"]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{run}/progress.csv cannot be read" in line


@pytest.mark.parametrize("text", ["{", "[3]", '[{"iteration": "1", "score": 0.5}]', '{"a": 1}', "\x00", "[" * 10_000])
def test_damaged_scores_of_training_are_told_before_it_goes_on(run: Path, text: str) -> None:
    (run / "evaluations.json").write_text(text)
    with pytest.raises(runs.RunError, match=r"evaluations.json (cannot be read|is damaged)"):
        resume(run, iterations=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": 3}, {"metrics": {"loss/step_0": 3}}, {"metrics": {"loss/step_0": {"mean": "a"}}},
        {"metrics": {"loss/step_0": {"mean": 1.0, "low": 0.0}}}, {"tasks": "2"}, {"split": None},
    ],
)  # fmt: skip
def test_other_runs_are_drawn_beside_a_damaged_evaluation(
    run: Path, trained: Path, tmp_path: Path, changes: dict[str, Any], capsys: Captured
) -> None:
    record = json.loads((run / "evaluation.json").read_text()) | changes
    del record["sha256"]
    (run / "evaluation.json").write_text(json.dumps(record))
    assert main(["plot", str(run), "--out", str(tmp_path)]) == 2
    assert f"metarl: {run}/evaluation.json is " in capsys.readouterr().err
    assert main(["plot", str(run), str(trained), "--out", str(tmp_path)]) == 0
    assert f"left out: {run}/evaluation.json is " in capsys.readouterr().out
    assert (tmp_path / "adaptation.png").exists()


def test_a_column_of_a_huge_step_is_drawn_at_once(tmp_path: Path) -> None:
    rows = [{"iteration": "1", "loss/step_1000000000000": "0.5", "loss/step_0": "1"}]
    path = plotting.learning_curve({"run": rows}, tmp_path / "a.svg")
    assert path.read_text().count("steps -->") == 1
