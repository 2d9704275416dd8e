"""The search: what it asks, trains and tells; what goes on after an end; what it refuses."""

import csv
import dataclasses
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import metarl
from metarl import runs, tuning
from metarl.cli import DONE, WRONG, main
from metarl.commands.train import of_train, requested
from metarl.commands.tune.telling import finish
from metarl.spec import Spec
from metarl.training import TrainingError
from metarl.tuning import Search, StudyError, search, trials
from metarl.tuning.budget import Budget, parse_budget
from metarl.tuning.trials import Objective, objective

optuna = pytest.importorskip("optuna")

SPACE = {"algorithm": {"step_size": {"low": 0.001, "high": 0.1, "log": True}}}
Captured = pytest.CaptureFixture[str]


def experiment(iterations: int = 4, **options: Any) -> metarl.Experiment:
    settings = metarl.Settings(
        iterations=iterations, meta_batch_size=2, validate_every=2, validation_tasks=2, validation_steps=1, **options
    )
    small = metarl.MAML(network=metarl.Network(hidden=(4,)))
    return metarl.Experiment(small, "sinusoid", settings=settings, references=("maml", "sinusoid", "adam"))


def states(found: tuning.Tuned) -> list[str]:
    return [row["state"] for row in found.trials]


def test_every_trial_is_a_run_and_the_best_is_told(tmp_path: Path) -> None:
    found = metarl.tune(experiment(), SPACE, tmp_path / "study", Search(3, pruner="none"))
    assert states(found) == ["complete"] * 3
    values = []
    for row in found.trials:
        run = metarl.open_run(tmp_path / "study" / row["folder"])
        assert (run.iteration, run.algorithm.step_size) == (4, row["algorithm.step_size"])
        points = runs.read_curve(tmp_path / "study" / row["folder"])
        assert [point["iteration"] for point in points] == [2, 4]
        values.append(min(point["metrics"]["loss/step_1"]["mean"] for point in points))
        assert row["value"] == values[-1]
        assert row["parameters"] == 13
    best = values.index(min(values))
    assert found.value == values[best]
    assert found.best is not None
    assert found.best.algorithm.step_size == found.trials[best]["algorithm.step_size"]
    assert found.options == {"algorithm": {"step_size": found.best.algorithm.step_size}}
    assert (found.objective, found.signal) == (Objective("loss/step_1", False), None)
    with (tmp_path / "study" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == values


def test_the_same_seed_tries_the_same_options_and_another_seed_others(tmp_path: Path) -> None:
    tried = [
        [row["algorithm.step_size"] for row in metarl.tune(experiment(2, seed=seed), SPACE, out, Search(2)).trials]
        for seed, out in ((0, tmp_path / "a"), (0, tmp_path / "b"), (1, tmp_path / "c"))
    ]
    assert tried[0] == tried[1]
    assert set(tried[0]).isdisjoint(tried[2])


def test_a_study_goes_on_to_its_budget_and_is_done(tmp_path: Path) -> None:
    whole = metarl.tune(experiment(2), SPACE, tmp_path / "whole", Search(3))
    for budget, number in ((2, 2), (3, 3), (3, 3), (1, 3)):
        found = metarl.tune(experiment(2), SPACE, tmp_path / "parts", Search(budget))
        assert len(found.trials) == number
    assert [row["value"] for row in found.trials] == [row["value"] for row in whole.trials]


def test_a_trial_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = metarl.tune(experiment(), SPACE, tmp_path / "whole", Search(2))
    with monkeypatch.context() as patched:
        asked = trials.Watching.__call__

        def interrupted(watching: Any, iteration: Any) -> bool:
            if (watching.trial.number, iteration.progress.iteration) == (1, 2):
                signal.raise_signal(signal.SIGINT)
            return asked(watching, iteration)

        patched.setattr(trials.Watching, "__call__", interrupted)
        stopped = metarl.tune(experiment(), SPACE, tmp_path / "study", Search(2))
    assert (stopped.signal, states(stopped)) == (signal.SIGINT, ["complete", "running"])
    assert metarl.open_run(tmp_path / "study" / "trial-0001").iteration == 2
    found = metarl.tune(experiment(), SPACE, tmp_path / "study", Search(2))
    assert found.signal is None
    assert states(found) == ["complete", "complete"]
    assert found.trials[1]["value"] == pytest.approx(whole.trials[1]["value"])


KILLED = """
import os, sys
import metarl
from metarl.tuning import Search, trials
sys.path.insert(0, {tests!r})
from test_search import SPACE, experiment

asked = trials.Watching.__call__
def killed(watching, iteration):
    asked(watching, iteration)
    if iteration.progress.iteration == 3:
        os._exit(9)

trials.Watching.__call__ = killed
metarl.tune(experiment(checkpoint_every=1), SPACE, {out!r}, Search(2))
"""


def test_a_trial_of_a_killed_process_goes_on(tmp_path: Path) -> None:
    code = KILLED.format(tests=os.path.dirname(__file__), out=str(tmp_path / "study"))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 9, ended.stderr
    found = metarl.tune(experiment(checkpoint_every=1), SPACE, tmp_path / "study", Search(2))
    assert states(found) == ["complete", "complete"]
    whole = metarl.tune(experiment(checkpoint_every=1), SPACE, tmp_path / "whole", Search(2))
    assert [row["value"] for row in found.trials] == [pytest.approx(row["value"]) for row in whole.trials]


def test_a_trial_that_was_trained_but_not_told_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(trials.Objective, "value", lambda self, curve: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            metarl.tune(experiment(), SPACE, tmp_path / "study", Search(1))
    found = metarl.tune(experiment(), SPACE, tmp_path / "study", Search(1))
    assert states(found) == ["complete"]
    assert found.value == found.trials[0]["value"]


def test_the_study_prunes_and_the_run_stops_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_pruner", lambda course: optuna.pruners.ThresholdPruner(upper=-1.0))
    found = metarl.tune(experiment(6), SPACE, tmp_path / "study", Search(1))
    assert states(found) == ["pruned"]
    assert metarl.open_run(tmp_path / "study" / "trial-0000").iteration == 2
    assert (found.best, found.signal) == (None, None)


@pytest.mark.parametrize("pruner", ["median", "halving", "none"])
def test_pruners_are_those_of_optuna(tmp_path: Path, pruner: Any) -> None:
    assert states(metarl.tune(experiment(2), SPACE, tmp_path / "study", Search(1, pruner=pruner))) == ["complete"]


def test_options_that_do_not_go_together_fail_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"algorithm": {"network": {"architecture": {"choices": ["mlp", "conv4"]}}}}
    monkeypatch.setattr(search, "MOST_REFUSED", 9)
    found = metarl.tune(experiment(2), space, tmp_path / "study", Search(6))
    told = {row["algorithm.network.architecture"]: (row["state"], row["reason"]) for row in found.trials}
    assert told["mlp"] == ("complete", None)
    assert told["conv4"][0] == "failed"
    assert told["conv4"][1].startswith("conv4 reads images [channel, height, width]")
    assert found.best is not None
    assert found.best.algorithm.network.architecture == "mlp"


def test_options_that_each_are_right_but_not_together_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_REFUSED", 9)
    space = {"network": {"architecture": {"choices": ["mlp", "conv4"]}, "activation": {"choices": ["relu", "tanh"]}}}
    found = metarl.tune(experiment(2), {"algorithm": space}, tmp_path / "study", Search(12))
    reasons = {row["reason"] for row in found.trials if row["algorithm.network.activation"] == "tanh"}
    assert any("activation='tanh': conv4 does not read that" in reason for reason in reasons if reason)
    assert found.best is not None


def test_the_bar_shows_trials_and_parts_of_them() -> None:
    ended, told = [0.0], list[float]()
    course: Any = SimpleNamespace(budget=Budget(4, None), used=lambda: ended[0])
    report = search._shown(course, told.append)
    for ended[0], share in ((0.25, 0.5), (0.25, 1.0), (0.5, 0.5), (0.5, 1.0)):
        report(share)
    assert told == [0.125, 0.25, 0.375, 0.5]


def test_training_that_diverges_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(*arguments: Any) -> Any:
        raise TrainingError("the meta-gradient was not finite")

    monkeypatch.setattr(trials, "_trained", diverged)
    monkeypatch.setattr(search, "MOST_FAILED", 3)
    with pytest.raises(StudyError, match="3 trials in a row could not be trained; the last one: the meta-gradient was"):
        metarl.tune(experiment(), SPACE, tmp_path / "study", Search(9))


def test_trials_that_do_not_learn_do_not_warn(tmp_path: Path) -> None:
    """Warnings are errors in tests. The error of this one is far beyond that of not adapting."""
    found = metarl.tune(experiment(), {"algorithm": {"step_size": {"low": 90.0, "high": 99.0}}}, tmp_path, Search(1))
    assert found.value > 1e4 or states(found) == ["failed"]


def test_another_error_is_raised_and_its_trial_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("the robot is broken")

    with monkeypatch.context() as patched:
        patched.setattr(trials, "_trained", broken)
        with pytest.raises(RuntimeError, match="robot"):
            metarl.tune(experiment(), SPACE, tmp_path / "study", Search(1))
    assert states(metarl.tune(experiment(), SPACE, tmp_path / "study", Search(1))) == ["failed"]


WIDTHS = {"algorithm": {"network": {"hidden": {"choices": [[4], [5], [200], [300], [400], [500]]}}}}


def test_neither_too_large_proposals_nor_those_of_before_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_REFUSED", 40)
    found = metarl.tune(experiment(2), WIDTHS, tmp_path / "study", Search(4, max_parameters=16))
    assert states(found) == ["complete"] * 2
    assert sorted(row["parameters"] for row in found.trials) == [13, 16]
    assert len(list((tmp_path / "study").glob("trial-*"))) == 2
    assert found.value == min(row["value"] for row in found.trials)


def test_a_space_of_too_large_networks_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_REFUSED", 5)
    with pytest.raises(StudyError, match="5 proposals in a row had more than 12 parameters"):
        metarl.tune(experiment(2), WIDTHS, tmp_path / "study", Search(4, max_parameters=12))


def test_a_time_is_a_budget_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials take 25 minutes each: the third one begins before the hour is over, the fourth one would not."""
    now, trained = [0.0], search.run_trial

    def after_a_while(*arguments: Any) -> Any:
        now[0] += 1500
        return trained(*arguments)

    monkeypatch.setattr(search, "run_trial", after_a_while)
    monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found = metarl.tune(experiment(2), SPACE, tmp_path / "study", Search("1h"))
    assert states(found) == ["complete"] * 3


@pytest.mark.parametrize(
    ("text", "budget"),
    [(3, Budget(3, None)), ("40", Budget(40, None)), ("90s", Budget(None, 90)), ("1.5h", Budget(None, 5400)),
     ("2d", Budget(None, 172_800)), ("90 m", None), ("0", None), ("-1", None), ("1.5", None), ("h", None), ("", None)],
)  # fmt: skip
def test_budgets(text: str | int, budget: Budget | None) -> None:
    if budget is not None:
        assert parse_budget(text) == budget
        return
    with pytest.raises(ValueError, match=r"expected a number of trials, such as 40, or a time, such as 90m or 2h"):
        Search(text)  # type: ignore[arg-type]


def test_shares_of_budgets() -> None:
    assert [Budget(4, None).share(trials, 1e9) for trials in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert [Budget(None, 60).share(1e9, seconds) for seconds in (0, 15, 60, 99)] == [0, 0.25, 1, 1]


def test_what_is_searched_for_follows_from_the_kind_of_tasks() -> None:
    assert objective(Spec((1,), 1, "continuous"), 2) == Objective("return/step_2", True)
    assert objective(Spec((1,), 2, "discrete"), 0) == Objective("return/step_0", True)
    assert objective(Spec((1,), 2, "classification"), 3) == Objective("accuracy/step_3", True)
    assert objective(Spec((1,), 2, "regression"), 3) == Objective("loss/step_3", False)


def test_the_best_validation_counts_and_what_is_not_finite_does_not() -> None:
    curve = [{"iteration": n, "metrics": {"x": {"mean": v}}} for n, v in ((1, 3.0), (2, 1.0), (3, math.nan), (4, 2.0))]
    assert Objective("x", up=True).value(curve) == 3.0
    assert Objective("x", up=False).value(curve) == 1.0
    assert math.isnan(Objective("x", up=False).value(curve[2:3]))


def test_returns_go_up(tmp_path: Path) -> None:
    tasks = {"sampling": metarl.Sampling(episodes=2, horizon=2)}
    bandit = dataclasses.replace(metarl.recipe("maml", "bandit").tasks, **tasks)  # type: ignore[type-var]
    settings = metarl.Settings(iterations=1, meta_batch_size=2, validation_tasks=2, validation_steps=1)
    found = metarl.tune(metarl.Experiment("maml", bandit, settings=settings), SPACE, tmp_path / "s", Search(2))
    assert found.value == max(row["value"] for row in found.trials)


def test_a_database_serves(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/study.db"
    for out, number in (("a", 1), ("b", 2)):  # two machines, say
        found = metarl.tune(experiment(2), SPACE, tmp_path / out, Search(number, storage=place))
        assert len(found.trials) == number
        assert len(list((tmp_path / out).glob("trial-*"))) == 1


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "study"
    metarl.tune(experiment(2), SPACE, out, Search(1))
    before = (out / "study.journal").read_bytes()
    other = metarl.Experiment("reptile", "sinusoid", settings=experiment(2).settings)
    for asked, space, options, told in (
        (other, SPACE, {}, "holds a study of maml-sinusoid, and reptile-sinusoid is asked for: choose another --out"),
        (experiment(4), SPACE, {}, "holds a study with settings.iterations=2, and 4 is asked for now"),
        (experiment(2, seed=1), SPACE, {}, "holds a study with settings.seed=0, and 1 is asked for now"),
        (experiment(2), WIDTHS, {}, "holds a study with space.algorithm.step_size="),
        (experiment(2), SPACE, {"max_parameters": 99}, "holds a study with max_parameters=None, and 99 is asked for"),
    ):
        with pytest.raises(StudyError) as caught:
            metarl.tune(asked, space, out, Search(2, **options))  # type: ignore[arg-type]
        assert told in str(caught.value)
        assert (out / "study.journal").read_bytes() == before


@pytest.mark.parametrize("kind", ["journal", "cut", "database"])
def test_damaged_storage_is_told_in_one_line(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "study"
    metarl.tune(experiment(2), SPACE, out, Search(1))
    journal, storage = out / "study.journal", None
    lines = journal.read_bytes().splitlines(keepends=True)
    if kind == "journal":
        journal.write_bytes(b"".join([*lines[:3], b"not json\n", *lines[3:]]))
    elif kind == "cut":
        journal.write_bytes(b"".join([*lines[:3], lines[3][:9], *lines[4:]]))
    else:
        (tmp_path / "study.db").write_bytes(b"no database" * 1000)
        storage = f"sqlite:///{tmp_path}/study.db"
    with pytest.raises(
        StudyError, match=r"cannot be used as the storage of a study .*move it away, or choose"
    ) as error:
        metarl.tune(experiment(2), SPACE, out, Search(2, storage=storage))
    assert "\n" not in str(error.value)


def test_a_line_that_a_killed_process_did_not_finish_is_told(tmp_path: Path) -> None:
    out = tmp_path / "study"
    metarl.tune(experiment(2), SPACE, out, Search(1))
    with (out / "study.journal").open("ab") as file:
        file.write(b'{"op_code":4,')
    with pytest.raises(StudyError, match=r"study\.journal cannot be used .*it ends in the middle of a line"):
        metarl.tune(experiment(2), SPACE, out, Search(2))


def test_a_folder_with_a_run_and_too_rare_validations_are_refused(tmp_path: Path) -> None:
    experiment(1).train(tmp_path / "run")
    with pytest.raises(StudyError, match="contains a run: a search needs a folder of its own"):
        metarl.tune(experiment(), SPACE, tmp_path / "run")
    with pytest.raises(ValueError, match="validate_every=2 is beyond the 1 iterations of a trial"):
        metarl.tune(experiment(1), SPACE, tmp_path / "study")
    with pytest.raises(ValueError, match="pruner='x': expected one of median, halving, none"):
        Search(pruner="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_parameters=0 must be at least 1"):
        Search(max_parameters=0)


LINE = ["tune", "maml", "sinusoid", "--iterations", "2", "--meta-batch-size", "2", "--validation-tasks", "2",
        "--algorithm.hidden", "4", "--device", "cpu"]  # fmt: skip


def test_the_command_prints_how_to_train_the_best_again(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time, nothing is left to do
        assert main([*LINE, "--budget", "2", "--algorithm.step-size", "0.01"]) == DONE
        told = capsys.readouterr().out
        line = next(line for line in told.splitlines() if line.startswith("train it again: "))
        words = shlex.split(line.removeprefix("train it again: "))
        assert words[:4] == ["metarl", "train", "maml", "sinusoid"]
        assert "2 trials: 2 complete, 0 pruned, 0 failed" in told
    with Path("runs/tune-maml-sinusoid/trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = min(rows, key=lambda row: float(row["value"]))
    assert "algorithm.step_size" not in best, "it was given"
    asked, _ = requested("maml", "sinusoid", words[4:], "train", of_train)
    config = runs.read_config(Path("runs/tune-maml-sinusoid") / best["folder"])
    record = json.loads(json.dumps(asked.record()))
    assert {name: record[name] for name in ("algorithm", "outer", "settings")} == {
        name: config[name] for name in ("algorithm", "outer", "settings")
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (0, 130)])
def test_a_search_that_was_stopped_tells_how_to_go_on(tmp_path: Path, capsys: Captured, number: int, code: int) -> None:
    row = {"trial": 0, "state": "running", "value": 1.0, "parameters": 13, "algorithm.step_size": 0.1}
    found = tuning.Tuned(None, math.nan, {}, Objective("loss/step_1", False), [row], tmp_path, number)
    assert finish(found, [], ["metarl", "tune", "maml", "my module:family"]) == code
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"1 trials: 0 complete, 0 pruned, 0 failed; {tmp_path / 'trials.csv'} has them all",
        "stopped; the study is saved. Go on with: metarl tune maml 'my module:family'",
    ]


@pytest.mark.slow
def test_several_processes_share_a_study_as_torchrun_starts_them(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "metarl", *LINE, "--budget", "4", "--out", "study"]
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    processes = [
        subprocess.Popen(
            line, cwd=tmp_path, env=os.environ | ranks | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [DONE, DONE], "\n".join(told)
    study = optuna.load_study(
        study_name="maml-sinusoid",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "study" / "study.journal"))
        ),
    )
    assert len(study.trials) in (4, 5), "each process may begin one at the end"
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}
    assert len({trial.params["algorithm.step_size"] for trial in study.trials}) == len(study.trials)
    assert len(list((tmp_path / "study").glob("trial-*"))) == len(study.trials)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--space", "nowhere"], "no search space is called 'nowhere'"),
        (["--budget", "soon"], "budget='soon': expected a number of trials"),
        (["--pruner", "x"], "pruner"),
        (["--seeds", "1", "2"], "Unrecognized options: --seeds"),
        (["--algorithm.step", "1"], "Unrecognized options: --algorithm.step"),
    ],
)
def test_wrong_requests_take_one_line(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*LINE, *words]) == WRONG
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_a_line_says_how_to_get_it(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(LINE) == WRONG
    assert 'tuning needs Optuna: pip install "metarl-toolkit[tune]"' in capsys.readouterr().err
    assert main(["tune", "maml"]) == WRONG
    assert "tune needs an algorithm and tasks" in capsys.readouterr().err


def test_optuna_is_not_taken_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "optuna.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "optuna")
    tuning.check_installed()
