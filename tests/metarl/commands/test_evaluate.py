"""``metarl evaluate``: where an evaluation is written, and what becomes of those before it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import metarl
from metarl import Sampling, evaluation, runs
from metarl.cli import main
from metarl.seeding import stream
from metarl.testing import small_family
from metarl.types import environments_of, policy_of
from metarl_envs.navigation import PointNavigation
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


NAVIGATION = ["train", "maml", "point-navigation", "--recipe", "none", *QUICK, "--outer", "adam",
              "--algorithm.hidden", "4", "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "5"]  # fmt: skip
WIDER = PointNavigation(goal_range=2.0, sampling=Sampling(2, 5))


@pytest.fixture(scope="module")
def navigator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("navigator") / "run"
    assert main([*NAVIGATION, "--out", str(folder)]) == 0
    return folder


def scored(run: Path, out: Path, *words: str) -> Any:
    assert main(["evaluate", str(run), "--tasks", "3", "--steps", "1", "--out", str(out), *words]) == 0
    return read(out)


def test_policies_are_scored_without_noise(navigator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = scored(navigator, tmp_path / "mean.json", "--mean")
    assert record["mean"] is True and scored(navigator, tmp_path / "noise.json")["mean"] is False
    opened = metarl.open_run(navigator)
    tasks = opened.tasks(3)
    adapted = opened.adapt(tasks, steps=1)  # with noise
    for step, one in enumerate(adapted):
        certain = policy_of(evaluation.acting_by_the_mean(opened.learner), one.state)
        rollout = environments_of(tasks).rollout(certain, stream(5, "any"))
        expected = rollout.rewards.sum(-1).mean(1)  # these environments draw nothing, so the seed does not matter
        assert record["metrics"][f"return/step_{step}"]["per_task"] == pytest.approx(expected.tolist(), rel=1e-5)
    assert record["environment_steps"] == [0, 10], "of the episodes that were adapted to"


def test_labelled_examples_have_no_mean_action(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--mean"]) == 2
    assert "--mean is for policies, which act" in capsys.readouterr().err


def test_task_parameters_stand_beside_the_scores(navigator: Path, tmp_path: Path) -> None:
    record = scored(navigator, tmp_path / "scores.json")
    goals = metarl.open_run(navigator).tasks(3).parameters["goal"]
    assert record["parameters"] == {"goal": goals.tolist()}
    assert len(record["metrics"]["return/step_0"]["per_task"]) == 3


def test_another_family_of_the_same_form_is_evaluated(
    navigator: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = scored(navigator, tmp_path / "wider.json", "--on", "tests.metarl.commands.test_evaluate:WIDER")
    told = "evaluated on other tasks than those of training: goal_range is 2.0, and was 0.5"
    assert told in capsys.readouterr().out
    assert record["differs"] == told.partition(": ")[2]
    goals = WIDER.sample(3, "test", stream(0, "tasks/test")).parameters["goal"]
    assert record["parameters"] == {"goal": goals.tolist()} and goals.abs().max() > 0.5
    changed = scored(navigator, tmp_path / "changed.json", "--tasks.goal-range", "2.0")
    assert changed["metrics"] == record["metrics"], "another road to the same tasks"
    assert "differs" not in scored(navigator, tmp_path / "same.json")
    assert main(["evaluate", str(run), "--on", "point-navigation"]) == 2
    assert (
        "--on point-navigation: its tasks are of another form than those of training: input_shape (2,), not (1,)"
        in (capsys.readouterr().err)
    )


def test_the_share_that_is_done_is_told(navigator: Path, run: Path) -> None:
    for folder, mean in ((navigator, False), (navigator, True), (run, False)):
        opened, told = metarl.open_run(folder), list[float]()
        parts = opened.learner, opened.params, opened.family
        evaluation.evaluate(*parts, tasks=2, steps=2, mean=mean, progress=told.append)
        assert (
            told == sorted(told)
            and told[-1] == pytest.approx(1)
            and len(told) == (1 if folder == run else 3 + 3 * mean)
        )


def drawn(root: Path, classes: int = 8, seed: int = 0) -> Path:
    """A folder of classes of small pictures of noise."""
    noise = np.random.default_rng(seed)
    for number in range(classes):
        folder = root / f"class{number}"
        folder.mkdir(parents=True)
        for image in range(4):
            Image.fromarray(noise.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(folder / f"{image}.png")
    return root


def test_an_installed_family_is_evaluated_on_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METARL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    drawn(Path("mine")), drawn(Path("other"), seed=1), drawn(Path("single"), classes=1)
    Path("empty").mkdir()
    options = ["--tasks.root", "mine", "--tasks.size", "8", "--tasks.ways", "2", "--tasks.shots", "1"]
    options += ["--tasks.queries", "2"]
    with pytest.warns(UserWarning, match="no validation will be possible"):
        assert main(["train", "protonet", "images", *options, *QUICK, "--recipe", "none", "--out", "run"]) == 0
    capsys.readouterr()
    words = ["evaluate", "run", "--tasks", "2", "--steps", "1"]
    assert main([*words, "--on", "images:other", "--out", "there.json"]) == 0
    told = capsys.readouterr().out
    assert "evaluated on other tasks than those of training: root is" in told and str(tmp_path / "other") in told
    assert main([*words, "--tasks.root", "other", "--out", "same.json"]) == 0
    assert read(Path("there.json"))["metrics"] == read(Path("same.json"))["metrics"]
    capsys.readouterr()
    for place, why in {
        "images:empty": "is no folder of classes: it holds no images",
        "images:absent": "there is no folder",
        "images:single": "but a task takes 2",
        "sinusoid:mine": "--on sinusoid:",
    }.items():
        assert main([*words, "--on", place, "--out", "no.json"]) == 2
        line = capsys.readouterr().err
        assert why in line and line.count("\n") == 1


def test_adaptation_that_diverges_is_an_error_and_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in run.iterdir())
    words = ["--tasks", "6", "--steps", "40", "--algorithm.step-size", "30"]
    assert main(["evaluate", str(run), *words]) == 1
    told = capsys.readouterr().err
    assert "of 6 tasks is not finite after" in told and "take fewer steps, or smaller ones" in told
    assert "Traceback" not in told and "nothing is written" in told
    assert sorted(path.name for path in run.iterdir()) == before


def test_learners_of_many_steps_are_scored_after_as_many_as_in_training(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["train", "imaml", "sinusoid", *QUICK, "--algorithm.steps", "5", "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder), "--tasks", "2"]) == 0
    assert read(folder / "evaluation.json")["steps"] == 5
