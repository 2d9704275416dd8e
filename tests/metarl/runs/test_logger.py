"""progress.csv keeps its columns and loses no row, TensorBoard shows no step twice."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer import event_file_writer

from metarl import runs
from metarl.control.sampling import Sampling
from metarl.files import write_json
from metarl.runs import layout, logger
from metarl.runs.logger import read_progress
from metarl.runs.writers import ProgressCSV
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl_envs.bandit import Bandit


@pytest.fixture(autouse=True)
def ordered_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads its files by name: second, process, number. One process reopens within a second here."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "progress.csv"
    assert not list(tmp_path.glob("*tmp"))


def test_rows_are_appended_in_the_order_of_their_first_columns(path: Path) -> None:
    csv = ProgressCSV(path, [])
    assert path.read_text() == ""
    csv.write({"iteration": 1, "b": 0.5}, {})
    csv.write({"b": 0.25, "iteration": 2}, {})
    assert path.read_text() == "iteration,b\n1,0.5\n2,0.25\n"


def test_new_columns_come_after_the_old_ones_and_are_blank_before(path: Path) -> None:
    csv = ProgressCSV(path, [])
    csv.write({"iteration": 1, "z": 1}, {})
    csv.write({"iteration": 2, "a": 3, "z": 2}, {})
    csv.write({"iteration": 3}, {})
    assert path.read_text() == "iteration,z,a\n1,1,\n2,2,3\n3,,\n"
    csv = ProgressCSV(path, read_progress(path)[:1])
    assert path.read_text() == "iteration,z,a\n1,1,\n"


def test_numbers_are_written_exactly(path: Path) -> None:
    values = {"iteration": 1, "third": 1 / 3, "tiny": 5e-324, "big": 2.0**70, "negative": -0.1}
    ProgressCSV(path, []).write(values, {})
    (row,) = read_progress(path)
    assert {name: float(value) for name, value in row.items()} == values


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        ("iterat", []),
        ("iteration,a", []),
        ("iteration,a\n", []),
        ("iteration,a\n1,2\n3", [{"iteration": "1", "a": "2"}]),
        ("iteration,a\n1,2\n3,4", [{"iteration": "1", "a": "2"}]),
        ("iteration,a\n1,2\n3,4\n", [{"iteration": "1", "a": "2"}, {"iteration": "3", "a": "4"}]),
    ],
)
def test_a_last_line_without_its_end_is_left_out(path: Path, text: str, rows: list[dict[str, str]]) -> None:
    path.write_text(text)
    assert read_progress(path) == rows


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "progress.csv") == []


def test_a_row_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    csv = ProgressCSV(tmp_path / "progress.csv", [])
    csv.write({"iteration": 1}, {})
    csv.path.unlink()
    csv.path.mkdir()
    with pytest.raises(OSError, match=f"could not write {csv.path}: Is a directory"):
        csv.write({"iteration": 2}, {})


def steps(folder: Path) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars("a")]


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_what_comes_after_the_iteration_is_struck_when_files_are_opened(tmp_path: Path, kept: int) -> None:
    def write(start: int, stop: int, value: float) -> None:
        files = logger.open_files(tmp_path, start)
        for iteration in range(start + 1, stop + 1):
            logger.dump(files, {"iteration": iteration, "a": value}, iteration)
        files.close()

    write(0, 3, 1.0)
    assert steps(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0)]
    write(kept, 4, 2.0)
    expected = [(step, 1.0 if step <= kept else 2.0) for step in range(1, 5)]
    assert steps(tmp_path) == expected
    assert [(int(row["iteration"]), float(row["a"])) for row in read_progress(tmp_path / "progress.csv")] == expected


def test_a_new_run_has_one_file_of_events(tmp_path: Path) -> None:
    logger.open_files(tmp_path, 0).close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_the_table_shows_the_last_values(capsys: pytest.CaptureFixture[str]) -> None:
    table = logger.open_table()
    values: dict[str, Any] = {"iteration": 3, "return/step_0": -40.25, "time/environment_steps_per_second": 1234.0}
    logger.dump(table, values, 3)
    told = capsys.readouterr().out
    assert "step_0" in told
    assert "-40.2" in told
    assert "environment_steps_per_second" in told


def test_the_table_counts_steps(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["accuracy/step_1", "accuracy/instance_10", "accuracy/instance_2", "accuracy/instance_1", "accuracy/steps"]
    logger.dump(logger.open_table(), dict.fromkeys(names, 0.5), 1)
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "0.5" in line]
    assert told == ["instance_1", "instance_2", "instance_10", "step_1", "steps"]


# Hyper-parameters

CONFIG = {
    "format": layout.FORMAT,
    "algorithm": {"reference": "maml", "options": {"step_size": 0.5, "first_order": True, "schedule": [1.0, 0.5]}},
    "tasks": {"reference": "bandit", "options": {"arms": 3, "sampling": {"episodes": 2}}},
    "outer": {"reference": "metarl.outer:TRPO", "options": {}},
    "settings": {"iterations": 3, "wandb": None},
}


def test_hyperparameters_have_dotted_names() -> None:
    assert logger.hyperparameters(CONFIG) == {
        "algorithm": "maml", "tasks": "bandit", "outer": "metarl.outer:TRPO", "algorithm.step_size": 0.5,
        "algorithm.first_order": True, "algorithm.schedule": "[1.0, 0.5]", "tasks.arms": 3,
        "tasks.sampling.episodes": 2, "settings.iterations": 3, "settings.wandb": "None",
    }  # fmt: skip
    assert logger.hyperparameters({}) == {}


def written(folder: Path, start: int, stop: int) -> None:
    files = logger.open_files(folder, start)
    for iteration in range(start + 1, stop + 1):
        logger.dump(files, {"iteration": iteration, "return/step_0": 1.0, "return/step_1": iteration}, iteration)
    files.close()


def test_tensorboard_has_hyperparameters_and_their_metrics(tmp_path: Path) -> None:
    write_json(tmp_path / runs.CONFIG, CONFIG)
    for start, stop in ((0, 2), (1, 3)):
        written(tmp_path, start, stop)
        told = EventAccumulator(str(tmp_path)).Reload()
        contents = told.summary_metadata
        session = plugin_data_pb2.HParamsPluginData.FromString(
            contents["_hparams_/session_start_info"].plugin_data.content
        )
        experiment = plugin_data_pb2.HParamsPluginData.FromString(contents["_hparams_/experiment"].plugin_data.content)
        assert session.session_start_info.hparams["algorithm.step_size"].number_value == 0.5
        assert session.session_start_info.hparams["tasks"].string_value == "bandit"
        metrics = [metric.name.tag for metric in experiment.experiment.metric_infos]
        assert metrics == ["return/step_0", "return/step_1"]
        assert [event.value for event in told.Scalars("return/step_1")] == list(range(1, stop + 1))


# The adaptation curve


def test_tensorboard_has_the_adaptation_curve_of_the_last_evaluation(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4), (255, 0, 0)).save(tmp_path / "adaptation.png")
    for shift in (0.0, 5.0):
        metrics = {
            f"return/step_{step}": {"mean": step + shift, "low": step - 1.0, "high": step + 9.0} for step in (0, 1, 2)
        }
        metrics["accuracy/instance_1"] = metrics["return/step_0"]
        logger.write_adaptation(tmp_path, metrics, tmp_path / "adaptation.png")
    told = EventAccumulator(str(tmp_path / "adaptation")).Reload()
    tags = ["adaptation/return", "adaptation/return_high", "adaptation/return_low"]
    assert sorted(told.Tags()["scalars"]) == tags
    assert [(event.step, event.value) for event in told.Scalars(tags[0])] == [(0, 5.0), (1, 6.0), (2, 7.0)]
    assert [event.value for event in told.Scalars(tags[2])] == [-1.0, 0.0, 1.0]
    (image,) = told.Images("adaptation/curve")
    assert (image.width, image.height) == (8, 4)
    assert not list(tmp_path.glob("events.out.tfevents.*"))


# Weights & Biases


class FakeWandb:
    """What metarl uses of the package wandb; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def init(self, **options: Any) -> SimpleNamespace:
        self.told.append(options)
        return SimpleNamespace(
            log=lambda row, step: self.told.append((step, row)), finish=lambda: self.told.append("finished")
        )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_rows_are_sent_to_weights_and_biases_and_a_resumed_run_goes_on_there(tmp_path: Path, wandb: FakeWandb) -> None:
    config = CONFIG | {"settings": {"iterations": 3, "wandb": "mine"}}
    write_json(tmp_path / runs.CONFIG, config)
    written(tmp_path, 0, 1)
    written(tmp_path, 1, 2)
    first, row, finished, second, again, _ = wandb.told
    assert first == {
        "project": "mine", "name": tmp_path.name, "id": (tmp_path / layout.WANDB).read_text(), "resume": "allow",
        "config": config, "dir": str(tmp_path),
    }  # fmt: skip
    assert row == (1, {"iteration": 1, "return/step_0": 1.0, "return/step_1": 1})
    assert {type(name) for name in row[1]} == {str}
    assert (finished, second, again[0]) == ("finished", first, 2)


