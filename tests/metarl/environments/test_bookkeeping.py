import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from metarl.environments.bookkeeping import Book, describe, opened

ARRAYS = [pytest.param(np.array, id="numpy"), pytest.param(torch.tensor, id="torch")]
Make = Callable[[list[Any]], Any]


def rows(book: Book) -> list[list[Any]]:
    return [values.tolist() for values in book]


@pytest.fixture(params=ARRAYS)
def array(request: pytest.FixtureRequest) -> Make:
    return request.param


def test_an_opened_book_tells_of_lanes_that_all_run(array: Make) -> None:
    book = opened(array([0, 0, 0]))
    assert rows(book) == [[0, 0, 0], [False] * 3, [False] * 3] and book.running.tolist() == [True] * 3
    assert book.terminated is not book.truncated


def test_each_lane_is_truncated_by_its_own_clock_and_idles_from_then_on(array: Make) -> None:
    book, never = opened(array([0, 0])), array([False, False])
    book = book.after_step(book.running, never, 3).restarted(array([True, False]))
    for expected in ([False, False], [False, True], [True, True], [True, True]):
        book = book.after_step(book.running, never, 3)
        assert book.truncated.tolist() == expected
    assert rows(book) == [[3, 3], [False, False], [True, True]]


def test_a_lane_may_end_and_be_truncated_in_one_step_and_an_idle_lane_does_neither(array: Make) -> None:
    book = opened(array([0, 0, 0]))
    book = book.after_step(book.running, array([True, False, False]), 2)
    assert rows(book) == [[1, 1, 1], [True, False, False], [False] * 3]
    book = book.after_step(book.running, array([True, True, False]), 2)
    assert rows(book) == [[1, 2, 2], [True, True, False], [False, True, True]]
    assert not book.running.any()


def test_without_a_horizon_nothing_is_truncated(array: Make) -> None:
    book = opened(array([0]))
    for _ in range(5):
        book = book.after_step(book.running, array([False]), None)
    assert rows(book) == [[5], [False], [False]]


def test_lanes_may_stand_still_for_other_reasons(array: Make) -> None:
    book = opened(array([0, 0])).after_step(array([True, False]), array([False, True]), 1)
    assert rows(book) == [[1, 0], [False, False], [True, False]]


def test_a_restart_forgets_the_lanes_of_the_mask(array: Make) -> None:
    book = opened(array([0, 0])).after_step(array([True, True]), array([True, True]), 1)
    assert rows(book.restarted(array([False, True]))) == [[1, 0], [True, False], [True, False]]


def test_nothing_is_changed_in_place_and_types_stay(array: Make) -> None:
    first = opened(array([0, 0]))
    second = first.after_step(first.running, array([True, False]), 1)
    third = second.restarted(array([True, True]))
    assert rows(first) == rows(third) == [[0, 0], [False] * 2, [False] * 2] and second.elapsed.tolist() == [1, 1]
    assert [values.dtype for values in third] == [values.dtype for values in first]


def test_lanes_are_described_by_one_lanes_spaces() -> None:
    env = VectorEnv[Any, Any, Any]()
    describe(env, spaces.Box(-1, 1, (2,)), spaces.Discrete(3), 4, 5)
    assert env.num_envs == 4 and env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert env.observation_space.shape == (4, 2) and env.action_space == spaces.MultiDiscrete([3] * 4)


@pytest.mark.parametrize(("num_envs", "horizon"), [(0, None), (1, 0), (-1, 3)])
def test_empty_batches_are_refused(num_envs: int, horizon: int | None) -> None:
    with pytest.raises(ValueError, match=f"at least one lane and one step, not {num_envs} and {horizon}"):
        describe(gymnasium.vector.VectorEnv(), spaces.Discrete(2), spaces.Discrete(2), num_envs, horizon)


def test_worker_processes_can_read_it_without_torch() -> None:
    code = "import sys, metarl.environments.bookkeeping; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
