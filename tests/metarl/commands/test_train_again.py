"""``metarl train ... --resume`` and ``metarl.train(..., resume=True)``: one line starts, goes on, or is done."""

from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl import runs
from metarl.cli import main

TRAIN = ["train", "maml", "sinusoid", "--recipe", "none", "--meta-batch-size", "2", "--algorithm.hidden", "4",
         "--device", "cpu", "--log-every", "1"]  # fmt: skip
Captured = pytest.CaptureFixture[str]


def call(*words: Any) -> int:
    return main([str(word) for word in words])


def params(run: Path) -> Any:
    return runs.load_progress(run / "checkpoint.pt")["params"]


def test_one_line_starts_goes_on_and_is_done(tmp_path: Path, capsys: Captured) -> None:
    line = [*TRAIN, "--out", tmp_path / "run", "--resume", "--iterations"]
    assert call(*line, 2) == 0
    assert call(*line, 4) == 0
    assert call(*TRAIN, "--out", tmp_path / "whole", "--iterations", 4, "--quiet") == 0
    torch.testing.assert_close(params(tmp_path / "run"), params(tmp_path / "whole"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    for iterations in (4, 3):
        assert call(*line, iterations) == 0
        assert "run is done: nothing is left to do. Next: metarl evaluate" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert call(*line, 4, "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    line = [*TRAIN, "--out", tmp_path / "run", "--quiet", "--iterations", 2]
    assert call(*line) == 0
    (tmp_path / "run" / "checkpoint.pt").unlink()
    assert call(*line, "--resume") == 0
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "1"], "was begun with seed=0, and 1 is asked for now: give the options that it was begun with"),
        (["--meta-batch-size", "3"], "was begun with meta_batch_size=2, and 3 is asked for now"),
        (["--tasks.shots", "7"], "was begun with tasks.shots=10, and 7 is asked for now"),
        (["--outer", "sgd"], "was begun with outer=adam, and sgd is asked for now"),
        (["--outer.learning-rate", "0.5"], "was begun with outer.learning_rate=0.001, and 0.5 is asked for now"),
        (["--overwrite"], "resume goes on with a run and overwrite replaces it: give one of them"),
    ],
)
def test_another_command_is_refused(words: list[str], told: str, tmp_path: Path, capsys: Captured) -> None:
    line = [*TRAIN, "--out", tmp_path / "run", "--quiet", "--iterations", 1]
    assert call(*line) == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    capsys.readouterr()
    assert call(*line, "--resume", *words) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def trained(
    out: Path | None, iterations: int = 2, step_size: float = 0.1, seed: int = 0, **options: Any
) -> metarl.Trained:
    algorithm = metarl.MAML(step_size=step_size, network=metarl.Network(hidden=(4,)))
    settings = metarl.Settings(iterations=iterations, meta_batch_size=2, seed=seed, device="cpu", log_every=1)
    return metarl.train(algorithm, "sinusoid", settings=settings, out=out, resume=True, **options)


def test_a_script_starts_goes_on_and_opens_what_is_done(tmp_path: Path) -> None:
    assert trained(tmp_path / "run").iteration == 2
    further, whole = trained(tmp_path / "run", 4), trained(tmp_path / "whole", 4)
    torch.testing.assert_close(further.params, whole.params)
    assert further.iteration == 4
    for ours, theirs in zip(further.rows, whole.rows, strict=True):
        assert (ours["iteration"], ours["loss/step_1"]) == (theirs["iteration"], theirs["loss/step_1"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    opened = trained(tmp_path / "run", 4)
    torch.testing.assert_close(opened.params, whole.params)
    assert (opened.iteration, opened.rows) == (4, further.rows)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"step_size": 0.2}, "was begun with algorithm.step_size=0.1, and 0.2 is asked for now"),
        ({"seed": 1}, "was begun with seed=0, and 1 is asked for now"),
        ({"overwrite": True}, "resume goes on with a run and overwrite replaces it: give one of them"),
    ],
    ids=str,
)
def test_a_script_with_other_options_is_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(ValueError, match=told):
        trained(tmp_path, **options)


def test_a_script_without_a_folder_has_nothing_to_go_on_with() -> None:
    with pytest.raises(ValueError, match="goes on with the run of a folder: give out too"):
        trained(None)


@pytest.mark.parametrize("words", [[], ["--resume"], ["--seeds", "0", "1"]], ids=str)
def test_no_folder_takes_the_name_of_a_shipped_run(
    words: list[str], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command would find it again."""
    monkeypatch.chdir(tmp_path)
    assert call(*TRAIN, "--iterations", 1, "--out", "pretrained:own", *words) == 2
    assert "pretrained:own stands for a run that a package ships, not for a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
