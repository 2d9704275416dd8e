"""The pictures, on made-up scores. Their words are read from SVG, where matplotlib notes every text as a comment."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl.pictures import plotting


def texts(path: Path) -> list[str]:
    return [match.strip() for match in re.findall("<!--(.*?)-->", path.read_text())]


def rows(iterations: int, **scores: float) -> list[dict[str, Any]]:
    """Rows as csv.DictReader gives them; the double underscore of a keyword stands for a slash."""
    named = {name.replace("__", "/"): str(value) for name, value in scores.items()}
    return [
        {"iteration": str(iteration + 1), "time/iteration_seconds": "1", **named} for iteration in range(iterations)
    ]


def evaluation(*means: float, name: str = "return", tasks: int = 40) -> dict[str, Any]:
    metrics = {
        f"{name}/step_{step}": {"mean": mean, "low": mean - 1, "high": mean + 1, "per_task": [mean]}
        for step, mean in enumerate(means)
    }
    return {"metrics": metrics, "tasks": tasks, "split": "test", "seed": 0}


# Learning curves


def test_a_learning_curve_names_runs_steps_and_units(tmp_path: Path) -> None:
    runs = {
        "maml": rows(3, return__step_0=-50, return__step_1=-20, return__step_2=-10),
        "multitask": rows(2, return__step_0=-40),
    }
    path = plotting.learning_curve(runs, tmp_path / "learning.svg")
    assert path == tmp_path / "learning.svg"
    found = texts(path)
    for text in ("maml", "multitask", "before adaptation", "after 1 step", "after 2 steps", "meta-iteration"):
        assert text in found
    assert "return per episode (sum of rewards)" in found
    assert "accuracy (fraction correct)" not in found


@pytest.mark.parametrize("name", ["_old", "cost$\\bad$", "$x$", "before adaptation", "a\\_b^2", "%"])
def test_a_run_is_called_in_a_plot_what_it_is_called(tmp_path: Path, name: str) -> None:
    path = plotting.learning_curve(
        {name: rows(3, return__step_0=-5), "new": rows(3, return__step_0=-4)}, tmp_path / "a.svg"
    )
    assert texts(path).count(name) == 1 + (name == "before adaptation")
    path = plotting.adaptation_curve({name: evaluation(-5, -1), "new": evaluation(-4, -2)}, tmp_path / "b.svg")
    assert {name, "new"} <= set(texts(path))


def test_no_two_of_forty_runs_look_alike() -> None:
    points = [tuple(plotting.point(run).items()) for run in range(40)]
    lines = [(plotting.COLOURS[run % 7], tuple(plotting._marks(run).items())) for run in range(40)]
    assert len(set(points)) == len(set(lines)) == 40


def test_every_score_has_a_panel(tmp_path: Path) -> None:
    runs = {"maml": rows(3, loss__step_0=1.5, accuracy__step_0=0.2)}
    found = texts(plotting.learning_curve(runs, str(tmp_path / "learning.svg")))
    assert {"loss", "accuracy (fraction correct)"} <= set(found)


def test_blank_cells_are_left_out() -> None:
    table: list[dict[str, Any]] = [
        {"iteration": "1", "loss/step_0": "0.5"},
        {"iteration": "2", "loss/step_0": ""},
        {"iteration": "3"},
    ]
    table += [{"iteration": "4", "loss/step_0": None}, {"iteration": "5", "loss/step_0": "0.25"}]
    iterations, values = plotting._column(table, "loss/step_0")
    assert (iterations.tolist(), values.tolist()) == ([1, 5], [0.5, 0.25])


def test_blank_and_missing_columns_draw(tmp_path: Path) -> None:
    runs = {"maml": [{"iteration": "1", "loss/step_0": ""}], "anil": rows(1, loss__step_3=1), "empty": []}
    assert plotting.learning_curve(runs, tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_long_runs_are_smoothed_and_say_so(tmp_path: Path) -> None:
    found = texts(plotting.learning_curve({"maml": rows(150, loss__step_0=1)}, tmp_path / "learning.svg"))
    assert "mean over 3 iterations; faint: every iteration" in found


@pytest.mark.parametrize(
    ("window", "means"), [(1, [0, 3, 6, 12]), (2, [0, 1.5, 4.5, 9]), (3, [1.5, 3, 7, 9]), (9, [5.25, 5.25, 5.25, 5.25])]
)
def test_running_means(window: int, means: list[float]) -> None:
    assert plotting._running_mean(np.array([0.0, 3.0, 6.0, 12.0]), window).tolist() == means


@pytest.mark.parametrize("runs", [{}, {"maml": []}, {"maml": rows(3, outer__kl=0.1)}])
def test_no_scores_are_refused(tmp_path: Path, runs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nothing to draw: expected return/step_0, accuracy/step_0, loss/step_0"):
        plotting.learning_curve(runs, tmp_path / "learning.png")
    assert list(tmp_path.iterdir()) == []


# Adaptation curves


def test_an_adaptation_curve_names_runs_and_tasks(tmp_path: Path) -> None:
    evaluations = {"maml": evaluation(-50, -20, -15), "oracle": evaluation(-10)}
    found = texts(plotting.adaptation_curve(evaluations, tmp_path / "adaptation.svg"))
    assert {"maml", "oracle", "adaptation steps", "mean and 95 % interval over 40 test tasks"} <= set(found)
    assert [text for text in found if text in ("0", "0.5", "1", "1.5", "2")] == ["0", "1", "2"]


def test_different_numbers_of_tasks_are_told(tmp_path: Path) -> None:
    evaluations = {"maml": evaluation(0.2, 0.9, name="accuracy"), "anil": evaluation(0.2, name="accuracy", tasks=600)}
    found = texts(plotting.adaptation_curve(evaluations, tmp_path / "adaptation.svg"))
    assert "mean and 95 % interval over 40 test tasks or 600 test tasks" in found


def test_an_evaluation_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plotting.adaptation_curve({"maml": evaluation()}, tmp_path / "adaptation.png")


# Navigation


def test_paths_of_the_first_goals_are_drawn(tmp_path: Path) -> None:
    paths, mask = torch.rand(2, 6, 3, 10, 2), torch.ones(2, 6, 3, 10)
    goals = torch.tensor([[0.1, 0.2], [-0.3, 0.4], [0.5, 0.5], [0.0, 0.1], [0.3, 0.3], [0.2, 0.2]])
    found = texts(plotting.navigation_paths(paths, mask, goals, tmp_path / "paths.svg", shown=2))
    assert {"before adaptation", "after 1 step", "goal", "x (metres)", "y (metres)"} <= set(found)
    assert [text for text in found if text.startswith("goal (")] == ["goal (0.10, 0.20)", "goal (-0.30, 0.40)"]


def test_a_path_ends_where_its_episode_ends(tmp_path: Path) -> None:
    paths, mask = np.zeros((1, 1, 1, 3, 2)), np.array([[[[1, 1, 0]]]])
    paths[0, 0, 0, :, 0] = [0, 1, 100]
    found = texts(plotting.navigation_paths(paths, mask, np.array([[0.5, 0.0]]), tmp_path / "paths.svg"))
    assert not {"50", "75", "100"} & set(found)


def test_limits_are_a_square_around_all_points() -> None:
    points = np.array([[0.0, 0.0], [2.0, 1.0], [np.nan, np.nan]])
    np.testing.assert_allclose(plotting._square(points), [[-0.1, -0.6], [2.1, 1.6]])
    np.testing.assert_allclose(plotting._square(points[:1]), [[-1, -1], [1, 1]])


def test_shapes_that_disagree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("not shapes (1, 2, 3, 4, 2), (1, 2, 3, 4) and (5, 2)")):
        plotting.navigation_paths(
            np.zeros((1, 2, 3, 4, 2)), np.zeros((1, 2, 3, 4)), np.zeros((5, 2)), tmp_path / "p.png"
        )


# Episodes


def test_a_mosaic_has_a_row_for_each_class() -> None:
    images = np.stack([np.full((1, 2, 2), ink) for ink in (0.1, 0.2, 0.3, 0.4, 0.5)])
    mosaic = plotting._mosaic(images, np.array([1, 0, 1, 0, 1]), columns=2)
    # Two rows of two images of 2 x 2 pixels in frames of their own; ink is dark.
    assert mosaic.shape == (8, 8, 3)
    middles = mosaic[1::4, 1::4, 0]
    np.testing.assert_allclose(middles, [[0.8, 0.6], [0.9, 0.7]])


def test_colours_stay() -> None:
    images = np.zeros((1, 3, 2, 2))
    images[0, 1] = 0.7
    np.testing.assert_allclose(plotting._mosaic(images, np.array([0]), 5)[1, 1], [0, 0.7, 0])


def test_the_first_tasks_are_drawn(tmp_path: Path) -> None:
    images, classes = torch.rand(3, 4, 1, 5, 5), torch.tensor([[0, 1, 1, 0]] * 3)
    found = texts(plotting.episodes(images, classes, images, classes, tmp_path / "episodes.svg", shown=2))
    assert found.count("task 0: support | query") == found.count("task 1: support | query") == 1
    assert "task 2: support | query" not in found
    with pytest.raises(
        ValueError, match=re.escape("expected images [task, item, 1 or 3, height, width], not shape (3, 4")
    ):
        plotting.episodes(images[:, :, 0], classes, images, classes, tmp_path / "episodes.svg")


# Files


def test_a_failure_leaves_the_old_picture(tmp_path: Path) -> None:
    path = tmp_path / "learning.odd"
    path.write_text("old")
    with pytest.raises(ValueError, match="odd"):
        plotting.learning_curve({"maml": rows(3, loss__step_0=1)}, path)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
