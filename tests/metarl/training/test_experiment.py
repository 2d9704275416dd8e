"""What recipes make: the same in Python and on the command line, and every installed one can be made."""

import hashlib
import json
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from support.pages import own_modules

import metarl
from metarl import Settings
from metarl.advantages import Advantages
from metarl.algorithms.maml import MAML
from metarl.algorithms.reptile import Reptile
from metarl.cli import main
from metarl.control import Sampling
from metarl.networks.options import Network
from metarl.outer.choice import default_outer
from metarl.outer.gradient import SGD, Adam
from metarl.outer.trpo import TRPO
from metarl.plugins import PluginError, recipes
from metarl.training.experiment import Experiment, recipe, with_options
from metarl_envs.navigation import PointNavigation

NAMES = [found.name.split("/") for found in recipes()]


@pytest.mark.parametrize(("algorithm", "tasks", "variant"), NAMES, ids="/".join)
def test_installed_recipes_can_be_made(algorithm: str, tasks: str, variant: str) -> None:
    """All but the data that some families need."""
    if tasks == "omniglot":
        pytest.importorskip("metarl_plugins.omniglot")
    made = recipe(algorithm, tasks, variant)
    assert made.recipe == f"{algorithm}/{tasks}/{variant}"
    assert type(made.algorithm) is metarl.load("algorithms", algorithm)


def test_a_recipe_is_what_its_file_says() -> None:
    made = recipe("maml", "half-cheetah-direction")
    assert made.algorithm == MAML(
        learn_step_sizes=True,
        network=Network(hidden=(128, 128), activation="tanh"),
        advantages=Advantages(gae_lambda=0.95),
        normalise_observations=True,
    )
    assert made.outer == TRPO(max_kl=0.03)
    assert made.settings == Settings(iterations=300, meta_batch_size=20).filled(made.tasks.spec)
    family: Any = made.tasks
    assert (family.sampling.horizon, family.robot.action_scale) == (100, 5.0)
    assert made.names == ("maml", "half-cheetah-direction", "trpo")


def test_without_a_recipe_there_are_defaults() -> None:
    for made in (recipe("maml", "point-navigation", "none"), recipe("snail", "point-navigation")):
        assert made.recipe is None
        assert made.tasks == PointNavigation()
        assert made.settings == Settings().filled(made.tasks.spec)
    assert recipe("maml", "point-navigation", outer="adam").outer == Adam()
    assert recipe("maml", "point-navigation", outer="adam").algorithm == recipe("maml", "point-navigation").algorithm


SIZES = "--iterations 1 --meta-batch-size 2 --tasks.sampling.episodes 2 --tasks.sampling.horizon 3"
FEW = [*SIZES.split(), "--device", "cpu", "--quiet"]


