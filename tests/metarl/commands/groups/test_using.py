"""Groups of seeds in commands that take runs: evaluate, plot, render, export."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl import evaluation, runs
from metarl.cli import main
from metarl.commands.groups import pooled, with_environment_steps
from metarl.pictures import plotting

NAVIGATION = ["train", "maml", "point-navigation", "--recipe", "none", "--iterations", "2", "--meta-batch-size", "2",
              "--outer", "adam", "--algorithm.hidden", "4", "--tasks.sampling.episodes", "2",
              "--tasks.sampling.horizon", "5", "--device", "cpu", "--quiet"]  # fmt: skip
Captured = pytest.CaptureFixture[str]


def call(*words: Any) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two seeds, as of a job array; not to be changed."""
    group = tmp_path_factory.mktemp("trained") / "group"
    for seed in (0, 4):
        assert call(*NAVIGATION, "--seed", seed, "--out", group / f"seed-{seed}", "--resume") == 0
    return group


@pytest.fixture
def group(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_a_group_is_evaluated_seed_by_seed_and_as_a_whole(group: Path, tmp_path: Path, capsys: Captured) -> None:
    assert call("evaluate", group, "--tasks", 3, "--steps", 1) == 0
    told = capsys.readouterr().out
    records = [runs.read_evaluation(group / f"seed-{seed}") for seed in (0, 4)]
    whole = runs.read_evaluation(group)
    assert whole["seeds"] == [0, 4] and whole["tasks"] == 3 and whole["steps"] == 1
    scores = np.array([record["metrics"]["return/step_1"]["per_task"] for record in records])
    assert whole["metrics"]["return/step_1"]["mean"] == pytest.approx(scores.mean())
    assert whole["metrics"]["return/step_1"]["per_task"] == pytest.approx(scores.mean(0).tolist())
    expected = evaluation.over_seeds([record["metrics"] for record in records])
    assert whole["metrics"] == expected
    assert "over seeds and tasks" in told and (group / "adaptation.png").exists()
    assert call("evaluate", group, "--tasks", 3, "--steps", 1, "--out", tmp_path / "all.json") == 0
    found = {name: json.loads((tmp_path / f"all{name}.json").read_text()) for name in ("", "-seed-0", "-seed-4")}
    assert found[""]["metrics"] == expected
    assert found["-seed-4"]["metrics"] == records[1]["metrics"]


def test_seeds_evaluated_on_other_tasks_are_not_joined(group: Path, capsys: Captured) -> None:
    for seed, tasks in ((0, 2), (4, 3)):
        assert call("evaluate", group / f"seed-{seed}", "--tasks", tasks, "--steps", 0) == 0
    capsys.readouterr()
    assert call("plot", group) == 2
    assert "seed 0 was evaluated with tasks=2, and 3 for seed 4: metarl evaluate the group again" in (
        capsys.readouterr().err
    )


def raised(group: Path, by: float) -> None:
    """Evaluate a group, and raise the scores of its seeds by that, of the second by twice as much."""
    assert call("evaluate", group, "--tasks", 3, "--steps", 1) == 0
    for times, folder in enumerate(sorted(group.glob("seed-*")), start=1):
        record = runs.read_evaluation(folder)
        for values in record["metrics"].values():
            values["per_task"] = [score + times * by for score in values["per_task"]]
            values |= {name: values[name] + times * by for name in ("mean", "low", "high")}
        runs.write_record(folder / "evaluation.json", record)


def means(group: Path, name: str) -> Any:
    return np.mean([runs.read_evaluation(seed)["metrics"][name]["per_task"] for seed in group.glob("seed-*")])


@pytest.mark.parametrize("of_group", [True, False])
def test_the_gap_between_groups_is_that_of_all_seeds(
    group: Path, tmp_path: Path, capsys: Captured, of_group: bool
) -> None:
    oracle, pretrained = (Path(shutil.copytree(group, tmp_path / name)) for name in ("oracle", "pretrained"))
    raised(oracle, 50.0)
    raised(pretrained, -5.0)
    run = group if of_group else group / "seed-4"
    asked = ["--tasks", 3, "--steps", 1, "--oracle", oracle, "--pretrained", pretrained]
    assert call("evaluate", run, *asked) == 0
    record = runs.read_evaluation(run)
    for step in (0, 1):
        name = f"return/step_{step}"
        own = means(group, name) if of_group else record["metrics"][name]["mean"]
        below, best = means(pretrained, name), means(oracle, "return/step_0")
        found = record["gap_closed"][name]
        assert found["mean"] == pytest.approx((own - below) / (best - below))
        assert found["low"] < found["mean"] < found["high"]
        assert f"{found['mean']:.1%}" in capsys.readouterr().out or step
    assert (record["oracle"], record["pretrained"]) == (str(oracle), str(pretrained))
    assert call("evaluate", run, "--tasks", 2, *asked[2:]) == 2
    assert "oracle/seed-0 was evaluated with tasks=3, not 2" in capsys.readouterr().err


def test_a_group_is_drawn_as_one_run(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    curve = plotting.learning_curve

    def noted(rows: Any, path: Path, over: str) -> Path:
        drawn.update(rows=rows, over=over)
        return curve(rows, path, over)

    monkeypatch.setattr(plotting, "learning_curve", noted)
    assert call("plot", group, group / "seed-0", "--over", "steps") == 0
    assert list(drawn["rows"]) == ["copy", "seed-0"] and drawn["over"] == "environment_steps"
    # 2 tasks, 2 episodes of 5 steps before and after one adaptation
    assert [row["environment_steps"] for row in drawn["rows"]["seed-0"]] == [40, 80]
    assert [row["environment_steps"] for row in drawn["rows"]["copy"]] == [40, 80]
    assert (group / "learning.png").stat().st_size > 10_000


def test_rows_are_joined_where_all_seeds_have_them() -> None:
    first = [{"iteration": str(n), "return/step_0": str(n), "only": "1"} for n in (1, 2, 3)]
    second = [{"iteration": str(n), "return/step_0": str(5 * n), "only": ""} for n in (2, 3, 4)]
    rows = pooled([first, second])
    assert [row["iteration"] for row in rows] == [2, 3]
    assert [row["return/step_0"] for row in rows] == [6, 9]
    assert [(row["return/step_0:low"], row["return/step_0:high"]) for row in rows] == [(2, 10), (3, 15)]
    assert "only" not in rows[0]


def test_environment_steps_add_up_over_rows_that_were_not_logged() -> None:
    names = "iteration", "time/environment_steps_per_second", "time/iteration_seconds"
    rows = [dict(zip(names, values, strict=True)) for values in (("10", "1e3", "0.1"), ("20", "3e3", "0.1"))]
    assert [row["environment_steps"] for row in with_environment_steps(rows, "run")] == [1000, 4000]
    with pytest.raises(ValueError, match="run counts no environment steps"):
        with_environment_steps([{"iteration": "1"}], "run")


def test_each_run_of_a_group_is_filmed_and_exported(trained: Path, tmp_path: Path, capsys: Captured) -> None:
    assert call("render", trained, "--steps", 0, "--height", 32, "--out", tmp_path / "film.gif") == 0
    assert call("export", trained, tmp_path / "model.zip") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "film-seed-0.gif", "film-seed-4.gif", "model-seed-0.zip", "model-seed-4.zip",
    ]  # fmt: skip
    capsys.readouterr()
    assert call("export", trained, tmp_path / "model.zip") == 2
    assert "model-seed-0.zip exists; choose another path" in capsys.readouterr().err
