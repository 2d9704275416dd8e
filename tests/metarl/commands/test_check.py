"""``metarl check``: what it prints of sound plugins and of broken ones, and its exit codes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metarl.cli import main

MODULE = '''
import dataclasses
from metarl import Regression
from metarl_plugins.sinusoid import Sinusoid

LINES = Regression(lambda inputs, slope: slope * inputs, {"slope": (-1.0, 1.0)})


@dataclasses.dataclass(frozen=True)
class Doubled(Sinusoid):
    """Waves in float64, and no tasks that raise an error where none are asked for."""

    def sample(self, num_tasks, split, generator):
        tasks = super().sample(max(num_tasks, 1), split, generator)
        return Drawn(tasks.parameters, tasks)


@dataclasses.dataclass(frozen=True)
class Drawn:
    parameters: dict
    tasks: object

    @property
    def descriptors(self):
        return self.tasks.descriptors

    def draw(self, *arguments):
        batch = self.tasks.draw(*arguments)
        return dataclasses.replace(batch, inputs=batch.inputs.double().bouble())


@dataclasses.dataclass(frozen=True)
class Picky:
    def build(self, spec):
        raise ValueError("nothing suits me")


@dataclasses.dataclass(frozen=True)
class Needy:
    goal: float
    spec = None

    def sample(self, num_tasks, split, generator):
        return None


class Plain:
    """A family that is no dataclass."""

    spec = LINES.spec
    sample = LINES.sample


from metarl.types import Update


@dataclasses.dataclass(frozen=True)
class Lazy:
    """An outer update that moves nothing, and serves labelled examples only."""

    rate: float = 0.0

    def check(self, learner):
        if learner.spec.control:
            raise ValueError("lazy learns from labelled examples")

    def init(self, params):
        return {}

    def update(self, learner, params, state, experience):
        _, metrics = learner.meta_loss(params, experience)
        return Update(params, state, {name: value.detach().mean() for name, value in metrics.items()}, self.rate < 1)


class Both:
    spec = None

    def build(self, spec):
        return None

    def sample(self, num_tasks, split, generator):
        return None
'''
BROKEN = "import torch\n\n\nLARGEST = torch.zeros(3) + 'metres'\n"

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True, scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("user")
    (folder / "checked_tasks.py").write_text(MODULE)
    (folder / "broken_tasks.py").write_text(BROKEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    for name in ("checked_tasks", "broken_tasks"):
        sys.modules.pop(name, None)


def lines(capsys: Captured, code: int, *arguments: str) -> dict[str, tuple[str, str]]:
    """Run a check and return the verdict and the text of each line, by the name of the check."""
    capsys.readouterr()
    assert main(["check", *arguments]) == code
    told = capsys.readouterr()
    assert told.err == ""
    rows = [line.split(maxsplit=2) for line in told.out.splitlines() if line.startswith("  ")]
    return {check: (verdict, text) for verdict, check, text in rows}


def test_a_sound_family_passes(capsys: Captured) -> None:
    found = lines(capsys, 0, "sinusoid", "--tasks.shots", "3")
    assert found["seeding"] == ("ok", "tasks depend only on the given generator")
    assert found["record"][0] == "ok"
    assert {verdict for verdict, _ in found.values()} <= {"ok", "skipped"}


def test_the_counts_come_last(capsys: Captured) -> None:
    assert main(["check", "tasks", "sinusoid", "--device", "cpu"]) == 0
    *told, last = capsys.readouterr().out.splitlines()
    counts = {verdict: sum(line.split()[:1] == [verdict] for line in told) for verdict in ("ok", "skipped")}
    assert last == f"{counts['ok']} ok, {counts['skipped']} skipped" and counts["skipped"] == 2


def test_a_broken_family_is_told_what_fails_and_where(capsys: Captured, modules: Path) -> None:
    found = lines(capsys, 1, "checked_tasks:Doubled")
    line = (
        MODULE.splitlines().index("        return dataclasses.replace(batch, inputs=batch.inputs.double().bouble())")
        + 1
    )
    place = f"({modules / 'checked_tasks.py'}:{line}, Drawn.draw)"
    assert found["draws"] == ("FAILED", f"AttributeError: 'Tensor' object has no attribute 'bouble' {place}")
    assert found["refusal"][0] == "FAILED"
    assert found["refusal"][1].endswith("checked_tasks.py:13, Doubled.sample)")
    assert found["seeding"][0] == "ok"
    assert found["dtypes"] == ("skipped", "needs draws, which does not hold")


def test_paths_below_the_folder_are_told_from_there(
    capsys: Captured, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(modules)
    assert lines(capsys, 1, "checked_tasks:Doubled")["refusal"][1].endswith("(checked_tasks.py:13, Doubled.sample)")


def test_a_family_bound_to_a_name_passes(capsys: Captured) -> None:
    assert {verdict for verdict, _ in lines(capsys, 0, "checked_tasks:LINES").values()} <= {"ok", "skipped"}


def test_options_that_no_run_can_record_are_found(capsys: Captured) -> None:
    verdict, text = lines(capsys, 1, "checked_tasks:Plain")["record"]
    assert verdict == "FAILED"
    assert "cannot be recorded in a run folder" in text


def test_a_sound_algorithm_passes_with_a_family_of_every_kind(capsys: Captured) -> None:
    assert main(["check", "reptile", "--algorithm.hidden", "8"]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if not line.startswith("  ")][:-1]
    kinds = ("continuous", "discrete", "regression", "classification")
    assert titles == [f"with synthetic {kind} tasks:" for kind in kinds] + ["reptile:"]
    assert "FAILED" not in out


def test_families_may_be_named_for_an_algorithm(capsys: Captured) -> None:
    assert main(["check", "protonet", "--algorithm.hidden", "8", "--tasks", "sinusoid", "checked_tasks:LINES"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "with sinusoid:"
    assert out[1].startswith("  skipped  supports  the algorithm refuses: protonet tells classes apart")
    assert out[2] == "with checked_tasks:LINES:"
    assert out[4:] == [
        "protonet:",
        "  FAILED   supports  the algorithm supports none of these families",
        "  ok       record    a run folder can record and rebuild it",
        "1 ok, 1 FAILED, 2 skipped",
    ]


def test_a_sound_outer_update_passes_with_every_kind_that_it_serves(capsys: Captured) -> None:
    assert main(["check", "promp", "--outer.epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("the outer update refuses: this outer update moves policies and needs rollouts") == 2
    titles = [line for line in out.splitlines() if not line.startswith("  ")][:-1]
    kinds = ("continuous", "discrete", "regression", "classification")
    assert titles == [f"with synthetic {kind} tasks:" for kind in kinds] + ["promp:"]
    assert "FAILED" not in out


def test_a_broken_outer_update_is_told_what_fails_and_where(capsys: Captured, modules: Path) -> None:
    assert main(["check", "outers", "checked_tasks:Lazy"]) == 1
    out = capsys.readouterr().out.splitlines()
    line = MODULE.splitlines().index("    def update(self, learner, params, state, experience):") + 1
    place = f"({modules / 'checked_tasks.py'}:{line}, Lazy.update)"
    moved = "the parameters did not change in 3 updates, although there is something to learn"
    failed = [text.split(maxsplit=2)[1:] for text in out if text.startswith("  FAILED")]
    assert failed.count(["movement", f"{moved} {place}"]) == 2, "of regression and of classification"
    assert {check for check, _ in failed} == {"movement", "finite"}
    assert sum("the outer update refuses: lazy learns from labelled examples" in text for text in out) == 2
    assert out[-3:-1] == ["checked_tasks:Lazy:", "  ok       record       a run folder can record and rebuild it"]


def test_an_outer_updates_options_families_and_algorithm_may_be_named(capsys: Captured) -> None:
    arguments = ["--outer.learning-rate", "0.1", "--tasks", "checked_tasks:LINES", "bandit"]
    assert main(["check", "sgd", *arguments, "--algorithm", "reptile", "--device", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if not line.startswith("  ")][:-1] == [
        "with checked_tasks:LINES:",
        "with bandit:",
        "sgd:",
    ]
    assert main(["check", "adam", "--tasks", "bandit", "--algorithm", "reptile"]) == 1
    assert "the outer update, or reptile, refuses: the meta-parameters hold running averages" in capsys.readouterr().out


def test_a_plugin_that_cannot_be_imported_is_told_where(capsys: Captured, modules: Path) -> None:
    found = lines(capsys, 1, "tasks", "broken_tasks:FAMILY")
    verdict, text = found["import"]
    assert verdict == "FAILED"
    assert text.startswith("importing 'broken_tasks' failed: TypeError: ")
    assert text.endswith(f"({modules / 'broken_tasks.py'}:4, <module>)")


def test_a_plugin_without_defaults_is_told(capsys: Captured) -> None:
    assert main(["check", "checked_tasks:Needy"]) == 2
    assert "Needy cannot be made by its defaults alone: Missing from metarl check" in capsys.readouterr().err
    assert "make" not in lines(capsys, 1, "checked_tasks:Needy", "--tasks.goal", "0.5")


def test_an_installed_plugin_that_cannot_be_imported_is_told_where(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "frail-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: frail\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metarl.tasks]\nfrail = broken_tasks:FAMILY\n")
    monkeypatch.syspath_prepend(tmp_path)
    verdict, text = lines(capsys, 1, "frail")["import"]
    assert verdict == "FAILED"
    assert "cannot load the task family 'frail' of frail 1.0" in text
    assert "broken_tasks.py:4, <module>)" in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "check needs a name, e.g. 'metarl check point-navigation'; 'metarl list' shows all"),
        ("tasks", "check needs a name"),
        ("--device cpu", "check needs a name"),
        ("sinusoids", "no task family, algorithm or outer update is called 'sinusoids'; did you mean"),
        ("algorithms sinusoid", "no algorithm is called 'sinusoid'; it is one of the tasks"),
        ("gone:Family", "there is no module 'gone'"),
        ("checked_tasks:LINE", "no attribute 'LINE'; did you mean 'LINES'"),
        ("checked_tasks:Regression.no", "no attribute"),
        ("checked_tasks:dataclasses", "is not a plugin: task families have 'sample', algorithms have 'build'"),
        ("checked_tasks:dataclasses", "outer updates have 'update'"),
        ("sinusoids", "did you mean 'sinusoid'?; 'metarl list' shows all names"),
        ("adm", "outer update is called 'adm'; did you mean 'adam'?"),
        ("outers sinusoid", "outer update is called 'sinusoid'; it is one of the tasks"),
        (
            "checked_tasks:Both",
            "is in 2 groups: choose 'metarl check tasks checked_tasks:Both' or 'metarl check algorithms",
        ),
        ("sinusoid --tasks.shots 0", "shots=0: expected at least 1"),
        ("sinusoid --algorithm.steps 2", "--algorithm.steps"),
        ("sinusoid --device tpu", "tpu"),
        ("reptile --tasks sinusoids", "no task family is called 'sinusoids'"),
        ("adam --tasks sinusoids", "no task family is called 'sinusoids'"),
        ("adam --algorithm sinusoid", "no algorithm is called 'sinusoid'"),
        ("adam --outer.max-kl 1", "--outer.max-kl"),
        ("sgd --outer.chunks 0", "chunks=0"),
    ],
)
def test_wrong_requests_are_refused(arguments: str, told: str, capsys: Captured) -> None:
    assert main(["check", *arguments.split()]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    assert told in found.err


def test_help_tells_the_options_of_the_plugin(capsys: Captured) -> None:
    assert main(["check", "--help"]) == 0
    assert "--device" in capsys.readouterr().out
    assert main(["check", "sinusoid", "--help"]) == 0
    assert "--tasks.shots" in capsys.readouterr().out
    assert main(["check", "adam", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("--outer.epochs", "Names of families to check with", "--algorithm STR Name of the algorithm"):
        assert text in told


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("import os; os._exit(0)", "with exit code 0"),
        ("import os; os.kill(os.getpid(), 9)", "by SIGKILL"),
    ],
)
def test_a_plugin_that_ends_the_process_that_imports_it(
    tmp_path: Path, statement: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"ending_{len(statement)}"
    (tmp_path / f"{name}.py").write_text(statement)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", f"{name}:family"]) == 1
    assert f"importing {name} ends the process that imports it, {told}" in capsys.readouterr().out


RECIPES = """
[maml.default]
reached = "not yet trained to its end"
algorithm = { step_size = 0.1, network = { hidden = [4] } }
settings = { iterations = 70000, meta_batch_size = 1000 }

