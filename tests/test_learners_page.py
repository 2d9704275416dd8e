"""The page on learners shows what tests/benchmarks/learners.json holds, all measured alike."""

import json
import math
import shutil
from pathlib import Path

import pytest

from metarl.plugins.recipes import recipes

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "learners.md"
FOUND = ROOT / "tests" / "benchmarks" / "learners.json"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOUND.parent)


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    import learners

    copy = tmp_path / "learners.md"
    shutil.copy(PAGE, copy)
    learners.write_page(copy, learners.read())
    told = "run `python tests/benchmarks/learners.py --page`: docs/learners.md is not what learners.json gives"
    assert copy.read_text("utf-8") == PAGE.read_text("utf-8"), told
    for tasks in learners.read():
        inside = copy.read_text("utf-8").split(f"<!-- learners: {tasks} -->")[1].split("<!-- end -->")[0]
        assert inside.count("\n| `") == len(learners.read()[tasks])


@pytest.mark.parametrize("tasks", json.loads(FOUND.read_text("utf-8")))
def test_learners_were_measured_alike_by_their_recipes_and_none_diverged(tasks: str) -> None:
    rows = json.loads(FOUND.read_text("utf-8"))[tasks]
    known = {
        algorithm
        for algorithm, family, variant in (one.name.split("/") for one in recipes())
        if (family, variant) == (tasks, "default")
    }
    assert set(rows) == known
    assert len({(row["seconds"], row["held_out"]) for row in rows.values()}) == 1
    means = [one["mean"] for row in rows.values() for one in row["scores"].values()]
    assert all(math.isfinite(mean) and mean < 100 for mean in means)
    assert all(str(row["steps"]) in row["scores"] for row in rows.values())
