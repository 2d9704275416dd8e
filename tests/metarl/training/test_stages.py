"""Schedules in a run: what each iteration is made of, recorded, resumed bit for bit, and counted."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

import metarl
from metarl import Experiment, Settings
from metarl.algorithms import MAML
from metarl.cli import main
from metarl.control import ControlTasks, Sampling
from metarl.networks import Network
from metarl.outer import TRPO, Adam
from metarl.plugins import linear, stepwise
from metarl.runs import logger
from metarl.training import TrainingError
from metarl.types import Split
from metarl_envs.navigation import PointNavigation
from metarl_plugins.sinusoid import Sinusoid

SEEN: list[tuple[int, float, int]] = []
SMALL = Network(hidden=(4,))


@dataclass(frozen=True)
class Watched(PointNavigation):
    """Notes the number, the range and the horizon of the tasks that are sampled for training."""

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        if split == "train" and generator.initial_seed() != 0:
            SEEN.append((num_tasks, self.goal_range, self.sampling.horizon))
        return super().sample(num_tasks, split, generator)


WATCHED = Watched(sampling=Sampling(episodes=2, horizon=3))
CURRICULUM = {
    "meta_batch_size": linear(2, 6),
    "tasks.goal_range": "0.1..0.5@0.5",
    "tasks.sampling.horizon": stepwise({0: 2, 0.5: 4}),
    "algorithm.steps": "1/2@0.75",
}


def settings(iterations: int = 4, **options: Any) -> Settings:
    return Settings(iterations=iterations, meta_batch_size=3, device="cpu", **options)


def run_of(out: Path | None = None, callbacks: Any = (), **options: Any) -> metarl.Trained:
    SEEN.clear()
    experiment = Experiment(MAML(network=SMALL), WATCHED, settings=settings(schedules=CURRICULUM, **options))
    return experiment.train(out, callbacks=callbacks)


def without_times(path: Path) -> list[dict[str, str]]:
    found = logger.read_progress(path / "progress.csv")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]


def test_each_iteration_has_the_numbers_of_its_progress(tmp_path: Path) -> None:
    rows = run_of(tmp_path / "run").rows
    # Progress 0, 1/4, 1/2, 3/4: the meta-batch is 2, 3, 4, 5.
    assert SEEN[-4:] == [(2, 0.1, 2), (3, pytest.approx(0.3), 2), (4, 0.5, 4), (5, 0.5, 4)]
    assert [row["tasks/seen"] for row in rows] == [2, 5, 9, 14]
    assert [row["schedule/tasks.goal_range"] for row in rows] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert ["return/step_2" in row for row in rows] == [False, False, False, True]
    written = logger.read_progress(tmp_path / "run" / "progress.csv")
    assert [row["return/step_2"] != "" for row in written] == [False, False, False, True]


def test_schedules_are_recorded_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole")
    stopped = run_of(tmp_path / "stopped", callbacks=[lambda iteration: iteration.progress.iteration < 2])
    assert stopped.iteration == 2
    config = json.loads((tmp_path / "stopped" / "config.json").read_text())
    assert config["settings"]["schedules"]["tasks.goal_range"] == "0.1@0.0..0.5@0.5"
    resumed = metarl.resume(tmp_path / "stopped")
    assert all(torch.equal(value, whole.params[name]) for name, value in resumed.params.items())
    assert without_times(tmp_path / "stopped") == without_times(tmp_path / "whole")
    assert metarl.open_run(tmp_path / "stopped").experiment == whole.experiment


def test_a_schedule_of_one_value_changes_nothing() -> None:
    plain = Experiment(MAML(network=SMALL), WATCHED, settings=settings(2))
    constant = {"meta_batch_size": "3", "tasks.goal_range": "0.5..0.5", "algorithm.step_size": "0.1"}
    found = replace(plain, settings=settings(2, schedules=constant)).train()
    expected = plain.train()
    assert all(torch.equal(value, expected.params[name]) for name, value in found.params.items())


def test_tasks_are_counted_on_after_a_resume_to_more_iterations(tmp_path: Path) -> None:
    """What was logged was seen: it does not follow from the schedule of another length."""
    options: Any = {"schedules": {"meta_batch_size": "2..6"}, "log_every": 3, "checkpoint_every": 4}
    Experiment("maml", WATCHED, settings=settings(4, **options)).train(tmp_path / "run")
    SEEN.clear()
    resumed = metarl.resume(tmp_path / "run", iterations=8)
    assert [sizes for sizes, *_ in SEEN][-4:] == [4, 4, 5, 6]  # 2 + 4 * (4, 5, 6, 7) / 8, rounded to even
    assert resumed.rows[-1]["tasks/seen"] == 2 + 3 + 4 + 5 + 4 + 4 + 5 + 6


def test_the_outer_updates_numbers_are_scheduled_too() -> None:
    still = Experiment(MAML(network=SMALL), Sinusoid(), Adam(), settings(2, schedules={"outer.learning_rate": "1e-30"}))
    moved = Experiment(MAML(network=SMALL), Sinusoid(), Adam(), settings(2))
    start = {name: value for name, value in still.train().params.items()}
    assert sum(float((value - start[name]).abs().max()) for name, value in moved.train().params.items()) > 1e-3


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"tasks.goal": "1..2"}, "Watched has no field 'goal'"),
        ({"tasks.sampling": "1..2"}, "only numbers"),
        ({"tasks.goal_range": "0.5..-1"}, r"tasks cannot take \{'goal_range': .*goal_range"),
        ({"meta_batch_size": "0..4"}, "meta_batch_size=0 must be at least 1"),
        ({"iterations": "1..2"}, "expected some of meta_batch_size, algorithm.FIELD, tasks.FIELD, outer.FIELD"),
        ({"tasks": "1..2"}, "expected some of"),
        ({"meta_batch_size": "4..x"}, "is no schedule"),
        ({"meta_batch_size": 4}, "expected a Schedule, or a text"),
        ("5..40", "expected a dictionary"),
    ],
)
def test_schedules_that_do_not_fit_are_refused_before_training(schedules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment(MAML(network=SMALL), WATCHED, settings=settings(schedules=schedules)).start()


def test_a_schedule_in_place_of_a_number_is_told_where_it_goes() -> None:
    for make in (lambda: Settings(meta_batch_size=linear(2, 4)), lambda: Experiment(MAML(steps=linear(1, 2)), WATCHED)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"a schedule stands in place of a number: .* Settings\(schedules="):
            make()


def test_parameters_must_keep_their_shapes() -> None:
    learned = MAML(network=SMALL, learn_step_sizes=True, step_sizes="layer_step")
    with pytest.raises(ValueError, match="the algorithm has parameters of other shapes"):
        Experiment(learned, WATCHED, settings=settings(schedules={"algorithm.steps": "1/2"})).start()


def test_groups_of_the_outer_update_must_fit_the_smallest_meta_batch() -> None:
    with pytest.raises(ValueError, match="chunks=3 is more than the 2 tasks"):
        Experiment("maml", WATCHED, TRPO(chunks=3), settings(schedules={"meta_batch_size": "2..6"})).start()


def test_a_compiled_run_with_many_values_is_refused() -> None:
    chosen = settings(100, compile=True, schedules={"tasks.goal_range": "0.1..0.5"})
    with pytest.raises(ValueError, match="take 100 different values in 100 iterations, and each is compiled anew"):
        Experiment(MAML(network=SMALL), WATCHED, settings=chosen).start()


def test_a_compiled_run_takes_each_value_as_the_plain_one_does(monkeypatch: Any, float64: None) -> None:
    """The graph of one value must not be used for another."""
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    schedules = {"tasks.amplitude": "0.1,0.2/4,5@0.5", "meta_batch_size": "3/5@0.5"}
    family = Sinusoid(shots=3, test_queries=3)
    plain, compiled = (
        Experiment(MAML(network=SMALL), family, settings=settings(4, log_every=1, schedules=schedules, compile=compile))
        for compile in (False, True)
    )
    for found, expected in zip(compiled.train().rows, plain.train().rows, strict=True):
        assert found["outer/loss"] == pytest.approx(expected["outer/loss"], rel=1e-9)
        assert found["tasks/seen"] == expected["tasks/seen"]


def test_the_command_line_takes_schedules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "maml", "point-navigation", "--recipe", "none", "--iterations", "2", "--device", "cpu", "--quiet"]
    sizes = ["--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "3", "--out", str(tmp_path / "run")]
    asked = ["--schedules", "meta-batch-size=2..4", "tasks.goal-range=0.1/0.2@0.5"]
    assert main([*words, *sizes, *asked]) == 0
    experiment = metarl.open_run(tmp_path / "run").experiment
    assert experiment.settings.schedules == {
        "meta_batch_size": linear(2, 4), "tasks.goal_range": stepwise({0.0: 0.1, 0.5: 0.2})
    }  # fmt: skip
    assert main([*words, "--schedules", "meta-batch-size"]) == 2
    assert "expected NAME=FROM..TO" in capsys.readouterr().err


def test_training_gives_up_on_stages_as_on_others() -> None:
    broken = MAML(network=SMALL, step_size=1e30)
    chosen = settings(9, schedules={"meta_batch_size": "2..3"})
    with pytest.raises(TrainingError, match="not finite in 5 iterations in a row"):
        Experiment(broken, Sinusoid(), settings=chosen).train()


def test_a_callback_that_edits_the_family_is_noticed() -> None:
    family = replace(WATCHED)

    def harder(iteration: Any) -> None:
        if iteration.progress.iteration == 2:
            object.__setattr__(iteration.run.family, "goal_range", 0.6)
        elif iteration.progress.iteration == 1:
            object.__setattr__(iteration.run.family, "goal_range", 0.5)  # what it is

    experiment = Experiment(MAML(network=SMALL), family, settings=settings(3))
    with pytest.warns(
        UserWarning, match="changed tasks.goal_range in iteration 2: config.json does not say so"
    ) as told:
        experiment.train(callbacks=[harder])
    assert len(told) == 1