[maml.wrong]
reached = "not yet trained to its end"
algorithm = { stepsize = 0.1 }
"""


@pytest.fixture
def waves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package that offers the family 'waves' with recipes; return their file."""
    for folder in ("waves/recipes", "waves-1.0.dist-info"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "waves" / "__init__.py").write_text(
        "from metarl import Regression\nWAVES = Regression(lambda x, slope: slope * x, {'slope': (-1.0, 1.0)})\n"
    )
    (tmp_path / "waves-1.0.dist-info" / "METADATA").write_text("Name: waves\nVersion: 1.0\n")
    (tmp_path / "waves-1.0.dist-info" / "entry_points.txt").write_text("[metarl.tasks]\nwaves = waves:WAVES\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "waves" / "recipes" / "waves.toml"
    file.write_text(RECIPES)
    return file


def test_recipes_are_tried_for_a_few_iterations(waves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "waves"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[1:2] == ["recipe"]]
    assert lines[0].split() == ["ok", "recipe", "maml/waves/default", "trains", "for", "2", "iterations"]
    assert "FAILED" in lines[1] and "algorithm has no option 'stepsize'; did you mean 'step_size'?" in lines[1]
    sys.modules.pop("waves")


def test_a_file_of_recipes_that_is_none_is_one_line(waves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waves.write_text("[maml.default")
    assert main(["check", "waves"]) == 2
    assert f"{waves} is not a valid file of recipes" in capsys.readouterr().err
    sys.modules.pop("waves")
