"""The commands: what they print and write, their exit codes, and one clear line for every wrong request."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl import cli, evaluation, plugins, training
from metarl.cli import main
from metarl.pictures import plotting
from metarl.runs.logger import read_progress

SMALL = ["--device", "cpu", "--meta-batch-size", "3", "--algorithm.hidden", "8",
         "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "5"]  # fmt: skip
TINY = ["--recipe", "none", "--iterations", "2", "--outer", "adam", *SMALL]
USER_MODULE = '''
from dataclasses import dataclass, field
from gymnasium import spaces
from torch import nn
from metarl import ControlTasks, GymnasiumFamily, Sampling
from metarl_envs.bandit import Bandit

PENDULUMS = GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)), "attribute", Sampling(2, 9))
NOTHING = 3


@dataclass(frozen=True, kw_only=True)
class Needy(Bandit):
    """Bandits of a city that must be named."""

    city: str


class Square(nn.Module):
    """A layer that metarl knows nothing of."""

    def __init__(self, outputs):
        super().__init__()
        self.scale = nn.Parameter(0.1 * nn.Linear(1, outputs).weight.detach().flatten())

    def forward(self, x):
        return x.square().sum(-1, keepdim=True) * self.scale


def network(spec):
    return nn.Sequential(nn.Linear(*spec.input_shape, 4), Square(spec.model_outputs))


@dataclass(frozen=True)
class Pictured(Bandit):
    """Bandits with a picture of their own."""

    def picture(self, tasks, queries, path):
        path.write_text(f"{len(queries)} {len(tasks.descriptors)}")
        return path
'''

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    """More would only wait for each other on matrices of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def user_module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``my_tasks``, as a user would write it."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_tasks.py").write_text(USER_MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    sys.modules.pop("my_tasks", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "maml", "bandit", "--out", str(folder), "--quiet", *TINY]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run, to be changed at will."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def refused(capsys: Captured, *arguments: str | Path) -> str:
    """Run a wrong request and return the one line that it was answered with."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("metarl: ")
    assert told.err.endswith("\n")
    assert len(told.err.splitlines()) == 1
    assert told.err.isprintable() or told.err[:-1].isprintable()
    return told.err.removeprefix("metarl: ").rstrip()


def printed(capsys: Captured, *arguments: str | Path) -> str:
    """Run a command that succeeds and return what it printed."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("trian maml bandit", "unknown command 'trian'; did you mean 'train'?; 'metarl --help' lists them"),
        ("xyz", "unknown command 'xyz'; 'metarl --help' lists them"),
        (
            "list families",
            "'algorithms', 'outers', 'recipes', 'pretrained' or nothing, not 'families'",
        ),
        ("list tasks algorithms", "takes 'tasks', 'algorithms', 'outers', 'recipes', 'pretrained' or nothing"),
        ("train", "train needs an algorithm and tasks, e.g. 'metarl train maml point-navigation'"),
        ("train maml", "train needs an algorithm and tasks"),
        ("train maml --out X", "train needs an algorithm and tasks"),
        ("train mamml bandit --out X", "no algorithm is called 'mamml'; did you mean 'maml'"),
        ("train maml bandits --out X", "no task family is called 'bandits'; did you mean 'bandit'?"),
        ("train bandit maml --out X", "no algorithm is called 'bandit'; it is one of the tasks"),
        ("train maml gone:Family --out X", "there is no module 'gone'"),
        ("train maml my_tasks:PENDULUM --out X", "no attribute 'PENDULUM'; did you mean 'PENDULUMS'"),
        ("train maml my_tasks:NOTHING --out X", "has no 'sample'"),
        (
            "train maml my_tasks:Needy --out X",
            "Missing from metarl train maml my_tasks:Needy: --tasks.city STR (required)",
        ),
        (
            "train maml half-cheetah-velocity --compile --device cpu --out X",
            "the steps of this environment are no graph",
        ),
        ("train maml bandit --outer trpoo --out X", "no outer update is called 'trpoo'; did you mean 'trpo'?"),
        ("train maml bandit --outer=adagrad --out X", "no outer update is called 'adagrad'"),
        ("train maml bandit --iteration 3 --out X", "--iteration, 3; did you mean --iterations?"),
        ("train maml bandit --step-size 3 --out X", "--step-size, 3; did you mean --algorithm.step-size?"),
        ("train maml bandit --horizon 3 --out X", "--horizon, 3; did you mean --tasks.sampling.horizon?"),
        ("train maml bandit --zzz --out X", "Unrecognized options: --zzz; 'metarl train maml bandit --help'"),
        ("train maml bandit --iterations --out X", "--iterations"),
        ("train maml bandit --outer adam --outer.max-kl 1 --out X", "--outer.max-kl"),
        ("train maml bandit more --out X", "more"),
        ("train maml bandit --iterations five --out X", "--iterations: invalid literal for int() with base 10: 'five'"),
        ("train maml bandit --device tpu --out X", "tpu"),
        ("train maml bandit --iterations 0 --out X", "iterations=0"),
        ("train maml bandit --meta-batch-size 0 --out X", "meta_batch_size=0"),
        ("train maml bandit --checkpoint-every -1 --out X", "checkpoint_every=-1 must be at least 1"),
        ("train maml bandit --algorithm.step-size -0.5 --out X", "step_size=-0.5"),
        ("train maml bandit --algorithm.step-size nan --out X", "step_size=nan"),
        ("train maml bandit --algorithm.hidden 0 --out X", "hidden=(0,)"),
        ("train maml bandit --algorithm.adapt-only tail --out X", "the network has hidden_0.weight, hidden_0.bias"),
        ("train maml bandit --algorithm.architecture my_tasks:nowhere --out X", "no attribute 'nowhere'"),
        (
            "train maml bandit --algorithm.architecture conv --out X",
            "architecture='conv': expected mlp, conv4, convnet, resnet12 or module:attribute;",
        ),
        (
            "train maml bandit --algorithm.architecture my_tasks:PENDULUMS --out X",
            "expected a function from a Spec to an nn.Module",
        ),
        ("train maml bandit --outer.max-kl 0 --out X", "max_kl=0.0 must be positive"),
        ("train maml bandit --outer.chunks 0 --out X", "chunks=0"),
        ("train maml bandit --meta-batch-size 3 --outer.chunks 4 --out X", "chunks=4 is more than the 3 tasks"),
        ("train maml bandit --tasks.arms 1 --out X", "a bandit needs at least two arms, not 1"),
        ("train maml bandit --tasks.sampling.episodes 0 --out X", "episodes=0"),
        ("resume", "Missing from metarl resume: PATH Run folder"),
        ("resume X", "X contains no run: config.json is missing"),
        ("evaluate X", "X contains no run: config.json is missing"),
        ("plot", "run"),
        ("plot X", "X contains no run: config.json is missing"),
        ("render X", "X contains no run: config.json is missing"),
        (
            "train maml bandit --wandb mine --out X",
            '--wandb needs Weights & Biases: pip install "metarl-toolkit[wandb]"',
        ),
        ("train maml bandit --mlflow mine --out X", '--mlflow needs MLflow: pip install "metarl-toolkit[mlflow]"'),
    ],
)
def test_a_wrong_request_is_answered_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, arguments: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # whoever has it must not send anything
    assert told in refused(capsys, *arguments.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "train maml bandit --out RUN",
            "already contains a run; choose another folder with --out, continue the run (metarl resume ",
        ),
        ("train maml bandit --out RUN/config.json", "cannot create the run folder"),
        ("resume RUN", "stands at iteration 2 of 2: nothing is left to do; ask for more with --iterations"),
        ("resume RUN --iterations 1", "stands at iteration 2 of 1"),
        ("resume RUN --iterations 0", "iterations=0"),
        ("resume RUN --seed 3", "--seed"),
        ("resume RUN/config.json", "contains no run"),
        ("evaluate RUN --tasks 0", "--tasks 0: expected at least 1"),
        ("plot RUN --out RUN/config.json", "config.json is a file: expected a folder for the pictures"),
        ("evaluate RUN --steps -1", "--steps -1: expected at least 0"),
        ("evaluate RUN --steps -1", "--steps -1"),
        ("evaluate RUN --episodes 0", "episodes=0"),
        ("evaluate RUN --schedule 1 0", "schedule=(1.0, 0.0)"),
        ("evaluate RUN --checkpoint first", "first"),
        ("evaluate RUN --split holdout", "holdout"),
        ("evaluate RUN --tasks.arms 7", "written for another architecture"),
        ("evaluate RUN --algorithm.hidden 9", "written for another architecture"),
        ("evaluate RUN --algorithm.step-size 0", "step_size=0.0"),
        ("evaluate RUN --algorithm.size 1", "--algorithm.size"),
        ("evaluate RUN --oracle RUN", "--oracle and --pretrained must be given together"),
        ("evaluate RUN --oracle RUN --pretrained RUN", "has not been evaluated"),
        ("render RUN --out film.avi", "film.avi is neither .gif nor .mp4"),
        ("render RUN --steps -1", "--steps -1: expected at least 0"),
        ("render RUN --tasks 0", "--tasks 0: expected at least 1"),
        ("render RUN --height 9", "--height 9: expected at least 16"),
        ("render RUN --fps 0", "--fps 0.0: expected more than 0"),
        ("render RUN --task probabilities=1,x", "expected a parameter and its numbers, such as goal=0.3,-0.4"),
        ("render RUN --task probabilities=1,2", "the task parameter probabilities is float64 (1, 2)"),
        ("render RUN --task goal=1 --tasks 2", "--tasks cannot be given beside it"),
    ],
)
def test_a_request_that_does_not_fit_the_run_is_answered_in_one_line(
    trained: Path, capsys: Captured, arguments: str, told: str
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    assert told in refused(capsys, *arguments.replace("RUN", str(trained)).split())
    assert {path.name: path.stat().st_mtime_ns for path in trained.iterdir()} == before


@pytest.mark.parametrize("command", ["resume --iterations 9", "evaluate --tasks 2"])
class TestDamagedRuns:
    def answer(self, capsys: Captured, command: str, run: Path) -> str:
        name, *options = command.split()
        return refused(capsys, name, run, *options)

    def test_a_truncated_checkpoint(self, run: Path, capsys: Captured, command: str) -> None:
        checkpoint = run / "checkpoint.pt"
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
        assert f"{checkpoint} cannot be read; it may be truncated" in self.answer(capsys, command, run)

    def test_a_checkpoint_of_another_architecture(self, run: Path, capsys: Captured, command: str) -> None:
        config = json.loads((run / "config.json").read_text())
        config["algorithm"]["options"]["network"]["hidden"] = [8, 9]
        del config["sha256"]  # as whoever edits it is told
        (run / "config.json").write_text(json.dumps(config))
        told = self.answer(capsys, command, run)
        assert f"{run}/checkpoint.pt was written for another architecture: hidden_1.weight is absent there" in told

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda config: config.update(format=7), "has format 7; this version reads 1"),
            (lambda config: config.pop("tasks"), "is damaged: it lacks tasks"),
            (lambda config: config["settings"].update(bogus=1), "unexpected keyword argument 'bogus'"),
            (lambda config: config["settings"].update(iterations="2"), "settings that cannot be used"),
            (lambda config: config["settings"].update(seed=0, meta_batch_size=0), "meta_batch_size=0"),
            (lambda config: config["outer"].update(reference="metarl.outer:Gone"), "no attribute 'Gone'"),
            (lambda config: config["algorithm"].update(reference="gone"), "no algorithm is called 'gone'"),
            (lambda config: config["algorithm"]["options"].update(steps=0), "steps=0"),
            (lambda config: config["algorithm"]["options"].update(rate=0.1), "KeyError: 'rate'"),
        ],
    )
    def test_a_damaged_configuration(self, run: Path, capsys: Captured, command: str, damage: Any, told: str) -> None:
        config = json.loads((run / "config.json").read_text())
        damage(config)
        del config["sha256"]  # as whoever edits it is told
        (run / "config.json").write_text(json.dumps(config))
        assert told in self.answer(capsys, command, run)

    def test_a_configuration_that_was_cut_short(self, run: Path, capsys: Captured, command: str) -> None:
        (run / "config.json").write_text((run / "config.json").read_text()[:100])
        assert f"{run}/config.json cannot be read" in self.answer(capsys, command, run)


