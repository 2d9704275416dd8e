"""``metarl new``: the names that it takes, and what it writes."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metarl.cli import main
from metarl.commands import new
from metarl.control import Sampling
from metarl.seeding import stream

KINDS = [*new.KINDS, "algorithm", "outer"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["new", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert list(Path.cwd().iterdir()) == []
    return told.err.removeprefix("metarl: ").rstrip()


def test_a_family_is_written(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "tasks", "pole-balancing"]) == 0
    assert files(empty_folder / "pole-balancing") == [
        "README.md",
        "pole_balancing/__init__.py",
        "pole_balancing/family.py",
        "pole_balancing/py.typed",
        "pole_balancing/recipes/pole-balancing.toml",
        "pyproject.toml",
        "tests/test_pole_balancing.py",
    ]
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "pip install -e pole-balancing",
        "metarl check pole-balancing",
        "metarl train maml pole-balancing",
    ]
    project = (empty_folder / "pole-balancing" / "pyproject.toml").read_text()
    assert 'name = "pole-balancing"' in project
    assert 'pole-balancing = "pole_balancing.family:PoleBalancing"' in project


def test_an_algorithm_is_written_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "algorithm", "slow-maml", "--out", "deep/down here"]) == 0
    assert (Path("deep/down here/slow_maml/algorithm.py")).read_text().count("class SlowMaml:") == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "pip install -e 'deep/down here'",
        "metarl check slow-maml",
        "metarl train slow-maml point-navigation --iterations 100",
    ]


def test_an_outer_update_is_written(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "outer", "slow-descent"]) == 0
    assert files(empty_folder / "slow-descent") == [
        "README.md",
        "pyproject.toml",
        "slow_descent/__init__.py",
        "slow_descent/outer.py",
        "slow_descent/py.typed",
        "tests/test_slow_descent.py",
    ]
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "pip install -e slow-descent",
        "metarl check slow-descent",
        "metarl train maml sinusoid --outer slow-descent --iterations 1000",
    ]
    project = (empty_folder / "slow-descent" / "pyproject.toml").read_text()
    assert '[project.entry-points."metarl.outers"]\nslow-descent = "slow_descent.outer:SlowDescent"' in project


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["q", "my-family", "my-algorithm", "my-outer", "my-family-of-very-long-names-2-even-longer"]
)
def test_nothing_of_the_placeholders_is_left(kind: str, name: str) -> None:
    rendered = new.render(name, kind)
    text = "\n".join([*rendered, *rendered.values()])
    names = new.Names.of(name)
    for placeholder in (name for what in new.TITLES for name in new.Names.of(f"my-{what}")):
        if not any(placeholder in own for own in names):
            assert placeholder not in text
    written = "family" if kind in new.KINDS else kind
    assert f"class {names.cls}:" in rendered[f"{names.module}/{written}.py"]
    for path, source in rendered.items():
        if path.endswith(".py"):
            compile(source, path, "exec")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "the following arguments are required: tasks|algorithm|outer; 'metarl new --help' shows the options"),
        ("tasks", "the following arguments are required: NAME; 'metarl new tasks --help' shows the options"),
        ("families walk", "invalid choice: 'families'"),
        ("tasks walk --kind robots", "argument --kind: invalid choice: 'robots'"),
        ("algorithm walk --kind control", "unrecognized arguments: --kind control"),
        ("outer walk --kind control", "unrecognized arguments: --kind control"),
        (
            "tasks walk --env CartPole-v1",
            "--env ID and --parameter NAME=LOW,HIGH must be given together, with --kind gymnasium",
        ),
        (
            "tasks walk --kind gymnasium --parameter g=1,2",
            "--env ID and --parameter NAME=LOW,HIGH must be given together",
        ),
        ("tasks walk --kind gymnasium --env X-v0 --parameter g=1", "expected NAME=LOW,HIGH"),
        ("tasks walk --kind gymnasium --env X-v0 --parameter g=2,1", "expected two finite numbers, the lower first"),
        ("tasks walk --kind gymnasium --env X-v0 --parameter g=1,inf", "expected two finite numbers"),
        ("tasks walk --kind gymnasium --env X-v0 --parameter spec=1,2", "'spec' cannot be the name of a field"),
        ("tasks walk --kind gymnasium --env X-v0 --parameter a-b=1,2", "'a-b' cannot be the name of a field"),
        ("outer trpo", "the outer update 'trpo' of metarl"),
        ("outer update", "outer.py already uses the name of the class Update"),
        ("tasks Half_Cheetah", "is not lower-case words joined by hyphens; did you mean 'half-cheetah'?"),
        ("tasks HalfCheetah2", "did you mean 'half-cheetah2'?"),
        ("tasks 2d-walk", "did you mean 'my-2d-walk'?"),
        ("tasks ../walk", "did you mean 'walk'?"),
        ("tasks /", "the name '/' is not lower-case words joined by hyphens"),
        (
            "tasks class",
            "the module class or the class Class has a name of Python's; choose another",
        ),
        ("tasks value-error", "the class ValueError has a name of Python's"),
        ("tasks json", "'json' is a module of Python's standard library; choose another, such as 'my-json'"),
        ("tasks torch", "a module 'torch' is installed or in the current folder; choose another, such as 'my-torch'"),
        ("tasks pillow", "a package 'pillow' is installed; choose another, such as 'my-pillow'"),
        ("tasks sampling", "family.py already uses the name of the class Sampling"),
        ("tasks bandit", "the task family 'bandit' of metarl-toolkit"),
        ("tasks maml", "the algorithm 'maml' of metarl-toolkit"),
        ("algorithm maml", "the algorithm 'maml' of metarl-toolkit"),
    ],
)
def test_names_that_cannot_be_are_refused(arguments: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, *arguments.split())


@pytest.mark.parametrize("parameters", [["gravity=5,15"], ["gravity=5,15", "force_mag=8,12"]])
def test_a_family_of_another_environment_is_written(
    empty_folder: Path, parameters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--kind", "gymnasium", "--env", "CartPole-v1", *(f"--parameter={told}" for told in parameters)]
    assert main(["new", "tasks", "try-poles", *words]) == 0
    monkeypatch.syspath_prepend(empty_folder / "try-poles")
    module: Any = importlib.import_module("try_poles.family")
    family = module.TryPoles(sampling=Sampling(episodes=2, horizon=5))
    ranges = {told.partition("=")[0]: tuple(map(float, told.partition("=")[2].split(","))) for told in parameters}
    assert (family.spec.input_shape, family.spec.output_size, family.spec.kind) == ((4,), 2, "discrete")
    for name, values in family.sample(50, "train", stream(0, "tasks")).parameters.items():
        low, high = ranges[name]
        assert values.shape == (50, 1)
        assert low <= values.min() < values.max() <= high
    text = "".join(path.read_text() for path in empty_folder.rglob("*.py")).lower()
    assert "pendulum" not in text
    assert "mass" not in text
    for name in ("try_poles.family", "try_poles"):
        del sys.modules[name]


@pytest.mark.parametrize("there", ["folder", "file", "dangling link"])
def test_nothing_is_overwritten(there: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = empty_folder / "walk-far"
    if there == "folder":
        target.mkdir()
    elif there == "file":
        target.write_text("mine")
    else:
        target.symlink_to("nowhere")
    assert main(["new", "tasks", "walk-far"]) == 2
    assert "walk-far already exists and is not overwritten" in capsys.readouterr().err
    assert target.is_symlink() or target.is_dir() or target.read_text() == "mine"
    assert [path.name for path in empty_folder.iterdir()] == ["walk-far"]


def test_what_cannot_be_written_whole_is_not_written(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []

    def write_text(path: Path, *arguments: Any, **keywords: Any) -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError("no space left on device")
        return 0

    monkeypatch.setattr(Path, "write_text", write_text)
    assert main(["new", "tasks", "walk-far"]) == 1
    assert "no space left on device" in capsys.readouterr().err
    assert len(written) == 3
    assert list(empty_folder.iterdir()) == []


def test_it_needs_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); from metarl.cli import main; main(['new', 'tasks', 'walk-far']);"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['metarl']"


@pytest.mark.parametrize(("what", "name"), [("algorithm", "algorithms.md"), ("outer", "outer_updates.md")])
def test_the_pages_show_what_is_written(what: str, name: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / name).read_text(encoding="utf-8")
    whole = new.render(f"my-{what}", what)[f"my_{what}/{what}.py"]
    assert f"```python\n{whole}```\n" in page
