"""A run in several processes is the run of one process: to rounding, or bit for bit with exact sums."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.ranks import in_ranks, outcome

ALIKE = ["navigation", "normalised", "cheetah", "gymnasium", "sinusoid", "promp", "rl2", "reptile"]
EXACT = ["navigation:exact", "normalised:exact", "sinusoid:exact", "promp:exact", "rl2:exact", "reptile:exact"]
BROKEN = ["nan", "raising", "drifting", "crowded", "pcgrad", "navigation:different"]
RESUMED = "navigation:resumed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """Runs in two processes: one of them has two of the three tasks of a meta-batch."""
    return in_ranks(2, [*ALIKE, *EXACT, RESUMED, *BROKEN], folder)


@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_are_one_run_to_rounding(name: str, two: list[dict[str, Any]]) -> None:
    (params, rows), (first, first_rows), (second, second_rows) = outcome(name), two[0][name], two[1][name]
    assert first.equal(second) and first_rows == second_rows
    assert torch.allclose(first, params, rtol=1e-3, atol=1e-5)
    assert [row.keys() for row in first_rows] == [row.keys() for row in rows]
    for ours, theirs in zip(first_rows, rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("name", EXACT)
def test_exact_sums_are_the_same_bit_for_bit(name: str, two: list[dict[str, Any]]) -> None:
    params, rows = outcome(name)
    for found, found_rows in (ranks[name] for ranks in two):
        assert found.equal(params)
        assert found_rows == rows


def test_four_ranks_that_meet_by_variables(tmp_path: Path) -> None:
    """They share five tasks: one of them has two."""
    found = in_ranks(4, ["five:exact"], tmp_path, by_variables=True)
    params, rows = outcome("five:exact")
    assert all(ranks["five:exact"][0].equal(params) and ranks["five:exact"][1] == rows for ranks in found)


def test_only_the_first_rank_writes(folder: Path, two: list[dict[str, Any]]) -> None:
    """And it writes what one process writes, validation included."""
    assert {path.name for path in (folder / "sinusoid").iterdir() if "events" not in path.name} == {
        "best.pt", "best_evaluation.pt", "checkpoint.pt", "config.json", "evaluations.json", "progress.csv",
    }  # fmt: skip
    assert len(list((folder / "sinusoid").glob("events*"))) == 1
    assert (folder / "sinusoid" / "progress.csv").read_text().count("\n") == 4


def test_ranks_go_on_with_a_run(two: list[dict[str, Any]]) -> None:
    first, second = (ranks[RESUMED] for ranks in two)
    assert first[0].equal(second[0])
    assert [row["iteration"] for row in first[1]] == [4, 5]


def test_a_gradient_that_is_not_finite_on_one_rank_is_refused_by_all(two: list[dict[str, Any]]) -> None:
    first, second = (ranks["nan"] for ranks in two)
    assert first[0].equal(second[0]) and first[0].isfinite().all()
    assert [row["outer/refused"] for row in first[1]] == [1, 2]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("raising", "RankError: rank 1 failed while sampling: OSError: the simulator of", "OSError: the simulator of"),
        ("drifting", "RankError: the parameters after iteration 1 of rank 1 are not those of rank 0: all", None),
        ("crowded", "ValueError: 2 ranks cannot share 1 tasks: start at most 1 (torchrun --nproc-per-node)", None),
        ("pcgrad", "ValueError: weighting='pcgrad' compares the gradients of all tasks, which must be in one", None),
        (
            "navigation:different",
            "ValueError: the ranks of a run must be alike: settings.seed is 0 in",
            None,
        ),
    ],
)
def test_what_ends_one_rank_ends_all(name: str, first: str, second: str | None, two: list[dict[str, Any]]) -> None:
    assert str(two[0][name]).startswith(first)
    assert str(two[1][name]).startswith(second or first)