def test_a_run_without_a_checkpoint_is_not_evaluated(run: Path, capsys: Captured) -> None:
    (run / "checkpoint.pt").unlink()
    assert "the run has not saved a checkpoint yet" in refused(capsys, "evaluate", run)
    (run / "best.pt").unlink()
    assert "best.pt does not exist" in refused(capsys, "evaluate", run, "--checkpoint", "best")


class TestHelp:
    def test_the_commands(self, capsys: Captured) -> None:
        for arguments in ([], ["--help"], ["-h"], ["list", "--help"]):
            told = printed(capsys, *arguments)
            for command in (
                "list [tasks|algorithms|outers|recipes|pretrained]",
                "train ALGORITHM TASKS",
                "resume RUN",
                "evaluate RUN",
                "plot R",
                "render RUN",
            ):
                assert command in told

    def test_train_tells_the_options_of_its_parts(self, capsys: Captured) -> None:
        told = " ".join(printed(capsys, "train", "maml", "bandit", "--help").replace("│", " ").split())
        for text in (
            "Inner step size (the paper's alpha)",
            "Number of arms; RL^2 uses 5, 10 and 50.",
            "Meta-iterations. Each makes one outer update. By default 500 for control, and 20,000 for labelled",
            "Bound on the mean KL divergence",
            "Episodes per task, sampled before every inner step",
            "Replace an existing run in that folder.",
            "--algorithm.architecture NAME",
        ):
            assert text in told

    @pytest.mark.parametrize("algorithm", [plugin.name for plugin in plugins.available("algorithms")])
    @pytest.mark.parametrize("tasks", ["bandit", "sinusoid", "omniglot"])
    def test_the_options_of_every_algorithm_have_names_of_their_own(
        self, capsys: Captured, algorithm: str, tasks: str
    ) -> None:
        assert "--algorithm." in printed(capsys, "train", algorithm, tasks, "--help")

    def test_train_tells_the_options_of_the_chosen_update(self, capsys: Captured) -> None:
        told = printed(capsys, "train", "maml", "bandit", "--outer", "promp", "--help")
        assert "--outer.clip" in told
        assert "--outer.max-kl" not in told

    def test_train_alone_tells_the_options_of_every_run(self, capsys: Captured) -> None:
        for option in ("-h", "--help"):
            told = printed(capsys, "train", option)
            assert "metarl train ALGORITHM TASKS" in told
            assert "metarl list" in told
            for shared in (
                "--meta-batch-size",
                "--outer STR",
                "--out PATH",
                "--overwrite",
                "--quiet",
            ):
                assert shared in told

    def test_options_that_may_be_left_out_look_like_others(self, capsys: Captured) -> None:
        told = printed(capsys, "train", "maml", "bandit", "--help")
        assert "--algorithm.schedule [FLOAT [FLOAT ...]]" in told
        assert "--outer.chunks INT" in told
        assert "{None}" not in told

    def test_a_paragraph_of_help_has_no_line_breaks_of_its_own(
        self, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "100")
        lines = [line.strip("│ ") for line in printed(capsys, "train", "maml", "bandit", "--help").splitlines()]
        first = next(at for at, line in enumerate(lines) if line.startswith("Factors of the step size at inner step"))
        second, third = lines[first + 1 : first + 3]
        assert len(second) + len(third.split()[0]) > 85, "the text goes on where its source has a new line"

    @pytest.mark.parametrize(
        ("command", "text"),
        [("resume", "--iterations"), ("evaluate", "Adaptation steps. Scores are reported after 0"), ("plot", "--out")],
    )
    def test_other_commands(self, capsys: Captured, command: str, text: str) -> None:
        assert text in " ".join(printed(capsys, command, "--help").replace("│", " ").split())

    def test_the_version(self, capsys: Captured) -> None:
        assert printed(capsys, "--version") == f"metarl {metarl.__version__}\n"