def test_nothing_is_sent_unasked(tmp_path: Path, wandb: FakeWandb) -> None:
    write_json(tmp_path / runs.CONFIG, CONFIG)
    written(tmp_path, 0, 1)
    assert wandb.told == []
    assert not (tmp_path / layout.WANDB).exists()


def test_training_sends_and_a_replaced_run_has_another_identity(tmp_path: Path, wandb: FakeWandb) -> None:
    family = Bandit(sampling=Sampling(episodes=2, horizon=1))
    settings = Settings(iterations=2, meta_batch_size=2, wandb="mine")
    for _ in range(2):
        train("maml", family, settings=settings, out=tmp_path / "run", overwrite=True)
    identities = [told["id"] for told in wandb.told if isinstance(told, dict)]
    assert len(set(identities)) == 2
    assert [told[0] for told in wandb.told if isinstance(told, tuple)] == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="wandb='mine' needs a run folder"):
        train("maml", family, settings=settings)


OFFLINE = """
import metarl
from metarl_envs.bandit import Bandit

settings = metarl.Settings(iterations={iterations}, meta_batch_size=2, {name}="mine")
if {iterations} == 2:
    metarl.train("maml", Bandit(sampling=metarl.Sampling(episodes=2, horizon=1)), settings=settings, out="run")
else:
    metarl.resume("run", iterations={iterations})
"""


