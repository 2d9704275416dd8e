"""What lanes report of episodes that have ended."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from metarl.environments import EndsOnce, describe, opened

LENGTHS = (2, 4, 3)


class Countdown(VectorEnv[Any, Any, Any]):
    """Lanes whose episodes have these lengths and a reward of 1 in each step; the second is cut, the others end."""

    def __init__(self, library: Any) -> None:
        one = spaces.Box(-1.0, 1.0, (1,))
        describe(self, one, one, len(LENGTHS), None)
        self._library, self._book = library, opened(library.zeros(len(LENGTHS), dtype=library.int64))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        mask = (options or {}).get("reset_mask", np.ones(len(LENGTHS), dtype=bool))
        self._book = self._book.restarted(self._library.asarray(mask))
        return self._library.zeros((len(LENGTHS), 1)), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        running, cut = self._book.running, self._library.asarray([False, True, False])
        over = self._book.elapsed + 1 >= self._library.asarray(LENGTHS)
        self._book = self._book.after_step(running, over & ~cut, None)
        self._book = self._book._replace(truncated=self._book.truncated | (running & over & cut))
        return actions, running * 1.0, self._book.terminated, self._book.truncated, {}


def test_statistics_count_an_episode_once_however_long_its_lane_idles() -> None:
    envs = RecordEpisodeStatistics(EndsOnce(Countdown(np)))
    envs.reset()
    counted = []
    for step in range(7):
        if step == 5:
            envs.reset(options={"reset_mask": np.array([True, False, False])})
        *_, info = envs.step(np.zeros((3, 1)))
        counted += [(step, lane, info["episode"]["l"][lane]) for lane in np.flatnonzero(info.get("_episode", []))]
    assert counted == [(1, 0, 2), (2, 2, 3), (3, 1, 4), (6, 0, 2)]
    assert list(envs.length_queue) == list(envs.return_queue) == [2, 3, 4, 2]


@pytest.mark.parametrize("library", [np, torch])
def test_an_end_is_reported_in_one_step_and_again_after_a_reset(library: Any) -> None:
    envs = EndsOnce(Countdown(library))
    for _ in range(2):
        envs.reset()
        told = [[flags.tolist() for flags in envs.step(library.zeros((3, 1)))[2:4]] for _ in range(6)]
        ends = [[one[0][lane] or one[1][lane] for one in told].index(True) for lane in range(3)]
        assert ends == [1, 3, 2]
        assert sum(sum(one[0]) for one in told) == 2 and sum(sum(one[1]) for one in told) == 1
        assert envs.ended.all()
