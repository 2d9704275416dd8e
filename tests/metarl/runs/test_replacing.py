"""No file of a user's is lost where runs begin, and a replaced run is whole until the new one is safe."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl import cli, runs, training
from metarl.algorithms.maml import MAML
from metarl.control.sampling import Sampling
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.runs import replacing
from metarl.runs.layout import RunError, written
from metarl.trained import Trained
from metarl.training.settings import Settings
from metarl_envs.bandit import Bandit

ALGORITHM, FAMILY = MAML(network=Network(hidden=(4,))), Bandit(arms=2, sampling=Sampling(episodes=2, horizon=3))
RECORD = {"reference": "metarl.algorithms.maml:MAML", "options": {}}
CONFIG = {"algorithm": RECORD, "tasks": RECORD, "outer": RECORD, "settings": {"seed": 3}}
MINE = (
    "model.zip", "checkpoint-7.pt", "checkpoint-mine.pt", "checkpoint.pt", "best.pt", "best_evaluation.pt",
    "evaluations.json", "progress.csv", "evaluation.json", "learning.png", "adaptation.png", "tasks.png",
    "predictions.png", "render.gif", "render.mp4", "wandb-id.txt", "events.out.tfevents.1",
    "adaptation/events.out.tfevents.1", "notes.txt",
)  # fmt: skip
"""Files that a user may have, most of them by names that runs use."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put(folder: Path, names: tuple[str, ...], text: str) -> dict[str, bytes]:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f"{text} {name}")
    return contents(folder)


def train(out: Path, iterations: int = 2, **options: Any) -> Trained:
    settings = Settings(iterations, 2, device="cpu", checkpoint_every=2)
    return training.train(ALGORITHM, FAMILY, Adam(), settings, out, **options)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", MINE)
def test_a_folder_that_is_no_run_is_refused_and_stays_as_it_was(tmp_path: Path, name: str, overwrite: bool) -> None:
    before = put(tmp_path, (name,), "mine")
    with pytest.raises(RunError, match=rf"{tmp_path} is not empty and contains no run \({Path(name).parts[0]}\)"):
        runs.create(tmp_path, CONFIG, overwrite)
    assert contents(tmp_path) == before


def test_commands_refuse_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = put(tmp_path, MINE, "mine")
    monkeypatch.chdir(tmp_path)
    for out in (".", str(tmp_path)):
        for command in ("train maml bandit", "baseline ppo bandit"):
            for more in ([], ["--overwrite"]):
                assert cli.main([*command.split(), "--out", out, *more]) == 2
                told = capsys.readouterr().err
                assert "is not empty and contains no run" in told
                assert "and 16 more" in told
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["{}", "{", '{"format": 1}', '{"format": 99}', '{"name": "a page of mine"}'])
def test_a_configuration_of_something_else_is_not_replaced(tmp_path: Path, text: str) -> None:
    put(tmp_path, MINE, "mine")
    (tmp_path / "config.json").write_text(text)
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"contains a config\.json that is not a run's, so nothing is overwr"):
            runs.create(tmp_path, CONFIG, overwrite)
    assert contents(tmp_path) == before


def test_only_what_a_run_writes_gives_way_to_another(tmp_path: Path) -> None:
    train(tmp_path)
    mine = ("notes.txt", "checkpoint-mine.pt", "model.zip", "render.mp4", "adaptation/table.csv", "my/config.json")
    put(tmp_path, mine, "mine")
    train(tmp_path, overwrite=True)
    assert {name for name, text in contents(tmp_path).items() if text.startswith(b"mine")} == set(mine)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert not list(tmp_path.glob("metarl-*"))


def test_a_baselines_model_is_its_own(tmp_path: Path) -> None:
    put(tmp_path, ("model.zip",), "old")
    assert written(tmp_path, baseline=True) == [Path("model.zip")]
    assert written(tmp_path, baseline=False) == []


