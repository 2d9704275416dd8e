"""``metarl compare``: right numbers on the same tasks, in a table and a picture; what differs is refused by name."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl import runs
from metarl.cli import main
from metarl.evaluation import reliable, summary
from metarl.runs.folder import read_evaluation
from metarl.runs.layout import FORMAT

Captured = pytest.CaptureFixture[str]
NOISE = np.random.default_rng(3)
LEFT, RIGHT = NOISE.normal(size=(2, 2, 6)), NOISE.normal(0.5, 1, size=(2, 1, 6))  # [step, seed, task]
CONFIG = {
    "format": FORMAT,
    "algorithm": {"reference": "maml", "options": {"steps": 1}},
    "tasks": {"reference": "bandit", "options": {"arms": 5}},
    "outer": {"reference": "adam", "options": {}},
    "settings": {"iterations": 1},
}
Write = Callable[..., Path]


def refused(capsys: Captured, *words: Any) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    return told.err


def table_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a run folder with an evaluation of given scores ``[step, task]``."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, scores: np.ndarray, own_seed: int = 0, score: str = "return", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        runs.write_record(folder / "config.json", CONFIG | {"settings": {"iterations": 1, "seed": own_seed}})
        metrics = {f"{score}/step_{step}": summary(row.tolist()) for step, row in enumerate(scores)}
        asked = {"tasks": scores.shape[1], "split": "test", "seed": 0, "steps": len(scores) - 1, "episodes": None}
        family = {"reference": "bandit", "options": {"arms": 5, "train_shots": own_seed}}
        runs.write_record(folder / "evaluation.json", {"metrics": metrics, **asked, "family": family, **changes})
        return folder

    return run


@pytest.fixture
def pair(write: Write, tmp_path: Path) -> tuple[Path, Path]:
    """A group of two seeds, and a run."""
    for seed in (0, 1):
        write(f"left/seed-{seed}", LEFT[:, seed], seed)
    return tmp_path / "left", write("right", RIGHT[:, 0])


def test_the_table_holds_the_measures_of_each_score(pair: tuple[Path, Path], tmp_path: Path, capsys: Captured) -> None:
    assert main(["compare", *map(str, pair), "--csv", "new/table.csv", "--markdown", "table.md"]) == 0
    table = capsys.readouterr().out
    rows = table_of(tmp_path / "new" / "table.csv")
    assert [(row["score"], row["run"], row["seeds"], row["tasks"]) for row in rows] == [
        ("return/step_0", "left", "2", "6"),
        ("return/step_0", "right", "1", "6"),
        ("return/step_1", "left", "2", "6"),
        ("return/step_1", "right", "1", "6"),
    ]
    left, right = rows[2:]
    assert float(left["mean"]) == pytest.approx(LEFT[1].mean())
    assert float(right["mean"]) == pytest.approx(RIGHT[1].mean())
    assert float(right["mean_low"]) == pytest.approx(summary(RIGHT[1, 0].tolist())["low"])
    assert float(left["iqm"]) == pytest.approx(np.sort(LEFT[1].ravel())[3:-3].mean())
    assert left["difference"] == left["improvement_low"] == ""
    assert float(right["difference"]) == pytest.approx((RIGHT[1].mean(0) - LEFT[1].mean(0)).mean())
    better = reliable.probability_of_improvement(LEFT[1], RIGHT[1])
    assert [float(right[f"improvement{end}"]) for end in ("", "_low", "_high")] == pytest.approx(list(better))
    assert better.value == pytest.approx((RIGHT[1] > LEFT[1]).mean())
    assert f"{RIGHT[1].mean():.4g} [" in table and "wrote comparison.png" in table
    assert (tmp_path / "table.md").read_text().count("\n| return/step_1 | right | 1 |") == 1
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


def test_lower_losses_are_better(write: Write, tmp_path: Path) -> None:
    folders = [write(f"loss{seed}", np.full((1, 4), 1.0 - seed), seed, "loss") for seed in (0, 1)]
    assert main(["compare", *map(str, folders), "--csv", "table.csv"]) == 0
    last = table_of(tmp_path / "table.csv")[-1]
    assert (last["difference"], last["improvement"]) == ("-1.0", "1.0")


def test_a_baseline_is_compared_before_adaptation(write: Write, tmp_path: Path) -> None:
    ours, ppo = write("ours", RIGHT[:, 0]), write("ppo", LEFT[:1, 0], deterministic=False)
    assert main(["compare", str(ours), str(ppo), "--csv", "table.csv"]) == 0
    found = [(row["score"], row["run"]) for row in table_of(tmp_path / "table.csv")]
    assert found == [("return/step_0", "ours"), ("return/step_0", "ppo"), ("return/step_1", "ours")]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"split": "train"}, "split=test, and train for b"),
        ({"seed": 3}, "seed=0, and 3 for b"),
        ({"steps": 5}, "steps=1, and 5 for b"),
        ({"tasks": 7}, "tasks=6, and 7 for b"),
        ({"mean": True}, "mean=False, and True for b"),
        ({"family": {"reference": "bandit", "options": {"arms": 7}}}, "arms=5, and 7 for b"),
        ({"family": {"reference": "mdp", "options": {"arms": 5}}}, "tasks=bandit, and mdp for b"),
        ({"parameters": {"goal": [1, 2]}}, "other sampled tasks for b"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], told: str, write: Write, capsys: Captured) -> None:
    one = write("a", RIGHT[:, 0], parameters={"goal": [0, 0]})
    other = write("b", LEFT[:, 0], **{"parameters": {"goal": [0, 0]}, **changes})
    line = refused(capsys, "compare", one, other)
    assert f"a was evaluated with {told}: evaluate them alike, or compare with --evaluate" in line


def test_wrong_requests_are_refused(pair: tuple[Path, Path], tmp_path: Path, capsys: Captured) -> None:
    left, right = pair
    assert "compare needs at least two runs or groups" in refused(capsys, "compare", left)
    assert "a run is named twice" in refused(capsys, "compare", left, left)
    assert "contains no run" in refused(capsys, "compare", left, tmp_path / "gone")
    assert "expected a file that ends in .csv" in refused(capsys, "compare", left, right, "--csv", "table.txt")
    assert "expected a picture that ends in .png" in refused(capsys, "compare", left, right, "--out", "new.txt")
    (tmp_path / "mine.csv").write_text("mine")
    assert "mine.csv exists; choose another file" in refused(capsys, "compare", left, right, "--csv", "mine.csv")
    (right / "evaluation.json").unlink()
    assert "right has not been evaluated: metarl evaluate it, or compare with" in refused(
        capsys, "compare", left, right
    )
    (left / "seed-1" / "evaluation.json").unlink()
    assert "seed 1 of" in refused(capsys, "compare", left, right)
    assert not (tmp_path / "comparison.png").exists()


def test_runs_are_evaluated_anew_on_the_same_tasks(tmp_path: Path, capsys: Captured) -> None:
    small = ["--recipe", "none", "--iterations", "1", "--meta-batch-size", "2", "--device", "cpu", "--quiet"]
    for name, words in {"a": [], "b": ["--seed", "1"], "c": ["--tasks.shots", "7"]}.items():
        out = ["--out", str(tmp_path / name)]
        assert main(["train", "maml", "sinusoid", *small, *out, "--algorithm.hidden", "4", *words]) == 0
    assert main(["evaluate", str(tmp_path / "a"), "--tasks", "3", "--steps", "1"]) == 0
    before = (tmp_path / "a" / "evaluation.json").read_bytes()
    asked = ["compare", *(str(tmp_path / name) for name in "ab"), "--out", str(tmp_path / "out.png")]
    asked += ["--csv", str(tmp_path / "table.csv"), "--device", "cpu"]
    assert main([*asked, "--evaluate", "--tasks", "3", "--steps", "1"]) == 0
    rows = table_of(tmp_path / "table.csv")
    assert [row["score"] for row in rows[::2]] == ["loss/step_0", "loss/step_1"]
    recorded = read_evaluation(tmp_path / "a")["metrics"]["loss/step_1"]
    assert float(rows[2]["mean"]) == recorded["mean"]
    assert (tmp_path / "a" / "evaluation.json").read_bytes() == before and not (tmp_path / "b/evaluation.json").exists()
    told = refused(capsys, "compare", tmp_path / "a", tmp_path / "c", "--evaluate")
    assert "a was trained with shots=10, and 7 for c: their test tasks are not the same" in told
