"""A run of a ``module:name`` notices that what it was trained with has changed."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import metarl
from metarl import runs
from metarl.cli import main
from metarl.origins import defined, difference

FAMILY = """
import gymnasium as gym
from gymnasium import spaces
from metarl import GymnasiumFamily, Sampling

def make(g=10.0):
    return gym.make("Pendulum-v1", g=g)  # a comment

pendulum = GymnasiumFamily(
    make, spaces.Dict(g=spaces.Box({low}, {high})), sampling=Sampling({episodes}, 4), splits={splits}
)
"""
ALGORITHM = """
from dataclasses import dataclass
from metarl.algorithms import gradient_learner
from metarl.networks import Network

@dataclass(frozen=True)
class Plain:
    step_size: float = 0.1

    def build(self, spec):
        return gradient_learner(spec, self.step, Network(hidden=(4,)), 1, second_order=False)

    def step(self, params, gradients):
        return {name: value - {factor} * self.step_size * gradients[name] for name, value in params.items()}
"""


class Project:
    """A user's folder with modules that change."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"

    def write(self, name: str, text: str, **values: Any) -> None:
        for word, value in values.items():
            text = text.replace(f"{{{word}}}", str(value))
        (self.folder / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)

    def family(self, **values: Any) -> None:
        defaults = {"low": 9.0, "high": 11.0, "episodes": 2, "splits": "{}"}
        self.write("my_family", FAMILY, **defaults | values)

    def train(self, algorithm: str = "maml", tasks: str = "my_family:pendulum") -> None:
        words = ["train", algorithm, tasks, "--out", str(self.run), "--quiet", "--iterations", "2"]
        assert main([*words, "--meta-batch-size", "2", "--device", "cpu"]) == 0

    @property
    def config(self) -> Any:
        return json.loads((self.run / "config.json").read_text())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # an edit within a second must be seen
    made = Project(tmp_path)
    made.family()
    yield made
    for name in ("my_family", "my_algorithm"):
        sys.modules.pop(name, None)


def refused(project: Project, capsys: pytest.CaptureFixture[str]) -> str:
    """What every way to use the run says; it must be the same line."""
    ways = [["evaluate"], ["resume", "--iterations", "3"], ["render"], ["export", "--to", "sb3", "model.zip"]]
    told = set()
    capsys.readouterr()
    for command, *words in ways:
        assert main([command, str(project.run), *words]) == 2
        told.add(capsys.readouterr().err.removeprefix("metarl: ").strip())
    with pytest.raises(runs.RunError) as caught:
        metarl.open_run(project.run)
    told.add(str(caught.value))
    assert len(told) == 1
    return told.pop()


def test_other_ranges_do_not_go_on_without_a_word(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.train()
    project.family(low=0.0, high=1.0)
    told = refused(project, capsys)
    assert "parameters.g was Box(9.0, 11.0, (1,), float32) and is Box(0.0, 1.0, (1,), float32)" in told
    assert "my_family:pendulum" in told and "--allow-changes" in told
    opened = metarl.open_run(project.run, allow_changes=True)
    assert 0 <= float(opened.tasks().parameters["g"]) <= 1
    assert main(["evaluate", str(project.run), "--allow-changes", "--tasks", "2", "--steps", "1"]) == 0
    project.family()
    assert 9 <= float(metarl.open_run(project.run).tasks().parameters["g"]) <= 11


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"episodes": 3}, "sampling.episodes was 2 and is 3"),
        ({"splits": "{'test': spaces.Dict(g=spaces.Box(20.0, 30.0))}"}, "splits.test.g was absent and is Box(20.0,"),
    ],
)  # fmt: skip
def test_it_says_what_differs(project: Project, capsys: Any, values: dict[str, Any], told: str) -> None:
    project.train()
    project.family(**values)
    assert told in refused(project, capsys)


