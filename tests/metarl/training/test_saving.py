"""A training loop of one's own saves a run folder as ``train`` does, with which everything works."""

import filecmp
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl import Experiment, Settings, linear, save_run
from metarl.algorithms import MAML
from metarl.cli import main
from metarl.control import Sampling
from metarl.networks import Network
from metarl.outer import Adam
from metarl.runs import RunError, logger
from metarl.training import Progress, TrainingError, gather, streams
from metarl_envs.navigation import PointNavigation
from metarl_plugins.sinusoid import Sinusoid

GROWING = {"meta_batch_size": linear(2, 6)}
CHOSEN = Settings(iterations=5, device="cpu", checkpoint_every=2, schedules=GROWING)
SMALL = MAML(network=Network(hidden=(4,)))
EXPERIMENTS = {
    "control": Experiment(SMALL, PointNavigation(sampling=Sampling(episodes=3, horizon=4)), settings=CHOSEN),
    "examples": Experiment(SMALL, Sinusoid(), Adam(), settings=replace(CHOSEN, log_every=1)),
}


def iterations(experiment: Experiment, save: Any) -> Iterator[tuple[Progress, dict[str, Any]]]:
    """The loop of a user, of parts."""
    last, seen = experiment.settings.iterations, 0
    for number in range(1, last + 1):
        draws, share = streams(experiment.settings.seed, number, save.device), (number - 1) / last
        size = round(linear(2, 6).at(share))  # type: ignore[arg-type]
        tasks = experiment.tasks.sample(size, "train", next(draws))
        experience, scores = gather(save.learner, save.progress.params, tasks, draws, share)
        update = experiment.outer.update(save.learner, save.progress.params, save.progress.outer, experience)
        seen += size
        yield Progress(number, update.params, update.state), {**scores, **update.metrics, "tasks/seen": seen}


def rows(folder: Path, without: tuple[str, ...]) -> list[dict[str, str]]:
    found = logger.read_progress(folder / "progress.csv")
    return [{name: value for name, value in row.items() if not name.startswith(without)} for row in found]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_loop_of_ones_own_leaves_what_train_leaves(name: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS[name]
    trained = experiment.train(tmp_path / "trained")
    with save_run(experiment, tmp_path / "own") as save:
        for reached, row in iterations(experiment, save):
            save(reached, row)
    for file in ("config.json", "checkpoint.pt", "best.pt", "previous.pt"):
        assert filecmp.cmp(tmp_path / "own" / file, tmp_path / "trained" / file, shallow=False), file
    only = ("time/", "outer/refused", "schedule/", "signs/")  # what metarl's own loop adds
    assert rows(tmp_path / "own", only) == rows(tmp_path / "trained", only)
    opened = metarl.open_run(tmp_path / "own", device="cpu")
    assert opened.experiment == experiment
    assert not opened.interrupted
    assert all(torch.equal(value, trained.params[name]) for name, value in opened.params.items())
    assert main(["evaluate", str(tmp_path / "own"), "--tasks", "2", "--steps", "1"]) == 0
    assert main(["plot", str(tmp_path / "own")]) == 0
    assert (tmp_path / "own" / "learning.png").exists()


@pytest.mark.parametrize("stop", ["break", "interrupt"])
def test_a_loop_that_stops_is_resumed_bit_for_bit(stop: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS["control"]
    whole = experiment.train()

    def own() -> None:
        with save_run(experiment, tmp_path / "own") as save:
            for reached, row in iterations(experiment, save):
                save(reached, row)
                if reached.iteration == 3:
                    if stop == "interrupt":
                        raise KeyboardInterrupt
                    break

    if stop == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            own()
    else:
        own()
    assert metarl.open_run(tmp_path / "own").iteration == 3
    resumed = metarl.resume(tmp_path / "own")
    assert all(torch.equal(value, whole.params[name]) for name, value in resumed.params.items())
    assert [row["tasks/seen"] for row in resumed.rows] == [row["tasks/seen"] for row in whole.rows[3:]]


def test_a_loop_that_fails_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    experiment = EXPERIMENTS["control"]
    with pytest.raises(ZeroDivisionError), save_run(experiment, tmp_path / "own") as save:
        for reached, row in iterations(experiment, save):
            save(reached, row)
            _ = 1 / (3 - reached.iteration)
    assert metarl.open_run(tmp_path / "own").iteration == 2
    with pytest.raises(RunError, match="already contains a run"), save_run(experiment, tmp_path / "own"):
        pass
    with save_run(experiment, tmp_path / "own", overwrite=True) as save:
        save(*next(iterations(experiment, save)))
    assert metarl.open_run(tmp_path / "own").iteration == 1


def test_what_could_not_be_resumed_is_not_saved(tmp_path: Path) -> None:
    experiment = EXPERIMENTS["examples"]
    with save_run(experiment, tmp_path / "own") as save:
        (reached, row), first = next(iterations(experiment, save)), save.progress
        with pytest.raises(ValueError, match="iteration 2 was given to be saved: expected 1"):
            save(reached._replace(iteration=2), row)
        bias = reached.params["head.bias"]
        with pytest.raises(ValueError, match=r"the parameter or buffer head.bias has shape \(2,\): .* has \(1,\)"):
            save(reached._replace(params=reached.params | {"head.bias": torch.zeros(2)}), row)
        with pytest.raises(RunError, match="its state has no count"):
            save(reached._replace(outer={}), row)
        broken = reached._replace(params=reached.params | {"head.bias": bias * torch.nan})
        save(broken, row)
        with pytest.raises(TrainingError, match=r"head\.bias is not finite after iteration 1"):
            save.end()
        save.progress = first
