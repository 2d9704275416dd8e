"""Runs that earlier versions kept still open, are evaluated to the same scores and go on, wherever classes live now.

``old_runs`` holds two as they were written before the modules moved: one by names of plugins, one by classes.
"""

import json
import shutil
from pathlib import Path

import pytest

import metarl
from metarl import runs
from metarl.cli import main

SCORES = {
    "half-cheetah": {"return/step_0": [-5.28731, -4.50887], "return/step_1": [-5.55546, -2.66117]},
    "navigation": {"return/step_0": [-2.33268, -0.55235], "return/step_1": [-1.22809, -1.19703]},
}
"""Of two test tasks. Their evaluation.json has others: random streams and the baseline were not yet what they are."""
FOLDERS = sorted((Path(__file__).parent / "old_runs").iterdir())


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "run"))


def test_it_names_classes_where_they_no_longer_live() -> None:
    """Else nothing is tried here."""
    references = {json.loads((folder / "config.json").read_text())["outer"]["reference"] for folder in FOLDERS}
    assert references == {"metarl.outer:TRPO", "metarl.outer:ProMP"}


def test_it_opens(run: Path) -> None:
    opened = metarl.open_run(run)
    assert opened.iteration == 2
    assert opened.buffers == {}, "of format 1, which knew none"
    assert opened.params.keys() == runs.load_checkpoint(run / "checkpoint.pt")["params"].keys()


def test_it_is_evaluated_as_it_was(run: Path, request: pytest.FixtureRequest) -> None:
    before = json.loads((run / "evaluation.json").read_text())
    expected = SCORES[request.node.callspec.id]
    assert main(["evaluate", str(run), "--tasks", "2", "--steps", "1"]) == 0
    after = json.loads((run / "evaluation.json").read_text())
    assert after["metrics"].keys() == before["metrics"].keys()
    assert after["metrics"].keys() == expected.keys()
    for name, values in expected.items():
        assert after["metrics"][name]["per_task"] == pytest.approx(values, rel=1e-3, abs=1e-3)


def test_it_goes_on(run: Path) -> None:
    result = metarl.resume(run, iterations=3)
    assert [row["iteration"] for row in result.rows] == [3]
    assert json.loads((run / "config.json").read_text())["settings"]["iterations"] == 3