class TestNamesakes:
    """Another package that is imported as metarl, too."""

    def test_one_that_is_installed_is_told_with_the_mend(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        assert main(["list", "tasks"]) == 0
        before = capsys.readouterr()
        assert before.err == ""
        info = tmp_path / "metarl-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: metarl\nVersion: 0.1.0\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert main(["list", "tasks"]) == 0
        told = capsys.readouterr()
        assert told.out == before.out
        assert told.err == (
            "metarl: a package called metarl is, or was, installed beside metarl-toolkit, and replaces its files: "
            "pip uninstall metarl metarl-toolkit, then install metarl-toolkit again\n"
        )

    def test_plugins_of_other_names_are_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
    ) -> None:
        info = tmp_path / "metarl_mazes-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: metarl-mazes\nVersion: 1.0\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert main(["list", "tasks"]) == 0
        assert capsys.readouterr().err == ""


def test_a_training_that_ends_with_refused_updates_says_so(tmp_path: Path, capsys: Captured) -> None:
    arguments = ["train", "maml", "sinusoid", "--algorithm.step-size", "1e30", "--iterations", "2", "--quiet"]
    told = printed(capsys, *arguments, "--device", "cpu", "--out", tmp_path / "run")
    assert told == (
        "the last 2 updates were refused: the meta-gradient was not finite; try a smaller step size, or see whether "
        "labels are from 0 to 1 and numbers of a size of about 1\n"
    )


