"""Which processes meet, and what is over the tasks of all; whole runs are in tests/metarl/training/test_ranks.py."""

import pytest
import torch

from metarl.cli import main
from metarl.speed import ranks

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
        "metarl: metarl evaluate runs in one process, and WORLD_SIZE=2: start it without torchrun; train and resume "
        "run in several\n"
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
