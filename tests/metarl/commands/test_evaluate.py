"""``metarl evaluate``: where an evaluation is written, and what becomes of those before it."""

import json
from pathlib import Path
from typing import Any

import pytest

from metarl import runs
from metarl.cli import main
from metarl.testing import small_family
from metarl_plugins.sinusoid import Sinusoid

QUICK = ["--iterations", "1", "--meta-batch-size", "2", "--device", "cpu", "--quiet"]
FAMILY = small_family("classification")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    assert main(["train", "maml", "sinusoid", *QUICK, "--recipe", "none", "--out", str(folder)]) == 0
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_earlier_evaluations_are_kept_by_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tasks in (2, 3, 3, 4):
        assert main(["evaluate", str(run), "--tasks", str(tasks)]) == 0
    assert f"kept the evaluation before this one as {run / 'evaluation-2.json'}" in capsys.readouterr().out
    found = {path.name: read(path)["tasks"] for path in run.glob("evaluation*.json")}
    assert found == {"evaluation-1.json": 2, "evaluation-2.json": 3, "evaluation.json": 4}, "the same one is kept once"


def test_an_evaluation_is_written_to_a_file_and_the_run_folder_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    out = tmp_path / "new" / "scores.json"
    assert main(["evaluate", str(run), "--tasks", "2", "--steps", "1", "--out", str(out)]) == 0
    assert read(out)["steps"] == 1
    assert sorted(path.name for path in out.parent.iterdir()) == ["scores-adaptation.png", "scores.json"]
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "told"), [("scores.txt", "expected a file that ends in .json"), ("old.json", "exists: nothing is over")]
)
def test_a_file_that_cannot_be_written_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    (tmp_path / "old.json").write_text("mine")
    assert main(["evaluate", str(run), "--tasks", "2", "--out", str(tmp_path / name)]) == 2
    assert told in capsys.readouterr().err
    assert (tmp_path / "old.json").read_text() == "mine"


def test_a_learner_that_knows_all_after_one_look_is_told_once(tmp_path: Path) -> None:
    words = ["train", "protonet", "tests.metarl.commands.test_evaluate:FAMILY", *QUICK, "--algorithm.hidden", "4"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--tasks", "2"]) == 0
    record = runs.read_evaluation(tmp_path / "run")
    assert [name for name in record["metrics"] if name.startswith("accuracy/")] == [
        "accuracy/step_0",
        "accuracy/step_1",
    ]
    assert record["steps"] == 1
    assert main(["evaluate", str(tmp_path / "run"), "--tasks", "2", "--steps", "3"]) == 0
    assert runs.read_evaluation(tmp_path / "run")["steps"] == 3, "as it was asked for"


def test_more_tasks_than_a_family_has_are_refused_in_a_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Sinusoid.sample

    def sample(family: Sinusoid, number: int, *given: Any) -> Any:
        if number > 20:
            raise ValueError(f"there are 20 tasks, not {number}")
        return plain(family, number, *given)

    monkeypatch.setattr(Sinusoid, "sample", sample)
    assert main(["evaluate", str(run), "--tasks", "21"]) == 2
    assert capsys.readouterr().err == "metarl: there are 20 tasks, not 21\n"
