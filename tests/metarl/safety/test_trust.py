"""Run folders of strangers: nothing of theirs is imported unless the user says so."""

import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metarl
from metarl import cli, runs
from metarl.files import write_json
from metarl.safety import code, signing
from metarl.training import load, reopen
from metarl.training.settings import Settings
from metarl.tuning import storage

MODULE = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
from metarl_envs.navigation import PointNavigation
family = PointNavigation()
"""
SMALL = Settings(2, 2, device="cpu")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's, on the path; a file beside it tells whether it was imported."""
    name = f"of_{tmp_path.name.replace('-', '_')}"
    path = tmp_path / f"{name}.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return path


@pytest.fixture
def run(tmp_path: Path, module: Path) -> Path:
    metarl.train("maml", f"{module.stem}:family", settings=SMALL, out=tmp_path / "run")
    forget(module)
    return tmp_path / "run"


def forget(module: Path) -> None:
    sys.modules.pop(module.stem, None)
    module.with_name("imported").unlink(missing_ok=True)


def imported(module: Path) -> bool:
    return module.with_name("imported").exists()


def change(folder: Path, **changes: Any) -> None:
    """Edit a configuration as anybody can, with a right checksum."""
    contents = json.loads((folder / "config.json").read_text())
    del contents["sha256"]
    for name, value in changes.items():
        contents[name] = contents[name] | value if isinstance(value, dict) else value
        if value is None:
            del contents[name]
    runs.write_record(folder / "config.json", contents)


def strangers(folder: Path) -> None:
    change(folder, signature=None)


WAYS: dict[str, Callable[[Path], Any]] = {
    "open": lambda run: metarl.open_run(run),
    "resume": lambda run: metarl.resume(run, iterations=3),
    "load": lambda run: load(run),
    "reopen": lambda run: reopen(run, 3),
}
COMMANDS = (
    ["evaluate", "--tasks", "2", "--steps", "1"],
    ["evaluate", "--tasks", "2", "--tasks.sampling.episodes", "2"],
    ["resume", "--iterations", "3"],
    ["render", "--steps", "0"],
    ["export", "model.zip"],
)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_a_stranger_is_imported(run: Path, module: Path, way: str) -> None:
    strangers(run)
    with pytest.raises(runs.RunError, match=rf"{module.stem}:family \(tasks\).*--allow-code.*allow_code=True"):
        WAYS[way](run)
    assert not imported(module)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_import_nothing_of_a_stranger(
    run: Path, module: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    strangers(run)
    assert cli.main([words[0], str(run), *words[1:]]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not imported(module)
    assert cli.main(["plot", str(run)]) == 0
    assert not imported(module)


def test_a_stranger_is_opened_where_the_user_says_so(run: Path, module: Path) -> None:
    strangers(run)
    assert metarl.open_run(run, allow_code=True).iteration == 2
    assert imported(module)
    assert metarl.resume(run, iterations=3, allow_code=True).iteration == 3
    assert cli.main(["evaluate", str(run), "--tasks", "2", "--steps", "0", "--allow-code"]) == 0
    forget(module)
    with pytest.raises(runs.RunError):  # to allow it once is not to sign it
        metarl.open_run(run)


def test_own_runs_are_trusted_wherever_they_lie_and_after_they_went_on(run: Path, tmp_path: Path) -> None:
    assert metarl.resume(run, iterations=3).iteration == 3
    moved = Path(shutil.copytree(run, tmp_path / "elsewhere" / "run"))
    shutil.rmtree(run)
    assert metarl.open_run(moved).iteration == 3
    assert metarl.resume(moved, iterations=4).iteration == 4


@pytest.mark.parametrize("part", ["settings", "recipe", "versions"])
def test_whoever_changes_a_configuration_takes_its_trust(run: Path, module: Path, part: str) -> None:
    change(run, **{part: "other" if part == "recipe" else {"seed": 3}})
    with pytest.raises(runs.RunError, match="not by your key, or it has changed"):
        metarl.open_run(run)
    assert not imported(module)


def test_another_users_signature_counts_for_nothing(
    run: Path, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METARL_KEY", str(tmp_path / "theirs"))
    with pytest.raises(runs.RunError, match="there is no key"):
        metarl.open_run(run)
    signing.signed({})
    with pytest.raises(runs.RunError, match="not by your key"):
        metarl.open_run(run)
    assert not imported(module)


def test_installed_plugins_need_no_trust(tmp_path: Path) -> None:
    metarl.train("maml", "point-navigation", settings=SMALL, out=tmp_path / "run")
    strangers(tmp_path / "run")
    assert metarl.open_run(tmp_path / "run").iteration == 2
    change(tmp_path / "run", tasks={"reference": "metarl_envs.navigation:PointNavigation"})
    assert metarl.open_run(tmp_path / "run").iteration == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"network": {"architecture": "evil:build"}}, r"evil:build \(algorithm.network.architecture\)"),
        ({"a": [["evil.inner:Env-v0"]]}, r"evil.inner:Env-v0 \(algorithm.a\)"),
        ({"evil:x": 1}, "evil:x"),
    ],
)
def test_code_that_options_name_counts_too(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    metarl.train("maml", "point-navigation", settings=SMALL, out=tmp_path / "run")
    strangers(tmp_path / "run")
    change(tmp_path / "run", algorithm={"options": options})
    with pytest.raises(runs.RunError, match=named):
        metarl.open_run(tmp_path / "run")


@pytest.mark.parametrize("text", ["cuda:0", r"C:\data", "/a:b", "https://a.b/c", "a b:c", ":x", "x:", ""])
def test_other_text_names_no_code(text: str) -> None:
    record = {"algorithm": {"reference": "maml", "options": {"root": text}}}
    code.check_code("run", record, {"algorithm": "algorithms"}, allowed=False)


def test_a_reference_that_calls_anything_is_refused(tmp_path: Path) -> None:
    metarl.train("maml", "point-navigation", settings=SMALL, out=tmp_path / "run")
    strangers(tmp_path / "run")
    target = tmp_path / "called"
    change(tmp_path / "run", outer={"reference": "subprocess:Popen", "options": {"args": ["touch", str(target)]}})
    with pytest.raises(runs.RunError, match="subprocess:Popen"):
        metarl.open_run(tmp_path / "run")
    assert not target.exists()


def test_the_key_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARL_KEY", str(tmp_path / "state" / "key"))
    record = signing.signed({"a": (1, 2)})
    key = tmp_path / "state" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in key.parent.iterdir()] == ["key"]
    assert key.read_text() not in json.dumps(record)
    assert signing.is_signed(json.loads(json.dumps(record)))
    assert signing.signed(record) == record
    assert not signing.is_signed(record | {"a": [1, 3]})
    assert not signing.is_signed(record | {"signature": None})
    assert not signing.is_signed(record | {"signature": "é"})
    key.chmod(0o644)
    assert not signing.is_signed(record)
    assert "can be read by others" in str(signing.key_problem())
    key.chmod(0o600)
    key.write_text("ab")
    assert "damaged" in str(signing.key_problem())
    assert "signature" not in signing.signed({"a": 1})


