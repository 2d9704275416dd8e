"""``metarl train`` with an outer update that no package offers: an algorithm states it, or the user names it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl import runs
from metarl.cli import main
from metarl.training.settings import Settings
from metarl.training.start import train

MODULE = '''
"""An outer update, and algorithms that state one."""
from dataclasses import dataclass
from typing import Any

from metarl.algorithms import MAML
from metarl.networks import Network
from metarl.numerics import flatten, unflatten
from metarl.outer import meta_gradient
from metarl.types import Update


@dataclass(frozen=True)
class Descent:
    """Gradient descent."""

    rate: float = 0.01
    """How far to go."""

    def init(self, params: Any) -> Any:
        return {"count": 0}

    def update(self, learner: Any, params: Any, state: Any, experience: Any) -> Update:
        gradient, metrics = meta_gradient(learner, params, experience)
        moved = unflatten(flatten(params.values()) - self.rate / (1 + state["count"]) * gradient, params)
        return Update(moved, {"count": state["count"] + 1}, metrics)


@dataclass(frozen=True)
class Opinionated(MAML):
    """MAML with an outer update of its own."""

    network: Network = Network(hidden=(4,))
    outer_rate: float = 0.001
    """Step size of the outer update."""

    def default_outer(self) -> Any:
        return Descent(self.outer_rate)


class Muddled(MAML):
    def default_outer(self) -> Any:
        return "sgd"


class Hasty(MAML):
    def default_outer(self) -> Any:
        return Descent
'''
SMALL = ["sinusoid", "--meta-batch-size", "3", "--device", "cpu", "--quiet"]

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True, scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("user")
    (folder / "descending.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield __import__("descending")
    sys.modules.pop("descending", None)


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def params(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = runs.load_checkpoint(folder / "checkpoint.pt")["params"]
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(value.isfinite().all() and torch.equal(value, other[name]) for name, value in one.items())


def trained(folder: Path, *arguments: str) -> dict[str, torch.Tensor]:
    assert main(["train", "descending:Opinionated", *SMALL, "--out", str(folder), *arguments]) == 0
    return params(folder)


def test_an_algorithms_own_update_is_recorded_and_resumed(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", "--iterations", "4")
    trained(tmp_path / "part", "--iterations", "2")
    assert config(tmp_path / "part")["outer"] == {"reference": "descending:Descent", "options": {"rate": 0.001}}
    assert main(["resume", str(tmp_path / "part"), "--iterations", "4", "--quiet"]) == 0
    assert same(params(tmp_path / "part"), whole)
    assert main(["evaluate", str(tmp_path / "part"), "--tasks", "2", "--steps", "1"]) == 0


def test_an_algorithms_options_reach_its_own_update(tmp_path: Path, module: Any) -> None:
    """As they do in Python."""
    found = trained(tmp_path / "run", "--iterations", "2", "--algorithm.outer-rate", "0.002")
    assert config(tmp_path / "run")["outer"]["options"] == {"rate": 0.002}
    settings = Settings(iterations=2, meta_batch_size=3, device="cpu")
    expected = train(module.Opinionated(outer_rate=0.002), "sinusoid", settings=settings)
    assert same(found, expected.params)
    trained(tmp_path / "both", "--iterations", "1", "--algorithm.outer-rate", "0.002", "--outer.rate", "0.5")
    assert config(tmp_path / "both")["outer"]["options"] == {"rate": 0.5}


def test_help_shows_the_options_of_an_algorithms_own_update(capsys: Captured) -> None:
    for options, default in ([], "0.001"), (["--algorithm.outer-rate", "3"], "3.0"):
        assert main(["train", "descending:Opinionated", "sinusoid", *options, "--help"]) == 0
        told = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"--outer.rate FLOAT How far to go. (default: {default})" in told
        assert "or module:attribute. (default: descending:Descent)" in told
        assert "--meta-batch-size" in told


@pytest.mark.parametrize(
    ("named", "record"),
    [
        (["--outer", "adam", "--outer.learning-rate", "0.5"], ("adam", "learning_rate", 0.5)),
        (["--outer=descending:Descent", "--outer.rate", "0.1"], ("descending:Descent", "rate", 0.1)),
    ],
)
def test_another_update_may_be_named(tmp_path: Path, named: list[str], record: tuple[str, str, float]) -> None:
    trained(tmp_path / "run", "--iterations", "1", *named)
    reference, option, value = record
    found = config(tmp_path / "run")["outer"]
    assert found["reference"] == reference
    assert found["options"][option] == value


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["descending:Muddled"], "Muddled.default_outer() returned 'sgd': expected an outer update, such as Adam()"),
        (["descending:Hasty"], "Hasty.default_outer() returned <class 'descending.Descent'>: expected an outer update"),
        (["descending:Opinionated", "--algorithm.outer-rate", "much"], "could not convert string to float: 'much'"),
        (["descending:Opinionated", "--algorithm.rate", "2"], "--algorithm.rate, 2; did you mean --"),
    ],
)
def test_wrong_requests_are_refused(arguments: list[str], told: str, tmp_path: Path, capsys: Captured) -> None:
    name, *options = arguments
    assert main(["train", name, *SMALL, "--out", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert told in error
    assert not (tmp_path / "run").exists()


def test_ranks_that_torchrun_starts_again_go_on_with_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only with the run that they have begun: another one in the folder is as safe as ever."""
    run = tmp_path / "run"
    sizes = ["--iterations", "2", "--meta-batch-size", "2", "--device", "cpu", "--quiet"]
    command = ["train", "maml", "sinusoid", *sizes, "--out", str(run)]
    assert main(command) == 0
    whole = torch.load(run / "checkpoint.pt", weights_only=True)["params"]
    (run / "checkpoint.pt").unlink()  # as if it had been killed before
    assert main(command) == 2
    assert "already contains a run" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main([*command, "--seed", "1"]) == 2
    assert main(command) == 0
    found = torch.load(run / "checkpoint.pt", weights_only=True)["params"]
    assert all(values.equal(whole[name]) for name, values in found.items())
