"""The search space of an experiment: read, checked against its options, drawn, and put into words."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import metarl
from metarl import plugins, tuning
from metarl.commands.train import of_train, requested
from metarl.networks import Network
from metarl.plugins import PluginError
from metarl.tuning.ranges import corners
from metarl.tuning.space import applied, words

SINUSOID = metarl.recipe("maml", "sinusoid")


def write(folder: Path, text: str) -> str:
    (folder / "space.toml").write_text(text)
    return str(folder / "space.toml")


@pytest.mark.parametrize("name", [plugin.name for plugin in plugins.installed("algorithms")])
def test_every_algorithm_has_a_default_space_of_options_that_it_has(name: str) -> None:
    tables = plugins.find_space("default").tables["algorithm"]
    target = plugins.load("algorithms", name)()
    for values in corners(tuning.ranges.parsed(tables[name], name)):
        changed = tuning.space.with_options(target, values, name)
        assert changed != target or len(values) == 1


@pytest.mark.parametrize("name", [plugin.name for plugin in plugins.installed("outers")])
def test_every_outer_update_has_a_default_space(name: str) -> None:
    tables = plugins.find_space("default").tables["outer"]
    for values in corners(tuning.ranges.parsed(tables[name], name)):
        tuning.space.with_options(plugins.load("outers", name)(), values, name)


def test_the_default_space_is_the_algorithms_the_outer_updates_and_the_settings() -> None:
    space = tuning.space_for(metarl.recipe("maml", "point-navigation"))
    assert {part: list(table) for part, table in space.table.items()} == {
        "algorithm": ["step_size", "learn_step_sizes"], "outer": ["max_kl"], "settings": ["meta_batch_size"],
    }  # fmt: skip
    other = tuning.space_for(metarl.recipe("maml", "point-navigation", outer="adam"))
    assert list(other.table["outer"]) == ["learning_rate"]


def test_networks_are_searched_by_the_kind_of_input() -> None:
    space = tuning.space_for(SINUSOID, "architecture")
    assert list(space.table) == ["algorithm"]
    assert list(space.table["algorithm"]["network"]) == ["architecture", "hidden", "activation"]
    images = tuning.space.plugins.find_space("architecture").tables["network"]["images"]
    for values in corners(tuning.ranges.parsed(images, "")):
        assert Network().with_architecture("convnet") != tuning.space.with_options(Network(), values, "")


def test_options_of_a_recipes_network_that_another_does_not_read_are_left() -> None:
    """The recipe of MAML on Omniglot has a conv4 of 32 filters, say, which convnet does not read."""
    conv = dataclasses.replace(SINUSOID, algorithm=metarl.MAML(network=Network("conv4", filters=8)))
    found = applied(conv, {"algorithm": {"network": {"architecture": "mlp", "hidden": [4]}}}, "here")
    assert found.algorithm == metarl.MAML(network=Network("mlp", hidden=(4,)))


def test_a_users_file_serves_and_what_is_fixed_is_left_out(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        settings = { meta_batch_size = { choices = [2, 4] } }
        [algorithm.maml]
        step_size = { low = 0.1, high = 1.0 }
        network = { hidden = { choices = [[4], [4, 4]] } }
        [algorithm.reptile]
        step_size = { low = 5.0, high = 6.0 }
        """,
    )
    space = tuning.space_for(SINUSOID, file, ["algorithm.network.hidden", "algorithm.hidden"])
    assert {part: list(table) for part, table in space.table.items()} == {
        "algorithm": ["step_size"], "settings": ["meta_batch_size"],
    }  # fmt: skip