@pytest.mark.parametrize(
    "changes",
    [{"seed": object()}, {"wandb": b"x"}, {"seed": {1: object()}}, {"iterations": np.int64(2)}],
)
def test_what_cannot_be_recorded_is_noticed_before_anything_moves(tmp_path: Path, changes: Any) -> None:
    train(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"settings cannot be recorded in a run folder: \w+=.* is of type"):
        runs.create(tmp_path, CONFIG | {"settings": changes}, overwrite=True)
    unknown = MAML(network=Network(architecture=lambda spec: torch.nn.Linear(*spec.input_shape, spec.model_outputs)))
    with pytest.raises(ValueError, match="cannot be recorded"):
        training.train(unknown, FAMILY, Adam(), Settings(1, 2), tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_numbers_of_numpy_are_recorded_as_pythons(tmp_path: Path) -> None:
    train(tmp_path)
    settings = Settings(iterations=np.int64(1), meta_batch_size=np.int8(2), seed=np.uint64(3), device="cpu")  # type: ignore[arg-type]
    training.train(ALGORITHM, FAMILY, Adam(learning_rate=np.float32(0.5)), settings, tmp_path, overwrite=True)  # type: ignore[arg-type]
    config = runs.read_config(tmp_path)
    assert config["outer"]["options"]["learning_rate"] == 0.5
    assert (config["settings"]["iterations"], config["settings"]["seed"]) == (1, 3)
    assert training.recorded(tmp_path).settings == settings.filled(FAMILY.spec)


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_the_old_run_is_whole_until_the_new_one_has_a_checkpoint(tmp_path: Path) -> None:
    train(tmp_path)
    before = contents(tmp_path)

    def look(told: Any) -> None:
        aside = tmp_path / "metarl-replaced-1"
        assert contents(aside) == before
        assert training.load(aside).restore(aside / "checkpoint.pt").iteration == 2
        if told.progress.iteration == 2:
            raise ValueError("a callback broke")

    with pytest.raises(ValueError, match="a callback broke") as caught:
        train(tmp_path, overwrite=True, callbacks=[look])
    assert caught.value.__notes__ == [
        f"{tmp_path} has no checkpoint yet; the run that it was to replace is kept in {tmp_path}/metarl-replaced-1"
    ]
    with pytest.raises(RunError, match=f"not saved a checkpoint yet; the run that it was .*{tmp_path}/metarl-replace"):
        training.load(tmp_path).restore(tmp_path / "checkpoint.pt")
    assert contents(tmp_path / "metarl-replaced-1") == before
    training.resume(tmp_path)
    assert not list(tmp_path.glob("metarl-*"))


def test_runs_that_are_replaced_one_after_another_are_all_kept_until_one_is_safe(tmp_path: Path) -> None:
    def stop(told: Any) -> None:
        raise Killed

    train(tmp_path)
    before = contents(tmp_path)
    for count in (1, 2):
        with pytest.raises(Killed):
            train(tmp_path, overwrite=True, callbacks=[stop])
        assert len(list(tmp_path.glob("metarl-replaced-*"))) == count
        assert contents(tmp_path / "metarl-replaced-1") == before
    train(tmp_path, overwrite=True)
    assert not list(tmp_path.glob("metarl-*"))


def dies(action: Callable[[], Any], moves: int) -> bool:
    """Run something that dies before move number ``moves``, from 0, and return whether it came that far."""
    replace, calls = Path.replace, iter(range(moves))

    def dying(path: Path, target: Path) -> Path:
        if next(calls, None) is None:
            raise Killed
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        try:
            action()
        except Killed:
            return True
    return False


def test_a_crash_at_any_step_of_replacing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies before every single move, and again at every move while the files are put back."""
    whole, folder, put_back = tmp_path / "whole", tmp_path / "run", replacing.put_back
    train(whole)
    before, died = contents(whole), 0
    for first, second in itertools.product(range(8), range(7)):
        shutil.copytree(whole, folder)
        with monkeypatch.context() as patch:
            patch.setattr(replacing, "put_back", lambda folder: None)  # a process that is dead puts nothing back
            died += dies(lambda: runs.create(folder, CONFIG, overwrite=True), first)
        died += dies(lambda: put_back(folder), second)
        put_back(folder)
        kept = folder if (folder / "best.pt").exists() else folder / "metarl-replaced-1"
        found = {name: text for name, text in contents(kept).items() if not name.startswith("metarl-")}
        assert found == before, (first, second)
        shutil.rmtree(folder)
    assert died > 30


def test_a_new_run_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path)
    before = contents(tmp_path)

    synced = iter(["the lock", "that of evaluations"])

    def full(descriptor: int) -> None:
        if next(synced, None) is None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=f"cannot start a run in {tmp_path}: could not write .*No space left on device"):
        train(tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_the_command_says_where_the_old_run_is(tmp_path: Path, capsys: Any) -> None:
    train(tmp_path)
    small = ["--iterations", "1", "--outer", "adam", "--meta-batch-size", "2", "--algorithm.hidden", "4", "--device",
             "cpu", "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "3"]  # fmt: skip
    assert cli.main(["train", "maml", "bandit", "--out", str(tmp_path), "--overwrite", *small]) == 0
    assert f"is kept in {tmp_path}/metarl-replaced-1, until there is one" in capsys.readouterr().out
    assert not list(tmp_path.glob("metarl-*"))


def test_a_run_killed_before_it_kept_what_it_starts_from_is_not_resumed_from_other_parameters(tmp_path: Path) -> None:
    learner = ALGORITHM.build(FAMILY.spec)
    start = {"head.bias": learner.init(torch.Generator())["head.bias"] + 1}
    training.start(training.Source(ALGORITHM), training.Source(FAMILY), Adam(), Settings(1, 2), tmp_path,
                   start_from=start)  # fmt: skip
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(RunError, match="stopped before it had saved the parameters that it starts from"):
        training.resume(tmp_path)


@pytest.mark.parametrize("out", ["", Path("~nobody-at-all/x")])
def test_paths_that_mean_nothing_are_refused(out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"path is empty|home directory"):
        train(out)
    assert not list(tmp_path.iterdir())