class TestList:
    def test_everything_installed_is_listed_with_its_package(self, capsys: Captured) -> None:
        told = printed(capsys, "list")
        for group in ("algorithms", "tasks"):
            for plugin in plugins.available(group):
                assert any(plugin.name in line and plugin.package in line for line in told.splitlines())

    def test_one_group(self, capsys: Captured) -> None:
        assert "maml" not in printed(capsys, "list", "tasks")
        assert "bandit" not in printed(capsys, "list", "algorithms")

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_nobody_reads_to_the_end(self, unbuffered: str) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        listing = subprocess.run(
            [sys.executable, "-m", "metarl.cli", "list"],
            stdout=writer, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
        os.close(writer)
        assert listing.stderr == b""
        assert listing.returncode == 1

    def test_a_pipe_to_head(self) -> None:
        piped = f"set -o pipefail; {sys.executable} -m metarl.cli list | (head -1; cat > /dev/null)"
        told = subprocess.run(["bash", "-c", piped], capture_output=True, text=True)
        assert (told.returncode, told.stdout, told.stderr) == (0, "algorithms:\n", "")


def test_ctrl_c_before_anything_runs_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(plugins, "load", lambda group, name: signal.raise_signal(signal.SIGINT))
    assert main(["train", "maml", "bandit"]) == 130
    assert capsys.readouterr().err == "metarl: interrupted\n"


def test_an_error_of_the_program_is_not_taken_for_a_wrong_request(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(plugins, "load", lambda group, name: {}["key"])
    assert main(["train", "maml", "bandit"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "KeyError: 'key'" in told


class TestTrain:
    def test_options_reach_their_parts_and_the_run_says_what_comes_next(self, tmp_path: Path, capsys: Captured) -> None:
        options = ["--outer", "promp", "--outer.epochs", "2", "--seed", "5", "--algorithm.first-order",
                   "--iterations", "1"]  # fmt: skip
        told = printed(capsys, "train", "maml", "point-navigation", "--out", tmp_path / "run", *options, *SMALL)
        assert told.endswith(f"done: {tmp_path}/run. Next: metarl evaluate {tmp_path}/run\n")
        config = json.loads((tmp_path / "run/config.json").read_text())
        assert config["algorithm"]["reference"] == "maml"
        assert config["algorithm"]["options"]["first_order"] is True
        assert config["algorithm"]["options"]["network"]["hidden"] == [8]
        assert config["tasks"]["reference"] == "point-navigation"
        assert config["tasks"]["options"]["sampling"]["horizon"] == 5
        assert config["outer"] == {"reference": "promp", "options": config["outer"]["options"]}
        assert config["outer"]["options"]["epochs"] == 2
        assert config["settings"] == {
            "iterations": 1, "meta_batch_size": 3, "seed": 5, "device": "cpu", "compile": False, "checkpoint_every": 10,
            "log_every": 1, "validate_every": None, "validation_tasks": 40, "validation_steps": 3, "wandb": None,
            "mlflow": None,
            "step_timeout": 600.0, "when_diverging": "warn", "exact_sums": False, "rank_timeout": 1800.0,
        }  # fmt: skip

    def test_quiet_is_quiet(self, tmp_path: Path, capsys: Captured) -> None:
        assert printed(capsys, "train", "maml", "bandit", "--out", tmp_path / "run", "--quiet", *TINY) == ""

    def test_the_folder_is_named_after_its_parts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["train", "maml", "bandit", "--quiet", "--seed", "4", *TINY]) == 0
        assert main(["train", "metarl.algorithms.maml:MAML", "my_tasks:PENDULUMS", "--quiet", *TINY]) == 0
        names = [path.name for path in sorted((tmp_path / "runs").iterdir())]
        assert names == ["maml-bandit-4", "metarl.algorithms.maml.MAML-my_tasks.PENDULUMS-0"]

    def test_overwriting(self, run: Path, capsys: Captured) -> None:
        assert printed(capsys, "train", "maml", "bandit", "--out", run, "--overwrite", "--quiet", *TINY) == ""
        assert len(read_progress(run / "progress.csv")) == 2

    def test_resume_extends(self, run: Path, tmp_path: Path, capsys: Captured) -> None:
        told = printed(capsys, "resume", run, "--iterations", "4")
        assert told.endswith(f"done: {run}. Next: metarl evaluate {run}\n")
        assert len(read_progress(run / "progress.csv")) == 4
        assert "stands at iteration 4 of 4" in refused(capsys, "resume", run)
        longer = ["--quiet", *TINY, "--iterations", "4"]
        assert main(["train", "maml", "bandit", "--out", str(tmp_path / "whole"), *longer]) == 0
        one, other = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (run, tmp_path / "whole"))
        assert all(torch.equal(value, other["params"][name]) for name, value in one["params"].items())

    @pytest.mark.parametrize("tasks", ["my_tasks:PENDULUMS", "my_tasks:Pictured"])
    def test_a_users_family_goes_all_the_way(self, tmp_path: Path, capsys: Captured, tasks: str) -> None:
        printed(capsys, "train", "maml", tasks, "--out", tmp_path / "run", "--quiet", *TINY)
        printed(capsys, "resume", tmp_path / "run", "--iterations", "3", "--quiet")
        told = printed(capsys, "evaluate", tmp_path / "run", "--tasks", "2", "--steps", "1")
        record = json.loads((tmp_path / "run/config.json").read_text())["tasks"]
        assert record["reference"] == tasks
        assert record["options"]["sampling"]["horizon"] == 5
        pictured = tmp_path / "run/tasks.png"
        assert pictured.exists() == (tasks == "my_tasks:Pictured") == (f"wrote {pictured}" in told)
        if pictured.exists():
            assert pictured.read_text() == "2 2", "after 0 and 1 steps, two tasks"

    def test_a_users_network_goes_all_the_way(self, tmp_path: Path, capsys: Captured) -> None:
        small = [word for word in SMALL if word not in ("--algorithm.hidden", "8")]
        options = ["--algorithm.architecture", "my_tasks:network", "--iterations", "2", *small]
        printed(capsys, "train", "maml", "bandit", "--out", tmp_path / "run", "--quiet", *options)
        saved = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
        assert {name: tuple(value.shape) for name, value in saved["params"].items()} == {
            "0.weight": (4, 1), "0.bias": (4,), "1.scale": (5,)
        }  # fmt: skip
        printed(capsys, "resume", tmp_path / "run", "--iterations", "3", "--quiet")
        assert "return/step_2" in printed(capsys, "evaluate", tmp_path / "run", "--tasks", "2", "--steps", "2")


def raise_scores(folder: Path, by: float) -> None:
    """Let a run have been better in its evaluation."""
    record = json.loads((folder / "evaluation.json").read_text())
    del record["sha256"]
    for values in record["metrics"].values():
        values["per_task"] = [score + by for score in values["per_task"]]
        values |= {name: values[name] + by for name in ("mean", "low", "high")}
    (folder / "evaluation.json").write_text(json.dumps(record))


class TestEvaluate:
    def test_the_record_has_the_promised_form(self, run: Path, capsys: Captured) -> None:
        told = printed(capsys, "evaluate", run, "--tasks", "4", "--steps", "2", "--seed", "7")
        record = json.loads((run / "evaluation.json").read_text())
        assert list(record["metrics"]) == ["return/step_0", "return/step_1", "return/step_2"]
        for metric in record["metrics"].values():
            assert set(metric) == {"mean", "low", "high", "per_task"}
            assert len(metric["per_task"]) == 4
            assert metric["mean"] == pytest.approx(sum(metric["per_task"]) / 4)
            assert metric["low"] <= metric["mean"] <= metric["high"]
            assert all(0 <= value <= 5 for value in metric["per_task"])
        assert (record["tasks"], record["split"], record["seed"], record["steps"]) == (4, "test", 7, 2)
        assert (record["checkpoint"], record["iteration"]) == ("last", 2)
        assert record["schedule"] is record["episodes"] is None, "the run's own"
        assert record["versions"]["metarl"] == metarl.__version__
        assert told.splitlines()[-1] == f"wrote {run}/adaptation.png"
        assert (run / "adaptation.png").read_bytes().startswith(b"\x89PNG")
        for name in record["metrics"]:
            assert name in told

    def test_the_same_request_gives_the_same_numbers(self, run: Path, capsys: Captured) -> None:
        records = []
        for seed in ("0", "0", "1"):
            printed(capsys, "evaluate", run, "--tasks", "3", "--steps", "1", "--seed", seed)
            records.append(json.loads((run / "evaluation.json").read_text())["metrics"])
        assert records[0] == records[1] != records[2]

    def test_the_best_parameters_are_those_of_their_file(self, run: Path, capsys: Captured) -> None:
        best = torch.load(run / "best.pt", weights_only=True)
        best["params"] = {name: value + 3 for name, value in best["params"].items()}
        torch.save(best | {"iteration": 77}, run / "best.pt")
        printed(capsys, "evaluate", run, "--tasks", "2", "--steps", "0", "--checkpoint", "best")
        record = json.loads((run / "evaluation.json").read_text())
        assert (record["checkpoint"], record["iteration"]) == ("best", 77)
        found = training.load(run)
        expected = evaluation.evaluate(found.learner, best["params"], found.family, tasks=2, steps=0)
        assert record["metrics"] == expected.metrics

    def test_a_schedule_scales_the_steps(self, run: Path, capsys: Captured) -> None:
        found = {}
        for schedule in (("1",), ("1", "1"), ("1", "1000"), ("1000",)):
            printed(capsys, "evaluate", run, "--tasks", "20", "--steps", "2", "--schedule", *schedule)
            record = json.loads((run / "evaluation.json").read_text())
            assert record["schedule"] == [float(factor) for factor in schedule]
            found[schedule] = [record["metrics"][f"return/step_{step}"]["per_task"] for step in range(3)]
        plain = found["1",]
        assert found["1", "1"] == plain
        assert found["1", "1000"][:2] == plain[:2]
        assert found["1", "1000"][2] != plain[2]
        assert found["1000",][0] == plain[0]
        assert found["1000",][1] != plain[1]

    def test_episodes_replace_those_of_the_run(
        self, run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[int, ...]] = []
        original = evaluation.evaluate

        def spied(*arguments: Any) -> Any:
            found = original(*arguments)
            seen.append(tuple(found.queries[0].mask.shape))  # type: ignore[union-attr]
            return found

        monkeypatch.setattr(evaluation, "evaluate", spied)
        printed(capsys, "evaluate", run, "--tasks", "3", "--steps", "0")
        printed(capsys, "evaluate", run, "--tasks", "3", "--steps", "0", "--episodes", "7")
        assert seen == [(3, 2, 5), (3, 7, 5)]

    def test_options_of_algorithm_and_tasks_can_be_changed(self, run: Path, capsys: Captured) -> None:
        found = []
        for options in ([], ["--algorithm.schedule", "1", "0.5"], ["--algorithm.step-size", "100"]):
            told = ["--tasks.sampling.episodes", "3", "--tasks", "5", "--steps", "1", *options]
            printed(capsys, "evaluate", run, *told)
            found.append(json.loads((run / "evaluation.json").read_text()))
        plain, same, other = (record["metrics"]["return/step_1"]["per_task"] for record in found)
        assert plain == same != other
        assert found[2]["algorithm"]["options"]["step_size"] == 100
        assert found[2]["family"]["options"]["sampling"] == {"episodes": 3, "horizon": 5}
        assert training.load(run).algorithm.step_size == 0.1, "the run itself is as it was"

    def test_the_gap_to_an_oracle_is_told_and_kept(self, run: Path, tmp_path: Path, capsys: Captured) -> None:
        others = [tmp_path / "oracle", tmp_path / "pretrained"]
        for folder, condition in zip(others, ("concatenate", "none"), strict=True):
            options = ["--algorithm.condition", condition, "--out", str(folder), "--quiet"]
            assert main(["train", "multitask", "bandit", *TINY, *options]) == 0
            printed(capsys, "evaluate", folder, "--tasks", "30", "--steps", "1")
        swapped = [option for pair in zip(("--pretrained", "--oracle"), others, strict=True) for option in pair]
        raise_scores(others[0], 10.0)  # neither has learnt anything yet
        answer = refused(capsys, "evaluate", run, "--tasks", "30", "--steps", "1", *swapped)
        assert "the oracle is not better than the pre-trained network (return/step_0: " in answer
        compared = ["--oracle", others[0], "--pretrained", others[1]]
        told = printed(capsys, "evaluate", run, "--tasks", "30", "--steps", "1", *compared)
        record = json.loads((run / "evaluation.json").read_text())
        own, oracle, pretrained = (
            json.loads((folder / "evaluation.json").read_text())["metrics"] for folder in (run, *others)
        )
        for step in (0, 1):
            name = f"return/step_{step}"
            gap = oracle["return/step_0"]["mean"] - pretrained[name]["mean"]
            expected = (own[name]["mean"] - pretrained[name]["mean"]) / gap
            assert record["gap_closed"][name]["mean"] == pytest.approx(expected)
            assert f"{expected:.1%}" in told
        assert (record["oracle"], record["pretrained"]) == tuple(map(str, others))
        answer = refused(capsys, "evaluate", run, "--tasks", "20", "--steps", "1", *compared)
        assert f"{others[0]} was evaluated with tasks=30, not 20" in answer

    def test_a_run_trained_elsewhere_is_evaluated_and_resumed_here(
        self, run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        config = (run / "config.json").read_text()
        edited = json.loads(config.replace('"device": "cpu"', '"device": "cuda"'))
        del edited["sha256"]  # as whoever edits it is told
        (run / "config.json").write_text(json.dumps(edited))
        for options in ([], ["--device", "cpu"]):
            printed(capsys, "evaluate", run, "--tasks", "2", "--steps", "0", *options)
        assert "finds no CUDA device" in refused(capsys, "evaluate", run, "--device", "cuda")
        assert "finds no CUDA device; use --device cpu" in refused(capsys, "resume", run, "--iterations", "9")
        printed(capsys, "resume", run, "--iterations", "3", "--device", "cpu", "--quiet")
        assert len(read_progress(run / "progress.csv")) == 3
        settings = json.loads((run / "config.json").read_text())["settings"]
        assert (settings["device"], settings["iterations"]) == ("cuda", 3), "the run keeps where it was trained"


class TestPlot:
    def test_several_runs_are_drawn_into_one_picture(self, run: Path, tmp_path: Path, capsys: Captured) -> None:
        printed(capsys, "evaluate", run, "--tasks", "2", "--steps", "1")
        other = Path(shutil.copytree(run, tmp_path / "other"))
        (other / "evaluation.json").unlink()
        told = printed(capsys, "plot", run, other, "--out", tmp_path / "new" / "pictures")
        names = ["learning.png", "adaptation.png"]
        wrote = "".join(f"wrote {tmp_path}/new/pictures/{name}\n" for name in names)
        assert told == "without an evaluation, so not in adaptation.png: other\n" + wrote
        for name in names:
            assert (tmp_path / "new/pictures" / name).read_bytes().startswith(b"\x89PNG")

    def test_pictures_go_into_the_first_run(self, run: Path, capsys: Captured) -> None:
        told = printed(capsys, "plot", run)
        assert told == f"without an evaluation, so not in adaptation.png: copy\nwrote {run}/learning.png\n"

    def test_a_run_without_an_iteration_is_left_out(self, run: Path, tmp_path: Path, capsys: Captured) -> None:
        other = Path(shutil.copytree(run, tmp_path / "other"))
        (other / "progress.csv").unlink()
        told = printed(capsys, "plot", other, run)
        assert told.splitlines()[0] == "without a score so far, so not in learning.png: other"
        assert f"wrote {other}/learning.png" in told

    def test_evaluations_that_training_went_beyond_tell_their_iteration(
        self, run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[list[str]] = []
        printed(capsys, "evaluate", run, "--tasks", "2", "--steps", "1")
        monkeypatch.setattr(plotting, "adaptation_curve", lambda runs, path: drawn.append(list(runs)))
        printed(capsys, "plot", run)
        printed(capsys, "resume", run, "--iterations", "3")
        printed(capsys, "plot", run)
        assert drawn == [["copy"], ["copy (iteration 2 of 3)"]]

    @pytest.mark.parametrize(
        ("folders", "labels"),
        [(["a/run", "b/run"], ["a/run", "b/run"]), (["a/run", "c"], ["run", "c"]), (["."], ["here"])],
    )
    def test_runs_of_one_name_are_told_apart(
        self, trained: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch,
        folders: list[str], labels: list[str],
    ) -> None:  # fmt: skip
        here = tmp_path / "here"
        for folder in folders:
            shutil.copytree(trained, here / folder)
        monkeypatch.chdir(here)
        drawn: list[list[str]] = []
        monkeypatch.setattr(plotting, "learning_curve", lambda runs, path, over: drawn.append(list(runs)))
        printed(capsys, "plot", *folders)
        assert drawn == [labels]

    def test_runs_that_hold_nothing_to_draw_are_refused(self, run: Path, capsys: Captured) -> None:
        (run / "evaluation.json").write_text("{")
        assert "evaluation.json cannot be read" in refused(capsys, "plot", run)
        (run / "evaluation.json").unlink()
        (run / "progress.csv").write_text("iteration,return/step_0\n1")
        assert f"nothing to draw yet: progress.csv holds no score in {run}" in refused(capsys, "plot", run, run)


def test_exit_codes_are_those_of_the_contract() -> None:
    assert (cli.DONE, cli.FAILED, cli.WRONG, cli.INTERRUPTED) == (0, 1, 2, 130)
