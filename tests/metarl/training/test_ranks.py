"""A run in several processes is the run of one process: to rounding, or bit for bit with exact sums."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.runs import load_progress
from tests.support.ranks import in_ranks, outcome

EXACT_TOO = ["navigation", "normalised", "keeping", "sinusoid", "promp", "rl2", "reptile"]
ALIKE = [*EXACT_TOO, "cheetah", "gymnasium", "few-shot"]
EXACT = [f"{name}:exact" for name in EXACT_TOO]
FIVE = [f"{name}:five" for name in ("navigation", "normalised", "cheetah", "few-shot", "promp", "rl2", "reptile")]
BROKEN = [
    "nan", "raising", "late", "hanging", "drifting", "crowded", "pcgrad", "sinusoid:options", "sinusoid:versions",
    "sinusoid:full", "sinusoid:busy", "sinusoid:unseen", "sinusoid:finished", "stopped",
]  # fmt: skip
RESUMED = "navigation:resumed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """Runs in two processes: one of them has two of the three tasks of a meta-batch."""
    return in_ranks(2, [*ALIKE, *EXACT, RESUMED, *BROKEN], folder)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Runs in four processes, which meet by variables and share five tasks: one of them has two."""
    return in_ranks(4, ["five:exact", *FIVE], tmp_path_factory.mktemp("four"), by_variables=True)


@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_are_one_run_to_rounding(name: str, two: list[dict[str, Any]]) -> None:
    check_alike(name, two)


@pytest.mark.parametrize("name", FIVE)
def test_four_ranks_are_one_run_to_rounding(name: str, four: list[dict[str, Any]]) -> None:
    check_alike(name, four)


def check_alike(name: str, ranks: list[dict[str, Any]]) -> None:
    (params, rows), (first, first_rows) = outcome(name), ranks[0][name]
    assert all(first.equal(other) and first_rows == other_rows for other, other_rows in (one[name] for one in ranks))
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


def test_exact_sums_of_four_ranks(four: list[dict[str, Any]]) -> None:
    params, rows = outcome("five:exact")
    assert all(ranks["five:exact"][0].equal(params) and ranks["five:exact"][1] == rows for ranks in four)


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


def test_a_rank_that_is_asked_to_stop_stops_all(folder: Path, two: list[dict[str, Any]]) -> None:
    """After the iteration, of which there is a checkpoint."""
    first, second = (ranks["stopped"] for ranks in two)
    assert first[0].equal(second[0])
    assert [row["iteration"] for row in first[1]] == [1, 2]
    assert load_progress(folder / "stopped" / "checkpoint.pt", torch.device("cpu"))["iteration"] == 2


HANGS = "RankError: rank 0 of 2 waited in vain for the others (the meta-gradient) for 10 s: rank 1 did not come; see"


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("raising", "RankError: rank 1 failed while sampling: OSError: the simulator of", "OSError: the simulator of"),
        (
            "late",
            "RankError: rank 1 failed: KeyError: 'a plugin' (rank 0 waited for it: the meta-gradient)",
            "KeyError:",
        ),
        ("hanging", HANGS, "RankError: rank 1 of 2 waited in vain for the others (the meta-gradient)"),
        ("sinusoid:full", "OSError: [Errno 28] could not write", "RankError: rank 0 failed: OSError: [Errno 28] could"),
        ("sinusoid:busy", "RunError: ", "RankError: rank 0 failed while making the run folder: RunError: "),
        (
            "sinusoid:unseen",
            "RankError: rank 1 failed while opening the run: RunError: ",
            "RunError: ",
        ),
        ("sinusoid:finished", "FinishedError: ", None),
        ("drifting", "RankError: the parameters after iteration 1 of rank 1 are not those of rank 0: all", None),
        ("crowded", "ValueError: 2 ranks cannot share 1 tasks: start at most 1 (torchrun --nproc-per-node)", None),
        ("pcgrad", "ValueError: weighting='pcgrad' compares the gradients of all tasks, which must be in one", None),
        (
            "sinusoid:options",
            "ValueError: the ranks of a run must be alike: settings.seed is 0 in rank 0 and 1",
            None,
        ),
        (
            "sinusoid:versions",
            "ValueError: the ranks of a run must be alike: torch is '2.0' in rank 0 and '2.1'",
            None,
        ),
    ],
)
def test_what_ends_one_rank_ends_all(name: str, first: str, second: str | None, two: list[dict[str, Any]]) -> None:
    assert str(two[0][name]).startswith(first)
    assert str(two[1][name]).startswith(second or first)