def test_the_key_lies_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METARL_KEY")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert signing.key_path() == Path("/state/metarl/key")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert signing.key_path() == Path("/home/me/.local/state/metarl/key")


def _sign(path: str, answers: Any) -> None:
    os.environ["METARL_KEY"] = path
    answers.put(signing.signed({"a": 1}))


def test_processes_that_make_a_key_at_once_have_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_sign, args=(str(tmp_path / "key"), answers)) for _ in range(6)]
    for process in processes:
        process.start()
    found = {answers.get(timeout=60)["signature"] for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    monkeypatch.setenv("METARL_KEY", str(tmp_path / "key"))
    assert signing.is_signed({"a": 1, "signature": found.pop()})


@pytest.mark.parametrize("home", ["a file", "nowhere"])
def test_without_a_place_for_a_key_training_works_and_trust_is_asked_for_later(
    tmp_path: Path, module: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    if home == "a file":
        monkeypatch.setenv("METARL_KEY", str(tmp_path / "file" / "key"))
    else:
        monkeypatch.setattr(signing, "key_path", lambda: (_ for _ in ()).throw(OSError("there is no home folder")))
    metarl.train("maml", f"{module.stem}:family", settings=SMALL, out=tmp_path / "run")
    forget(module)
    assert "signature" not in json.loads((tmp_path / "run" / "config.json").read_text())
    with pytest.raises(runs.RunError, match=r"it has no signature.*--allow-code"):
        metarl.open_run(tmp_path / "run")
    assert not imported(module)
    assert metarl.open_run(tmp_path / "run", allow_code=True).iteration == 2


def process(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "metarl", *words], cwd=folder, capture_output=True, text=True)


def test_the_working_folder_offers_no_packages(tmp_path: Path) -> None:
    """Neither a plugin's metadata, nor a module that passes for a package that is not installed."""
    for name in ("wandb", "evil"):
        (tmp_path / f"{name}.py").write_text(f"from pathlib import Path\nPath('imported-{name}').touch()\n" + MODULE)
    about = tmp_path / "evil-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[metarl.tasks]\nevil = evil:family\n")
    run = tmp_path / "run"
    metarl.train("maml", "point-navigation", settings=SMALL, out=run)
    change(run, settings={"wandb": "project"}, signature=None)
    asked = process(tmp_path, "resume", str(run), "--iterations", "3")
    is_there = importlib.util.find_spec("wandb") is not None  # then it wants to know who is asking
    assert asked.returncode == (1 if is_there else 2)
    assert ("Weights & Biases cannot be used" if is_there else "needs Weights & Biases") in asked.stderr
    change(run, tasks={"reference": "evil"})
    asked = process(tmp_path, "evaluate", str(run))
    assert asked.returncode == 2
    assert "no task family is called 'evil'" in asked.stderr
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("imported")]


def test_modules_of_the_working_folder_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    found = process(tmp_path, "train", "maml", "mine:family", "--iterations", "0")
    assert "iterations=0" in found.stderr
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "optuna"])
def test_packages_are_not_taken_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here, installed = tmp_path / "here", tmp_path / "installed"
    for folder, text in ((here, "raise RuntimeError('imported')"), (installed, "installed = True")):
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", str(here), str(installed), *sys.path])
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    before = list(sys.path)
    found = {
        "wandb": runs.logger.import_wandb, "mlflow": runs.logger.import_mlflow, "optuna": storage.import_optuna,
    }[name]()  # fmt: skip
    assert found.installed
    assert sys.path == before
    monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("name", ["config.json", "checkpoint.pt", "progress.csv", "evaluation.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_files_that_never_end_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    run = tmp_path / "run"
    metarl.train("maml", "sinusoid", settings=SMALL, out=run)
    summary = {"mean": 0.0, "low": -1.0, "high": 1.0, "per_task": [0.0, 0.0]}
    write_json(run / "evaluation.json", {"metrics": {"loss/step_0": summary}, "tasks": 2, "split": "test"})
    (run / name).unlink()
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to("/dev/zero")
    for words in (["plot", str(run)], ["resume", str(run), "--iterations", "3", "--quiet"]):
        if words[0] == "resume" and name == "evaluation.json":
            continue  # it reads no evaluation
        assert cli.main(words) == (0 if words[0] == "plot" and name == "checkpoint.pt" else 2)
