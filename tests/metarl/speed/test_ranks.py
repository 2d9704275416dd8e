"""Which processes meet, and what is over the tasks of all; whole runs are in tests/metarl/training/test_ranks.py."""

import pytest
import torch
import torch.distributed as dist

from metarl.cli import main
from metarl.speed import ranks
from metarl.speed.ranks.failing import Board

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT: start the ranks with torchrun, or set them"),
        ({"RANK": "one"}, "RANK=one: expected a number, as torchrun sets it"),
        ({"RANK": "2"}, "RANK=2 with WORLD_SIZE=2: ranks are numbered from 0"),
    ],
)
def test_variables_that_are_wrong_are_refused(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", **variables}.items():
        monkeypatch.setenv(name, value)
    if variables:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ValueError, match=told):
        ranks.join(CPU, 1.0)


def test_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.join(CPU, 1.0) is None
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun --nproc-per-node 1
    assert ranks.join(CPU, 1.0) is None
    assert ranks.is_first() and not ranks.are_many()


def test_commands_of_one_process_are_refused_in_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "runs/one"]) == 2
    assert capsys.readouterr().err == (
        "metarl: metarl evaluate runs in one process, and WORLD_SIZE=2: start it without torchrun; train, tune and "
        "resume run in several\n"
    )


def test_sums_in_one_process_are_plain_or_by_tasks() -> None:
    """Exact sums are in float64, one task after another; plain ones are the sums of the groups as they are."""
    groups = [(torch.tensor([1e8]), torch.tensor(1.0)), (torch.tensor([1.0]), torch.tensor(2.0))]
    (large, small), tasks = ranks.sums(groups, 5, "something")
    assert (large.tolist(), small.tolist(), tasks) == ([1e8], 3.0, 5)
    with ranks.together(None, exact=True):
        assert ranks.is_exact() and not ranks.is_shared() and torch.get_num_threads() == 1
        (large, small), tasks = ranks.sums(((one.double(), other) for one, other in groups), 2, "something")
        assert (large.tolist(), small.dtype, tasks) == ([1e8 + 1], torch.float32, 2)
        with ranks.apart():
            assert not ranks.is_exact()
    assert not ranks.is_exact()


def test_different_numbers_name_the_rank() -> None:
    ranks.require_same([3, 3, 3], "the parameters")
    with pytest.raises(ranks.RankError, match="the parameters of rank 2 are not those of rank 0"):
        ranks.require_same([3, 3, 4], "the parameters")


def test_digests_tell_tensors_apart() -> None:
    one = {"weight": torch.zeros(2, 2), "count": torch.tensor(1)}
    assert ranks.digest(one) == ranks.digest({name: value.clone() for name, value in one.items()})
    assert ranks.digest(one) != ranks.digest(one | {"weight": torch.tensor([[0.0, 0.0], [0.0, 1e-9]])})


def test_values_that_a_rank_does_not_report_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one process has it for environments of which some report success."""
    monkeypatch.setattr("metarl.speed.ranks.members.number_of_ranks", lambda: 2)
    told = [{"return": torch.ones(2)}, {"return": torch.ones(1), "success": torch.ones(1)}]
    joined = ranks.task_values(told[0], told)
    assert {name: values.tolist() for name, values in joined.items()} == {"return": [1, 1, 1], "success": [0, 0, 1]}


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> list[Board]:
    """Those of three ranks that have begun their fifth sum."""
    store = dist.HashStore()
    monkeypatch.setattr("metarl.speed.ranks.failing._store", lambda: store)
    monkeypatch.setattr("metarl.speed.ranks.failing.LINGER", 0.0)
    return [Board(rank, 3, "metarl/run/0", seconds=10.0, number=5) for rank in range(3)]


class Work:
    """A collective that ends at the given look, well or not."""

    def __init__(self, looks: int, error: str = "") -> None:
        self.looks, self.error = looks, error

    def wait(self, timeout: object = None) -> None:
        self.looks -= 1
        if self.looks > 0:
            raise RuntimeError("Operation timed out!")
        if self.error:
            raise RuntimeError(self.error)

    def is_completed(self) -> bool:
        return self.looks <= 0


def test_the_first_rank_that_fails_is_told(boards: list[Board]) -> None:
    boards[0].wait(Work(3), "the metrics")
    boards[2].tell(KeyError("a plugin"))
    boards[1].tell(OSError("the disk is full\nand more"))
    with pytest.raises(ranks.RankError, match=r"^rank 2 failed: KeyError: 'a plugin' \(rank 0 waited for it: a sum\)$"):
        boards[0].wait(Work(9), "a sum")


def test_a_rank_that_ends_without_a_word_is_lost(boards: list[Board]) -> None:
    gloo = "[/a/pair.cc:553] Connection closed by peer [127.0.0.1]:3. This is typically caused by a crash"
    with pytest.raises(ranks.RankError, match=r"in vain for the others \(a sum\); one .*: Connection closed .*:3$"):
        boards[0].wait(Work(2, gloo), "a sum")


def test_a_timeout_tells_which_ranks_are_not_there(boards: list[Board]) -> None:
    boards[1].wait(Work(2), "the metrics")
    boards[0].number += 1
    with pytest.raises(ranks.RankError) as caught:
        boards[0].lost("a sum", RuntimeError("Timed out"), seconds=10.0)
    assert str(caught.value) == (
        "rank 0 of 3 waited in vain for the others (a sum) for 10 s: rank 1 waits elsewhere (the metrics); "
        "rank 2 did not come; see --rank-timeout"
    )