def offline(folder: Path, name: str, iterations: int, **variables: str) -> None:
    """Train, or go on, in a process of its own: the real packages start threads and processes."""
    code = OFFLINE.format(name=name, iterations=iterations)
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_weights_and_biases_keeps_rows_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    for iterations in (2, 3):
        offline(tmp_path, "wandb", iterations, WANDB_MODE="offline")
    identity = (tmp_path / "run" / layout.WANDB).read_text()
    kept = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(kept) == 2, "each process keeps a file, of the same identity"
    assert b"return/step_1" in kept[0].read_bytes()


@pytest.mark.slow
def test_mlflow_keeps_rows_in_files(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    place = {"MLFLOW_TRACKING_URI": f"file:{tmp_path}/kept", "MLFLOW_ALLOW_FILE_STORE": "true", "DO_NOT_TRACK": "true"}
    for iterations in (2, 3):
        offline(tmp_path, "mlflow", iterations, **place)
    identity = (tmp_path / "run" / layout.MLFLOW).read_text()
    (run,) = (tmp_path / "kept").glob(f"*/{identity}")
    told = [line.split() for line in (run / "metrics/return/step_1").read_text().splitlines()]
    rows = read_progress(tmp_path / "run/progress.csv")
    assert [int(step) for _, _, step, *_ in told] == [1, 2, 3], "each row once, also of a run that went on"
    assert [float(value) for _, value, *_ in told] == pytest.approx([float(row["return/step_1"]) for row in rows])
    assert (run / "params/tasks.sampling.episodes").read_text() == "2"
    assert "status: 3" in (run / "meta.yaml").read_text(), "it has finished"


class RefusedError(Exception):
    """MLflow's error, of the fake."""


class FakeMlflow:
    """What metarl uses of the package mlflow; remembers what it was told, until it is broken."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.steps: list[int] = []
        self.broken = ""
        self.exceptions = SimpleNamespace(MlflowException=RefusedError)
        kind = lambda name: lambda *values: (name, *values)  # noqa: E731
        self.entities = SimpleNamespace(Param=kind("param"), Metric=lambda name, value, time, step: (name, value, step))

    def MlflowClient(self) -> "FakeMlflow":
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        self._answer(("experiment", name))
        return SimpleNamespace(experiment_id="7")

    def create_run(self, place: str, run_name: str) -> Any:
        self._answer(("run", place, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def update_run(self, run: str, status: str) -> None:
        self._answer((run, status))

    def set_terminated(self, run: str) -> None:
        self._answer((run, "ended"))

    def get_metric_history(self, run: str, name: str) -> list[Any]:
        return [SimpleNamespace(step=step) for step in self.steps]

    def log_batch(self, run: str, params: Any = (), metrics: Any = ()) -> None:
        self._answer((run, *params, *metrics))
        self.steps += [step for name, _, step in metrics if name == "iteration"]

    def _answer(self, told: Any) -> None:
        if self.broken:
            raise RefusedError(self.broken)
        self.told.append(told)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


MLFLOW = CONFIG | {"settings": {"iterations": 3, "mlflow": "mine"}}


def test_rows_are_sent_to_mlflow_once(tmp_path: Path, mlflow: FakeMlflow) -> None:
    write_json(tmp_path / runs.CONFIG, MLFLOW)
    written(tmp_path, 0, 2)
    written(tmp_path, 1, 3)  # row 2 once more, as a run does that was killed after it
    experiment, run, params, *rest = mlflow.told
    assert (experiment, run) == (("experiment", "mine"), ("run", "7", tmp_path.name))
    assert ("param", "algorithm.step_size", "0.5") in params
    row = lambda n: ("abc", ("iteration", float(n), n), ("return/step_0", 1.0, n), ("return/step_1", float(n), n))  # noqa: E731
    assert rest == [row(1), row(2), ("abc", "ended"), ("abc", "RUNNING"), row(3), ("abc", "ended")]


def test_mlflow_that_cannot_be_used_is_told_before_training(tmp_path: Path, mlflow: FakeMlflow) -> None:
    write_json(tmp_path / runs.CONFIG, MLFLOW)
    mlflow.broken = "no such\nserver"
    with pytest.raises(runs.RunError, match="mlflow='mine': MLflow cannot be used: no such server"):
        logger.open_files(tmp_path, 0)


def test_mlflow_that_goes_away_does_not_end_training(tmp_path: Path, mlflow: FakeMlflow) -> None:
    write_json(tmp_path / runs.CONFIG, MLFLOW)
    files = logger.open_files(tmp_path, 0)
    mlflow.broken = "gone"
    with pytest.warns(UserWarning, match=r"MLflow takes no more rows \(gone\): training goes on, and progress.csv has"):
        logger.dump(files, {"iteration": 1, "return/step_0": 1.0}, 1)
    logger.dump(files, {"iteration": 2, "return/step_0": 1.0}, 2)
    files.close()
    assert len(read_progress(tmp_path / "progress.csv")) == 2
