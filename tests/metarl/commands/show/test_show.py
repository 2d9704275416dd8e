"""``metarl show``: what a run is, how far, and its scores, without importing what it names."""

from pathlib import Path
from typing import Any

import pytest

from metarl import runs
from metarl.cli import main
from metarl.evaluation import summary
from metarl.runs.layout import FORMAT

Captured = pytest.CaptureFixture[str]
CONFIG = {
    "format": FORMAT,
    "algorithm": {
        "reference": "not_here:algorithm",
        "options": {"steps": 1, "network": {"hidden": [64, 64]}, "x": None},
    },
    "tasks": {"reference": "bandit", "options": {"arms": 5}},
    "outer": {"reference": "adam", "options": {}},
    "settings": {"iterations": 20, "meta_batch_size": 4, "seed": 3, "device": "cpu"},
    "recipe": "maml/bandit/default",
    "versions": {"metarl": "0.1", "torch": "9.9"},
}
ROWS = """iteration,return/step_0,return/step_1,outer/loss
5,1.0,2.5,
10,2.0,,0.1
15,3.0,7.25,0.1
20,4.0,6.5,0.1
"""


def shown(capsys: Captured, folder: Path) -> str:
    capsys.readouterr()
    assert main(["show", str(folder)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write(folder)
    return folder


def write(folder: Path, reached: int = 15, **settings: Any) -> None:
    folder.mkdir(parents=True)
    config: dict[str, Any] = CONFIG | {"settings": {**CONFIG["settings"], **settings}}  # type: ignore[dict-item]
    runs.write_record(folder / "config.json", config)
    (folder / "progress.csv").write_text(ROWS)
    progress = {"iteration": reached, "params": {}, "outer": {}, "best": 7.25, "refused": 0, "buffers": {}}
    runs.save_checkpoint(folder / "checkpoint.pt", progress)


def test_a_run_is_told_in_one_screen(run: Path, capsys: Captured) -> None:
    lines = shown(capsys, run).splitlines()
    assert len(lines) <= 24
    text = "\n".join(lines)
    for told in (
        "recipe      maml/bandit/default",
        "algorithm   not_here:algorithm: steps=1, network.hidden=[64, 64]",
        "tasks       bandit: arms=5",
        "settings    iterations=20, meta_batch_size=4, seed=3, device=cpu",
        "state       stopped, iteration 15 of 20 (75%)",
        "scores      best at iteration 15: return 3 -> 7.25",
        "scores      last at iteration 20: return 4 -> 6.5",
        "evaluation  none yet",
        "with metarl 0.1, torch 9.9",
        f"next        metarl resume {run}",
    ):
        assert told in text


def test_the_evaluation_is_told(run: Path, capsys: Captured) -> None:
    metrics = {"return/step_0": summary([1.0, 1.0]), "return/step_1": summary([2.0, 2.0])}
    record = {"metrics": metrics, "tasks": 2, "split": "test", "iteration": 15, "steps": 1}
    runs.write_record(run / "evaluation.json", record)
    text = shown(capsys, run)
    assert "evaluation  on 2 test tasks, parameters of iteration 15\n" in text
    assert "            return 1 [1, 1] -> 2 [2, 2]\n" in text


def test_training_that_is_going_on_is_told(run: Path, capsys: Captured) -> None:
    with runs.claim(run, "training"):
        text = shown(capsys, run)
    assert "state       training now, iteration 15 of 20 (75%); process" in text
    assert "next" not in text


def test_a_run_without_a_row_or_checkpoint_is_told(run: Path, capsys: Captured) -> None:
    (run / "checkpoint.pt").unlink()
    (run / "progress.csv").unlink()
    text = shown(capsys, run)
    assert "no checkpoint yet, iteration 0 of 20" in text and "scores      none yet" in text


def test_a_group_is_told_with_a_line_for_each_seed(tmp_path: Path, capsys: Captured) -> None:
    for seed, reached in ((3, 20), (5, 15)):
        write(tmp_path / "group" / f"seed-{seed}", reached, seed=seed)
    text = shown(capsys, tmp_path / "group")
    assert "seeds 3, 5" in text
    assert "seed 3      done, iteration 20 of 20 (100%); best at iteration 15: return 3 -> 7.25; last at" in text
    assert "seed 5      stopped, iteration 15 of 20 (75%)" in text
    assert f"next        metarl resume {tmp_path / 'group'}" in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: Captured) -> None:
    assert main(["show", str(tmp_path)]) == 2
    assert "contains no run: config.json is missing" in capsys.readouterr().err
