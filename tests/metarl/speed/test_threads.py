"""metarl.speed.threads: groups of tasks side by side."""

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from metarl.speed import threads


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_keep_the_order_of_the_groups() -> None:
    first_may_end = threading.Event()

    def work(group: int) -> int:
        if group == 0:
            assert first_may_end.wait(1800)  # the second group runs while the first one waits
        else:
            first_may_end.set()
        return group * group

    assert threads.each_group(work, [0, 1, 2]) == [0, 1, 4]


@pytest.mark.parametrize(("groups", "share"), [(2, 2), (3, 1), (4, 1), (9, 1)])
def test_groups_share_the_threads(groups: int, share: int) -> None:
    assert threads.each_group(lambda group: torch.get_num_threads(), list(range(groups))) == [share] * groups
    assert torch.get_num_threads() == 4


def test_a_thread_of_ones_own_begins_with_all_threads_afterwards() -> None:
    threads.each_group(lambda group: None, [0, 1])
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [4]


@pytest.mark.parametrize("groups", [[0], iter([0, 1, 2])], ids=["one group", "an iterator"])
def test_what_is_not_a_sequence_of_groups_is_worked_on_here_and_in_turn(groups: list[int]) -> None:
    assert set(threads.each_group(lambda group: threading.get_ident(), groups)) == {threading.get_ident()}


def test_with_one_thread_nothing_is_parallel() -> None:
    torch.set_num_threads(1)
    assert set(threads.each_group(lambda group: threading.get_ident(), [0, 1, 2])) == {threading.get_ident()}


@pytest.mark.parametrize("grad", [True, False])
def test_gradients_are_on_or_off_as_they_are_here(grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        assert threads.each_group(lambda group: torch.is_grad_enabled(), [0, 1, 2]) == [grad] * 3


def test_the_error_of_the_first_group_that_failed_is_raised() -> None:
    def work(group: int) -> int:
        if group > 0:
            raise ValueError(f"group {group}")
        return group

    with pytest.raises(ValueError, match="group 1"):
        threads.each_group(work, [0, 1, 2])
    assert torch.get_num_threads() == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    threads.each_group(lambda group: group, [0, 1])
    child = os.fork()
    if child == 0:
        os._exit(0 if threads.each_group(lambda group: group, [3, 4]) == [3, 4] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
