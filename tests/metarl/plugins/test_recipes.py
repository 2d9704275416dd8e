"""Recipes are read from the packages that offer families and algorithms; a file that is none is refused in a line."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metarl.cli import main
from metarl.outer.gradient import Adam
from metarl.plugins import PluginError, find_recipe, recipes
from metarl.training.experiment import recipe

Write = Callable[[str], Path]
GOOD = """
[maml.default]
reached = "12.5 after 1 step"
algorithm = { step_size = 0.2 }
[maml.paper]
reached = "not yet trained to its end"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Install a package that offers the family 'maze', and a file of recipes for it."""

    def written(text: str) -> Path:
        folder = tmp_path / "mazes"
        (folder / "recipes").mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / "mazes-1.0.dist-info").mkdir(exist_ok=True)
        (tmp_path / "mazes-1.0.dist-info" / "METADATA").write_text("Name: mazes\nVersion: 1.0\n")
        (tmp_path / "mazes-1.0.dist-info" / "entry_points.txt").write_text("[metarl.tasks]\nmaze = mazes.maze:Maze\n")
        file = folder / "recipes" / "maze.toml"
        file.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return file

    return written


def test_a_packages_recipes_are_found_without_importing_it(write: Write) -> None:
    file = write(GOOD)
    found = find_recipe("maml", "maze")
    assert found is not None
    assert (found.name, found.file, found.reached) == ("maml/maze/default", file, "12.5 after 1 step")
    assert found.options == {"algorithm": {"step_size": 0.2}, "tasks": {}, "outer": {}, "settings": {}}
    assert {recipe.name for recipe in recipes()} >= {"maml/maze/default", "maml/maze/paper"}
    assert "mazes" not in sys.modules


def test_which_recipe_is_taken(write: Write) -> None:
    write(GOOD)
    paper = find_recipe("maml", "maze", "paper")
    assert paper is not None
    assert paper.name == "maml/maze/paper"
    assert find_recipe("maml", "maze", "none") is None
    assert find_recipe("reptile", "maze") is None
    with pytest.raises(PluginError, match="maml on maze has no recipe 'papr': expected default, paper, none"):
        find_recipe("maml", "maze", "papr")
    with pytest.raises(PluginError, match="reptile on maze has no recipe 'paper': expected none"):
        find_recipe("reptile", "maze", "paper")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[maml.default", "is not a valid file of recipes"),
        ("maml = 3", "is not a table"),
        ("[maml]\nreached = 'x'", "is not a table"),
        ("[maml.default]\nalgorithm = { steps = 1 }", "does not say what it reached"),
        ("[maml.default]\nreached = 1", "does not say what it reached"),
        ("[maml.default]\nreached = 'x'\nalgoritm = { steps = 1 }", "has algoritm: expected reached and some of"),
        ("[maml.default]\nreached = 'x'\nouter = 'trpo'", "has no table of options under outer"),
        ("[maml.default]\nreached = 'x'\nouter = { name = 3 }", "has outer.name = 3: expected the name of"),
        ("[maml.default]\nreached = 'x'\nouter = { name = ['adam'] }", "has outer.name = ['adam']: expected the name"),
    ],
)
def test_a_file_that_is_none_is_named_with_its_fault(
    text: str, message: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(text)
    with pytest.raises(PluginError) as caught:
        find_recipe("maml", "maze")
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert main(["list", "recipes"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert find_recipe("maml", "point-navigation") is not None  # that family's file has no fault


def test_an_algorithm_that_is_not_installed_is_listed_as_such(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(GOOD + "[mamml.default]\nreached = '3.5'\n['mine:Own'.default]\nreached = '4.5'\n")
    assert main(["list", "recipes"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["mamml/maze/default", "no algorithm 'mamml' is installed; 3.5"] in lines
    assert ["maml/maze/default", "12.5 after 1 step"] in lines
    assert ["mine:Own/maze/default", "4.5"] in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("outer = { name = 'trpoo' }", "outer: no outer update is called 'trpoo'; did you mean 'trpo'"),
        ("outer = { name = 'trpo', max_k = 1 }", "outer has no option 'max_k'; did you mean 'max_kl'"),
        ("outer = { name = 'os:getcwd' }", "outer: the outer update os:getcwd has no"),
        ("settings.schedules = { 'tasks.gaol' = '1..2' }", "settings: schedules['tasks.gaol']: PointNavigation has no"),
        ("settings.schedules = { 'outer.clip' = '1..2' }", "settings: schedules['outer.clip']: TRPO has no field"),
        ("settings.schedules = { 'task.goal_range' = '1..2' }", "settings: schedules names 'task.goal_range'"),
    ],
)
def test_options_that_do_not_exist_are_named_with_the_recipe_and_its_file(
    options: str, message: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write("").with_name("point-navigation.toml")
    file.write_text(f"[maml.mine]\nreached = 'x'\n{options}\n")
    assert main(["train", "maml", "point-navigation", "--recipe", "mine", "--out", "nowhere"]) == 2
    told = capsys.readouterr().err
    assert f"the recipe maml/point-navigation/mine in {file}: {message}" in told
    assert told.count("\n") == 1


def test_a_recipes_own_outer_update_is_not_looked_for_where_another_is_asked_for(write: Write) -> None:
    file = write("").with_name("point-navigation.toml")
    file.write_text("[maml.mine]\nreached = 'x'\nouter = { name = 'trpoo' }\n")
    assert recipe("maml", "point-navigation", "mine", outer="adam").outer == Adam()