def test_a_command_trains_by_the_recipe_and_records_it(tmp_path: Path) -> None:
    assert main(["train", "maml", "point-navigation", *FEW, "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"] == "maml/point-navigation/default"
    file = next(found.file for found in recipes() if found.name == "maml/point-navigation/default")
    assert config["recipe_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert config["algorithm"]["options"]["network"]["hidden"] == [64, 64]
    assert config["algorithm"]["options"]["step_size"] == 0.5
    assert config["settings"]["iterations"] == 1
    assert metarl.resume(tmp_path / "run", iterations=2).rows[-1]["iteration"] == 2


def test_options_change_the_recipe_and_none_is_none(tmp_path: Path) -> None:
    changed = ["--algorithm.hidden", "5", "--algorithm.no-learn-step-sizes"]
    assert main(["train", "maml", "point-navigation", *FEW, *changed, "--out", str(tmp_path / "run")]) == 0
    options = json.loads((tmp_path / "run" / "config.json").read_text())["algorithm"]["options"]
    assert (options["network"]["hidden"], options["learn_step_sizes"], options["step_size"]) == ([5], False, 0.5)
    assert main(["train", "maml", "point-navigation", "--recipe", "none", *FEW, "--out", str(tmp_path / "none")]) == 0
    config = json.loads((tmp_path / "none" / "config.json").read_text())
    assert "recipe" not in config
    assert config["algorithm"]["options"]["network"]["hidden"] == [100, 100]


def test_python_trains_the_same(tmp_path: Path) -> None:
    small = recipe("maml", "point-navigation")
    family: Any = with_options(small.tasks, {"sampling": {"episodes": 2, "horizon": 3}}, "here")
    few = with_options(small.settings, {"iterations": 1, "meta_batch_size": 2, "device": "cpu"}, "here")
    result = replace(small, tasks=family, settings=few).train(tmp_path / "python")
    assert main(["train", "maml", "point-navigation", *FEW, "--out", str(tmp_path / "command")]) == 0
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("python", "command"))
    assert ours == theirs
    assert metarl.open_run(tmp_path / "command").params["head.bias"].equal(result.params["head.bias"])


SMALL = Sampling(episodes=2, horizon=3)
FEW_ITERATIONS = Settings(iterations=2, meta_batch_size=2, device="cpu")


def test_an_experiment_of_parts_is_what_its_run_says(tmp_path: Path) -> None:
    asked = Experiment(MAML(network=Network(hidden=(4,))), PointNavigation(sampling=SMALL), settings=FEW_ITERATIONS)
    assert (asked.outer, asked.recipe, asked.names) == (TRPO(), None, ("maml", "point-navigation", "trpo"))
    trained = asked.train(tmp_path / "run")
    opened = metarl.open_run(tmp_path / "run", device="cpu")
    assert trained.experiment == opened.experiment == asked
    assert opened.experiment.settings == FEW_ITERATIONS.filled(asked.tasks.spec)
    again = opened.experiment.train()  # the same numbers, from the folder alone
    assert all(again.params[name].equal(value) for name, value in trained.params.items())
    other = replace(opened.experiment, settings=replace(FEW_ITERATIONS, seed=1))
    assert other != asked
    assert not other.train().params["head.bias"].equal(trained.params["head.bias"])
    assert pickle.loads(pickle.dumps(trained)).experiment == asked


def test_names_and_objects_make_the_same_experiment() -> None:
    assert Experiment("maml", "point-navigation") == Experiment(MAML(), PointNavigation())
    assert Experiment("maml", "sinusoid", "sgd").outer == SGD()
    assert Experiment("reptile", "point-navigation").outer == default_outer(Reptile(), PointNavigation().spec)
    with pytest.raises(PluginError, match="no algorithm is called 'mamml'; did you mean 'maml'"):
        Experiment("mamml", "point-navigation")


@pytest.mark.parametrize("made", [recipe("maml", "sinusoid"), Experiment("maml", "point-navigation")])
def test_experiments_are_pickled(made: Experiment) -> None:
    copy = pickle.loads(pickle.dumps(made))
    assert copy == made
    assert (copy.names, copy.references) == (made.names, made.references)


def test_a_replaced_part_gets_its_own_name(tmp_path: Path) -> None:
    made = replace(recipe("maml", "point-navigation"), outer=Adam(), algorithm=Reptile(), settings=FEW_ITERATIONS)
    assert made.names == ("reptile", "point-navigation", "adam")
    assert made.record()["outer"]["reference"] == "adam"
    assert replace(made, tasks=PointNavigation(sampling=SMALL)).references[1] == "point-navigation"


@dataclass(frozen=True)
class Inner:
    widths: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Options:
    rate: float = 0.1
    steps: int | None = None
    kind: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Inner = field(default_factory=Inner)
    flag: bool = False

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate={self.rate} must not be negative")


def test_options_come_from_tomls_types() -> None:
    changed = with_options(Options(), {"rate": 2, "steps": 3, "pair": [0, 2.5], "inner": {"widths": [4, 5]}}, "here")
    assert changed == Options(2.0, 3, "a", (0, 2.5), Inner((4, 5)))
    assert type(changed.rate) is float


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rat": 1}, "here has no option 'rat'; did you mean 'rate'?"),
        ({"inner": {"width": [1]}}, "here.inner has no option 'width'; did you mean 'widths'?"),
        ({"rate": "fast"}, "here.rate is 'fast': expected float"),
        ({"rate": True}, "here.rate is True: expected float"),
        ({"steps": 1.5}, "here.steps is 1.5"),
        ({"kind": "c"}, "here.kind is 'c'"),
        ({"pair": [1.0]}, "here.pair is (1.0,)"),
        ({"inner": {"widths": [1.5]}}, "here.inner.widths is (1.5,)"),
        ({"inner": 3}, "here.inner is 3: expected Inner"),
        ({"flag": 1}, "here.flag is 1: expected bool"),
        ({"rate": -1.0}, "here: rate=-1.0 must not be negative"),
    ],
)
def test_wrong_options_are_named_in_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError) as caught:
        with_options(Options(), options, "here")
    assert message in str(caught.value)


def test_another_architecture_takes_what_it_reads_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("import torch\ndef line(spec):\n    return torch.nn.Linear(1, 1)\n")
    command = ["train", "maml", "sinusoid", "--iterations", "1", "--quiet"]
    with own_modules(tmp_path):
        assert main([*command, "--algorithm.architecture", "nets:line", "--out", str(tmp_path / "own")]) == 0
    assert main([*command, "--algorithm.architecture", "mlp", "--out", str(tmp_path / "same")]) == 0
    own, same = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("own", "same"))
    assert own["algorithm"]["options"]["network"]["architecture"] == "nets:line"
    assert own["algorithm"]["options"]["network"]["hidden"] == [100, 100]
    assert same["algorithm"]["options"]["network"]["hidden"] == [40, 40]
    assert own["algorithm"]["options"]["step_size"] == same["algorithm"]["options"]["step_size"] == 0.01


def test_an_option_that_the_recipe_does_not_suit_says_whose_the_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "maml", "omniglot", "--algorithm.hidden", "32", "--out", "nowhere"]) == 2
    message = capsys.readouterr().err
    assert "conv4" in message
    assert "those of the recipe maml/omniglot/default, unless --recipe none" in message
