"""Tasks inside and outside of the range that was trained on, told and drawn."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.cli import main
from metarl.evaluation import ranges
from metarl.fewshot import NWayKShot, Regression
from metarl.pictures import parameters
from metarl_envs.navigation import PointNavigation


def test_ranges_are_those_of_training_tasks() -> None:
    lines = Regression(lambda inputs, slope: slope * inputs, {"slope": (-3.0, 2.0)})
    low, high = ranges.training_ranges(lines)["slope"]
    assert -3 <= low < -2.95
    assert 1.95 < high <= 2
    assert sorted(ranges.training_ranges(PointNavigation())) == ["goal_0", "goal_1"]
    items = NWayKShot(torch.rand(60, 2), torch.arange(60) % 20, ways=2, shots=(1, 2), queries=1)
    assert sorted(ranges.training_ranges(items)) == ["shots", "ways"], "labels of classes have no range"


def test_tasks_outside_are_told() -> None:
    trained = {"speed": (0.0, 2.0), "mass": (1.0, 1.0)}
    values = {"speed": [0.5, 2.01, 2.1, -1.0], "mass": [1.0, 1.0, 1.0, 1.0]}
    assert ranges.outside(values, trained) == {"speed": [2, 3]}
    told = "2 of 4 tasks lie outside of the range that was trained on: speed from 0 to 2"
    assert ranges.told(values, trained) == told
    assert ranges.told({"speed": [1.0]}, trained) is None
    assert ranges.outside({"mass": [1.0, 1.5]}, trained) == {"mass": [1]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranges") / "run"
    quick = ["--iterations", "1", "--meta-batch-size", "2", "--device", "cpu", "--quiet", "--recipe", "none"]
    assert main(["train", "maml", "sinusoid", *quick, "--out", str(folder)]) == 0
    return folder


def evaluated(run: Path, *options: str) -> dict[str, Any]:
    assert main(["evaluate", str(run), "--tasks", "20", "--steps", "1", *options]) == 0
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return found


def test_an_evaluation_tells_of_tasks_outside(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(run, "--tasks.amplitude", "0.1", "10")
    assert found["training_ranges"]["amplitude"] == pytest.approx([0.1, 5], abs=0.05)
    assert len(found["parameters"]["amplitude"]) == len(found["metrics"]["loss/step_0"]["per_task"]) == 20
    beyond = sum(amplitude > 5.05 for amplitude in found["parameters"]["amplitude"])
    told = capsys.readouterr().out
    assert f"{beyond} of 20 tasks lie outside of the range that was trained on: amplitude from 0.1" in told
    assert "amplitude is (0.1, 10.0), and was (0.1, 5.0)" in told
    evaluated(run)
    assert "lie outside" not in capsys.readouterr().out


def test_the_score_is_drawn_over_a_parameter(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(run, "--tasks.amplitude", "0.1", "10")
    drawn: list[Any] = []

    def save(figure: Any, path: Path) -> Path:
        drawn.append(figure)
        return path

    monkeypatch.setattr(parameters, "save", save)
    assert main(["plot", str(run), "--parameter", "amplitude", "--out", str(tmp_path)]) == 0
    assert f"wrote {tmp_path / 'parameter-amplitude.png'}" in capsys.readouterr().out
    (axes,) = drawn[0].axes
    before, _, after, _ = axes.get_lines()
    found = json.loads((run / "evaluation.json").read_text())
    for line, step in ((before, 0), (after, 1)):
        assert line.get_xdata().tolist() == pytest.approx(found["parameters"]["amplitude"])
        assert line.get_ydata().tolist() == pytest.approx(found["metrics"][f"loss/step_{step}"]["per_task"])
    (shaded,) = axes.patches
    assert shaded.get_x() == pytest.approx(found["training_ranges"]["amplitude"][0])
    assert main(["plot", str(run), "--parameter", "speed", "--out", str(tmp_path)]) == 2
    assert "no evaluation has the task parameter 'speed': there are amplitude, phase" in capsys.readouterr().err


def test_means_are_over_parts_of_the_axis() -> None:
    where, means = parameters._means(torch.tensor([0.0, 0.5, 8.0]).numpy(), torch.tensor([1.0, 3.0, 5.0]).numpy())
    assert where.tolist() == [0.5, 7.5]
    assert means.tolist() == [2.0, 5.0]
    where, means = parameters._means(torch.ones(3).numpy(), torch.tensor([1.0, 3.0, 5.0]).numpy())
    assert means.tolist() == [3.0]
