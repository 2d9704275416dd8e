"""Runs that packages ship are found by name, and used like run folders; nothing is written into them."""

import shutil
import sys
from pathlib import Path

import pytest

import metarl
from metarl import plugins
from metarl.cli import main

QUICK = ["--recipe", "none", "--iterations", "1", "--meta-batch-size", "2", "--algorithm.hidden", "4", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    few = ["--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "3"]
    assert main(["train", "maml", "point-navigation", *QUICK, *few, "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder), "--tasks", "2", "--steps", "1"]) == 0
    return folder


@pytest.fixture
def shipped(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package that ships the run 'short-walk', and return its folder there."""
    (tmp_path / "walks-1.0.dist-info").mkdir()
    (tmp_path / "walks-1.0.dist-info" / "METADATA").write_text("Name: walks\nVersion: 1.0\n")
    (tmp_path / "walks-1.0.dist-info" / "entry_points.txt").write_text("[metarl.tasks]\nwalk = walks.walk:Walk\n")
    folder = tmp_path / "walks" / "pretrained" / "short-walk"
    folder.mkdir(parents=True)
    (tmp_path / "walks" / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in ("config.json", "checkpoint.pt", "evaluation.json"):
        shutil.copy(trained / name, folder)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return folder


def test_it_is_listed_without_being_imported(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "pretrained"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "short-walk" in line)
    assert "maml/point-navigation, seed 0: return after 0 / 1 steps: -" in line
    assert line.endswith("(2 held-out tasks)  [walks]")
    assert "walks" not in sys.modules


def test_it_is_used_like_a_run_and_left_as_it_is(
    shipped: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in shipped.iterdir()}
    opened, original = metarl.open_run("pretrained:short-walk"), metarl.open_run(trained)
    assert all(opened.params[name].equal(value) for name, value in original.params.items())
    capsys.readouterr()
    assert main(["evaluate", "pretrained:short-walk", "--tasks", "2", "--steps", "1"]) == 0
    told = capsys.readouterr().out
    assert main(["evaluate", str(trained), "--tasks", "2", "--steps", "1", "--out", "again.json"]) == 0
    assert capsys.readouterr().out.startswith(told)
    assert main(["evaluate", "pretrained:short-walk", "--tasks", "2", "--steps", "1", "--out", "one.json"]) == 0
    assert main(["plot", "pretrained:short-walk", "--out", "pictures"]) == 0
    assert main(["render", "pretrained:short-walk", "--steps", "0", "--height", "32"]) == 0
    assert main(["export", "pretrained:short-walk", "model.zip"]) == 0
    assert all(Path(name).exists() for name in ("one.json", "pictures/adaptation.png", "short-walk.gif", "model.zip"))
    assert {path.name: path.read_bytes() for path in shipped.iterdir()} == before


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("evaluate pretrained:short-wlak", "no pretrained run is called 'short-wlak'; did you mean 'short-walk'"),
        ("render pretrained:zzz", "no pretrained run is called 'zzz'; `metarl list pretrained` shows all names"),
        ("resume pretrained:short-walk", "is the result of a run, without what is needed to go on with its training"),
        ("plot pretrained:short-walk", "has no folder of its own for the pictures: choose one with --out"),
        ("evaluate pretrained:short-walk --checkpoint best", "best.pt does not exist"),
    ],
)
@pytest.mark.usefixtures("shipped")
def test_what_cannot_be_done_is_one_line(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_damaged_folder_is_named(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("evaluation.json", "{"), ("evaluation.json", "{}"), ("config.json", "[]")):
        whole = (shipped / name).read_bytes()
        (shipped / name).write_text(text)
        with pytest.raises(plugins.PluginError, match=f"the pretrained run in {shipped} is damaged"):
            plugins.pretrained()
        (shipped / name).write_bytes(whole)
    (shipped / "config.json").write_text("{")
    assert main(["list", "pretrained"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_one_name_of_two_packages_is_refused(shipped: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped, tmp_path / "strolls" / "pretrained" / "short-walk")
    (tmp_path / "strolls" / "__init__.py").write_text("")
    info = tmp_path / "strolls-1.0.dist-info"
    shutil.copytree(tmp_path / "walks-1.0.dist-info", info)
    (info / "METADATA").write_text("Name: strolls\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metarl.tasks]\nstroll = strolls.walk:Walk\n")
    with pytest.raises(plugins.PluginError, match="is shipped by strolls and by walks"):
        plugins.find_pretrained("short-walk")