def test_the_file_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/tuning.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    space = tuning.space_for(SINUSOID, write(tmp_path, text))
    assert [list(table) for table in space.table.values()] == [
        ["step_size", "first_order", "network"], ["learning_rate"], ["meta_batch_size"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[algorithm.maml]\nstep = { low = 1, high = 2 }", "algorithm has no option 'step'; did you mean 'steps'?"),
        ("[algorithm.maml]\nsteps = { low = 1.0, high = 2.0 }", "algorithm.steps is 1.0: expected int"),
        ("[algorithm.maml]\nfirst_order = { choices = [2, true] }", "algorithm.first_order is 2: expected bool"),
        ("[algorithm.maml]\nsteps = { low = 0, high = 2 }", "steps=0: MAML takes at least one inner step"),
        ("[algorithm.maml]\nstep_size = { low = 2.0, high = 1.0 }", "low=2.0 is above high=1.0: the range is empty"),
        ("[algorithm.maml]\nnetwork = { hiden = { choices = [[1], [2]] } }", "did you mean 'hidden'?"),
        ("[algorithm.maml]\nnetwork = { activation = { choices = ['relu', 'x'] } }", "'x'"),
        ("[algorithm.maml]\nstep_size = 0.5", "leaves nothing to search"),
        ("[algorithm.reptile]\nsteps = { low = 1, high = 2 }", "has nothing to search for algorithm.maml, tasks.sin"),
        ("[algorithm]\nstep_size = { low = 0.1, high = 1.0 }", "algorithm.step_size names no plugin: expected [algor"),
        ("[settings]\nseed = { low = 0, high = 9 }", "settings.seed cannot be searched"),
        ("[optimiser.adam]\nlearning_rate = 1", "has optimiser: expected some of algorithm, tasks, outer, network and"),
        ("algorithm = 3", "algorithm is 3: expected a table"),
        ("[algorithm.maml", "is not a valid search space"),
    ],
)
def test_a_wrong_file_is_told_in_one_line_that_names_it(tmp_path: Path, text: str, told: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises((ValueError, PluginError)) as caught:
        tuning.space_for(SINUSOID, file)
    assert told in str(caught.value)
    assert str(caught.value).startswith(file)


def test_unknown_names_and_files_are_told() -> None:
    with pytest.raises(PluginError, match="no search space is called 'defualt': expected architecture, default, or a"):
        tuning.space_for(SINUSOID, "defualt")
    with pytest.raises(PluginError, match=r"gone\.toml is not a valid search space: .*No such file"):
        tuning.space_for(SINUSOID, "gone.toml")
    with pytest.raises(ValueError, match="searches networks, and rl2 has no options of a network"):
        tuning.space_for(metarl.recipe("rl2", "bandit"), "architecture")
    with pytest.raises(ValueError, match="space has 'algorithms': expected some of algorithm, tasks, outer, settings"):
        tuning.space_for(SINUSOID, {"algorithms": {}})


VALUES: dict[str, Any] = {
    "algorithm": {"step_size": 0.25, "learn_step_sizes": True, "network": {"hidden": [8, 4], "activation": "silu"}},
    "tasks": {"train_shots": 7},
    "outer": {"learning_rate": 0.004},
    "settings": {"meta_batch_size": 3},
}


def test_words_give_the_options_on_the_command_line() -> None:
    best = applied(SINUSOID, VALUES, "here")
    told = words(best, VALUES)
    assert told[:5] == ["--algorithm.step-size", "0.25", "--algorithm.learn-step-sizes", "--algorithm.hidden", "8"]
    assert requested("maml", "sinusoid", told, "train", of_train)[0] == best
    off = {"algorithm": {"learn_step_sizes": False}}
    assert words(best, off) == ["--algorithm.no-learn-step-sizes"]
    assert requested("maml", "sinusoid", words(best, off), "train", of_train)[0] == SINUSOID


def test_words_of_nested_options_and_of_control() -> None:
    values = {"algorithm": {"advantages": {"discount": 0.9}}, "tasks": {"sampling": {"episodes": 3}}}
    first = metarl.recipe("maml", "point-navigation")
    best = applied(first, values, "here")
    assert requested("maml", "point-navigation", words(best, values), "train", of_train)[0] == best
