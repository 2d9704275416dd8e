"""Where a run or a file can be written is found out before anything is computed, and told in one line."""

import dataclasses
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metarl import cli, training
from metarl.algorithms.maml import MAML
from metarl.control.tasks import Sampling
from metarl.files import check_folder, check_place, expanded
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.trained import Trained
from metarl.training.loop import Run
from metarl.training.settings import Settings
from metarl_envs.bandit import Bandit

ALGORITHM, FAMILY = MAML(network=Network(hidden=(4,))), Bandit(arms=2, sampling=Sampling(episodes=2, horizon=3))
SMALL = ["--iterations", "1", "--outer", "adam", "--meta-batch-size", "2", "--algorithm.hidden", "4", "--device", "cpu",
         "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "3", "--quiet"]  # fmt: skip


def train(out: Any, family: Any = FAMILY) -> Trained:
    return training.train(ALGORITHM, family, Adam(), Settings(1, 2, device="cpu"), out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and a home folder in it."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is to be trained here."""

    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("training began")

    monkeypatch.setattr(Run, "learn", never)


def refused(capsys: Any, *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return str(said)


def test_a_home_folder_is_meant_wherever_a_path_enters(here: Path, trained: Path, capsys: Any) -> None:
    home = here / "home"
    assert cli.main(["train", "maml", "bandit", "--out=~/run", *SMALL]) == 0
    train("~/other")
    training.resume("~/other", iterations=2)
    for command in ("resume ~/run --iterations 2", "evaluate ~/run --tasks 2 --steps 0", "plot ~/run --out ~/pictures"):
        assert cli.main(command.split()) == 0
    assert cli.main(["new", "tasks", "my-own-bandit", "--out", "~/plugin"]) == 0
    assert {path.name for path in home.glob("[!.]*")} == {"run", "other", "pictures", "plugin"}
    assert "does not exist" in refused(capsys, "train", "maml", "bandit", "--start-from=~/gone.zip", *SMALL)
    assert not (here / "~").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["train", "maml", "bandit", "--out", "", *SMALL], ["train", "maml", "bandit", "--out=", *SMALL],
        ["baseline", "ppo", "bandit", "--out", ""], ["resume", ""], ["evaluate", ""], ["plot", ""], ["render", ""],
        ["evaluate", "RUN", "--oracle", "", "--pretrained", ""], ["plot", "RUN", "--out", ""],
        ["render", "RUN", "--out", ""], ["export", "RUN", ""], ["new", "tasks", "my-own-bandit", "--out", ""],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_empty_path_is_none(here: Path, trained: Path, capsys: Any, command: list[str]) -> None:
    said = refused(capsys, *[str(trained) if word == "RUN" else word for word in command])
    assert "a path is empty" in said or "parse for arguments: ['']" in said
    assert [path.name for path in here.iterdir()] == ["home"]


def test_a_home_folder_of_nobody_is_refused(capsys: Any) -> None:
    with pytest.raises(ValueError, match="~nobody-at-all/x"):
        expanded("~nobody-at-all/x")
    assert "~nobody-at-all/x" in refused(capsys, "train", "maml", "bandit", "--out=~nobody-at-all/x", *SMALL)


def test_an_empty_working_folder_may_become_a_run(here: Path) -> None:
    (here / "empty").mkdir()
    os.chdir(here / "empty")
    assert cli.main(["train", "maml", "bandit", "--out", ".", *SMALL]) == 0
    assert (here / "empty/checkpoint.pt").exists()


def test_a_link_to_a_folder_is_that_folder_and_a_link_to_nothing_is_refused(here: Path, capsys: Any) -> None:
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    (here / "nothing").symlink_to("gone")
    train("link")
    assert (here / "real/checkpoint.pt").exists()
    assert (here / "link").is_symlink()
    told = refused(capsys, "train", "maml", "bandit", "--out", "nothing", *SMALL)
    assert "/nothing: it is a broken link" in told
    assert not (here / "gone").exists()


@pytest.mark.parametrize("command", ["export RUN file/model.zip", "render RUN --out file/a/film.gif", "plot RUN --out "
                                     "file/pictures", "new tasks my-own-bandit --out file/plugin",
                                     "train maml bandit --out file/run", "baseline ppo bandit --out file/run",
                                     "export RUN home", "render RUN --out home/d.gif"])  # fmt: skip
def test_nothing_is_written_below_a_file_or_in_place_of_a_folder(
    here: Path, trained: Path, capsys: Any, command: str
) -> None:
    (here / "file").write_text("mine")
    (here / "home/d.gif").mkdir()
    told = refused(
        capsys, *command.replace("RUN", str(trained)).split(), *(["--overwrite"] if "export" in command else [])
    )
    assert "file" in told or "is a folder" in told
    assert (here / "file").read_text() == "mine"


def test_what_may_be_written_is_let_through(here: Path) -> None:
    for path in ("film.gif", "home/film.gif", "a/b/film.gif", here / "film.gif", "../film.gif"):
        check_place(Path(path))
    check_folder(Path())


@dataclasses.dataclass(frozen=True)
class Moving(Bandit):
    """A family that changes the working folder."""

    def sample(self, *arguments: Any) -> Any:
        os.chdir("/")
        return super().sample(*arguments)


def test_a_run_stays_where_it_is_when_the_working_folder_changes(here: Path) -> None:
    train("run", Moving(arms=2, sampling=Sampling(episodes=2, horizon=3)))
    assert {"checkpoint.pt", "best.pt", "progress.csv"} <= {path.name for path in (here / "run").iterdir()}
    assert not (here / "run/run.lock").exists()


@pytest.fixture
def read_only(here: Path, trained: Path) -> Iterator[Path]:
    """A folder with a run that nothing can be written into, for root neither."""
    folder = here / "disk"
    shutil.copytree(trained, folder / "run")
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a file system takes root")
    for options in (["--bind"], ["-o", "remount,bind,ro"]):
        if subprocess.run(["mount", *options, folder, folder], capture_output=True).returncode:
            pytest.skip("cannot mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_place_that_cannot_be_written_is_found_out_at_once(read_only: Path, capsys: Any, untrained: None) -> None:
    run = read_only / "run"
    for command in ("train maml bandit --out {run} --overwrite", "train maml bandit --out {run}/new", "resume {run} "
                    "--iterations 9", "evaluate {run}", "baseline ppo bandit --out {run} --overwrite"):  # fmt: skip
        assert "Read-only file system" in refused(capsys, *command.format(run=run).split())
    for command in (
        "plot {run}",
        "export {run} {run}/model.zip",
        "render {run}",
        "new tasks my-own-bandit --out {run}/x",
    ):
        assert "no permission to write into" in refused(capsys, *command.format(run=run).split())


@pytest.mark.parametrize(
    "words",
    [
        ["train", "maml", "bandit", "--out", "LONG"], ["plot", "run", "--out", "LONG"],
        ["evaluate", "run", "--out", "LONG.json"],
        ["export", "run", "LONG.zip"], ["render", "run", "--out", "LONG.gif"], ["new", "tasks", "LONG"],
        ["new", "tasks", "try-it", "--out", "LONG"], ["train", "maml", "images", "--tasks.root", "LONG"],
    ],
)  # fmt: skip
def test_a_name_that_is_too_long_is_refused_in_a_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word.replace("LONG", "a" * 300) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the path {'a' * 40}... cannot be: File name too long" in line


LOST = {
    "the folder is deleted": lambda out: shutil.rmtree(out),
    "a file takes its place": lambda out: (shutil.rmtree(out), out.write_text("x")),
    "progress.csv is a folder": lambda out: ((out / "progress.csv").unlink(), (out / "progress.csv").mkdir()),
    "best.pt is a folder": lambda out: ((out / "best.pt").unlink(), (out / "best.pt").mkdir()),
}


@pytest.mark.parametrize("how", LOST)
def test_a_folder_that_is_lost_during_training_is_told_in_a_line(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, learn, counted = tmp_path / "run", Run.learn, itertools.count(1)

    def lose(self: Run, *arguments: Any) -> Any:
        if next(counted) == 3:
            LOST[how](out)
        return learn(self, *arguments)

    monkeypatch.setattr(Run, "learn", lose)
    words = ["train", "maml", "sinusoid", "--iterations", "4", "--meta-batch-size", "2", "--log-every", "1", "--quiet"]
    code = cli.main([*words, "--checkpoint-every", "1", "--out", str(out)])
    told = capsys.readouterr().err
    assert (code, told.count("\n")) == (1, 1), told
    assert told.startswith("metarl: ")
    assert str(out) in told