def test_code_counts_and_comments_do_not(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.train()
    project.write(
        "my_family", FAMILY.replace("# a comment", "# another\n\n"), low="9.0", high="11.0", episodes=2, splits={}
    )
    assert metarl.open_run(project.run).iteration == 2
    project.write("my_family", FAMILY.replace("g=g)", "g=2 * g)"), low="9.0", high="11.0", episodes=2, splits={})
    assert "the code of my_family has changed since" in refused(project, capsys)


def test_evaluations_on_tasks_that_have_changed_are_not_compared(project: Project, capsys: Any) -> None:
    project.train()
    evaluate = ["evaluate", str(project.run), "--tasks", "2", "--steps", "0"]
    assert main([*evaluate, "--allow-changes"]) == 0
    project.family(low=0.0, high=1.0)
    compared = ["--oracle", str(project.run), "--pretrained", str(project.run), "--out", str(project.folder / "e.json")]
    assert main([*evaluate, "--allow-changes", *compared]) == 2
    assert "was evaluated on other tasks: parameters.g was Box(9.0" in capsys.readouterr().err


def test_algorithms_are_noticed_too(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.write("my_algorithm", ALGORITHM, factor=1)
    project.train("my_algorithm:Plain")
    assert metarl.open_run(project.run).iteration == 2
    project.write("my_algorithm", ALGORITHM, factor=2)
    assert "another my_algorithm:Plain: the code of my_algorithm has changed since" in refused(project, capsys)


def test_a_resumed_run_records_what_it_goes_on_with(project: Project) -> None:
    project.train()
    before = project.config["definitions"]
    project.family(low=0.0, high=1.0)
    assert main(["resume", str(project.run), "--iterations", "3", "--quiet", "--allow-changes"]) == 0
    assert metarl.open_run(project.run).iteration == 3
    assert project.config["definitions"]["tasks"]["options"]["parameters"] == {"g": "Box(0.0, 1.0, (1,), float32)"}
    assert project.config["earlier_definitions"] == [{"until_iteration": 2, "definitions": before}]
    metarl.resume(project.run, iterations=4, allow_changes=True)
    assert len(project.config["earlier_definitions"]) == 1  # nothing has changed since


def test_the_users_own_revision_is_recorded(project: Project) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "my_family.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], cwd=project.folder, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=project.folder, capture_output=True, text=True, check=True)
    project.train()
    assert project.config["definitions"]["tasks"]["git"] == {"my_family": head.stdout.strip()}
    project.family(low=0.0, high=1.0)
    changed = defined(metarl.load("tasks", "my_family:pendulum"), "my_family:pendulum")
    assert changed is not None and changed["git"] == {"my_family": head.stdout.strip() + "+"}


def test_environments_of_other_modules_count(project: Project) -> None:
    """Those of a function, a partial and a registered name."""
    project.write(
        "my_algorithm", "import gymnasium as gym\ndef make(g=1.0):\n    return gym.make('Pendulum-v1', g=g)\n"
    )
    text = FAMILY.replace("    make,", "    my_algorithm.make,").replace(
        "import gym", "import my_algorithm\nimport gym", 1
    )
    project.write("my_family", text, low="9.0", high="11.0", episodes=2, splits={})
    found = defined(metarl.load("tasks", "my_family:pendulum"), "my_family:pendulum")
    assert found is not None and set(found["code"]) == {"my_family", "my_algorithm"}


def test_installed_names_and_old_runs_have_no_definition(project: Project) -> None:
    project.train(tasks="point-navigation")
    assert "definitions" not in project.config
    assert defined(metarl.MAML(), "metarl.algorithms.maml:MAML") is None
    network = metarl.MAML(network=metarl.Network(hidden=(3,)))
    assert defined(network, "maml") is None


def test_networks_of_a_module_count_for_installed_algorithms_too(project: Project) -> None:
    @dataclasses.dataclass(frozen=True)
    class Holder:
        architecture: str

    found = defined(Holder("my_family:make"), "maml")
    assert found is not None and list(found["code"]) == ["my_family"] and "options" not in found


def test_the_first_difference_is_told() -> None:
    one = {"options": {"a": {"b": 1}, "c": 2}, "code": {"m": "x"}, "git": {"m": "abc"}}
    assert difference(one, one) is None
    assert difference(one, {"options": {"a": {"b": 1}, "c": 3}, "code": {}}) == "c was 2 and is 3"
    assert difference(one, {"options": one["options"], "code": {"m": "y"}}) == (
        "the code of m has changed since (it was at git revision abc)"
    )


def test_a_baseline_records_its_tasks_too(project: Project) -> None:
    words = ["baseline", "ppo", "my_family:pendulum", "--timesteps", "8", "--num-envs", "2", "--tasks", "2"]
    assert main([*words, "--n-steps", "4", "--batch-size", "4", "--out", str(project.run), "--quiet"]) == 0
    assert project.config["definitions"]["tasks"]["options"]["parameters"] == {"g": "Box(9.0, 11.0, (1,), float32)"}
