"""Progress: whatever takes time tells how much of it is done, ever more, up to all of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import metarl
from metarl.cli import main
from metarl.pictures import video
from metarl.pictures.video import Clip
from metarl.runs import logger

SMALL = ["--recipe", "none", "--iterations", "1", "--meta-batch-size", "2", "--algorithm.hidden", "4", "--quiet",
         "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "5", "--device", "cpu"]  # fmt: skip
Told = dict[str, list[float]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Told:
    """What each bar was told, by its title."""
    monkeypatch.chdir(tmp_path)
    found: Told = {}

    @contextmanager
    def noted(title: str) -> Iterator[Any]:
        yield found.setdefault(title, []).append

    monkeypatch.setattr(logger, "open_bar", noted)
    return found


def assert_rises(shares: list[float], end: float = 1.0) -> None:
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] == pytest.approx(end) and len(set(shares)) > 1


class Line(gymnasium.Env[Any, Any]):
    """Stands for a robot of one's own."""

    observation_space = spaces.Box(-10.0, 10.0, (2,))
    action_space = spaces.Box(-0.1, 0.1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, False, self.steps == 3, {}


def test_commands_tell_how_far_they_are(told: Told) -> None:
    assert main(["train", "maml", "point-navigation", *SMALL, "--out", "run"]) == 0
    assert main(["evaluate", "run", "--tasks", "2", "--steps", "1"]) == 0
    assert main(["render", "run", "--steps", "0", "--height", "32"]) == 0
    assert main(["check", "point-navigation", "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "5"]) == 0
    assert main(["report", "run"]) == 0
    assert list(told) == [
        "evaluating run", "scoring policies that know nothing", "writing render.gif", "checking point-navigation",
        "writing report.html",
    ]  # fmt: skip
    assert_rises(told["evaluating run"])
    assert told["scoring policies that know nothing"] == [0.5]
    assert_rises(told["writing render.gif"])
    for name in ("checking point-navigation", "writing report.html"):
        assert_rises(told[name], told[name][-1])
        assert 0.8 < told[name][-1] <= 1


@pytest.mark.parametrize(("steps", "after"), [(1, None), (2, 0), (0, 4)])
def test_adapting_to_an_environment_tells_how_much_is_played(told: Told, steps: int, after: int | None) -> None:
    assert main(["train", "maml", "point-navigation", *SMALL, "--out", "run"]) == 0
    shares: list[float] = []
    metarl.open_run("run").adapt_to(Line(), 4, steps, after, progress=shares.append)
    assert_rises(shares)
    assert len(shares) == 4 * (steps + (after != 0))


def test_films_tell_how_much_is_written(tmp_path: Path) -> None:
    shares: list[float] = []
    frames = [np.full((8, 16, 3), 5 * shade, np.uint8) for shade in range(20)]
    video.write([("", [Clip("", frames)])], tmp_path / "film.gif", 10, shares.append)
    assert_rises(shares)
    assert len(shares) == 40
