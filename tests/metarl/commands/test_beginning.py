"""Meta-training that starts from another run: ``metarl train --start-from RUN --start-without NAME``."""

from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl import cli, runs
from metarl.algorithms.maml import MAML
from metarl.networks.options import Network
from metarl.seeding import stream

Captured = pytest.CaptureFixture[str]
SMALL = ["--outer", "sgd", "--meta-batch-size", "2", "--algorithm.hidden", "4", "--device", "cpu", "--quiet"]
BANDIT = ["maml", "bandit", *SMALL, "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "3"]


def train(out: Path, *words: Any, iterations: int = 1) -> int:
    return cli.main(["train", *map(str, words), "--iterations", str(iterations), "--out", str(out)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bandit of 5 arms, trained with step sizes of its own."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(out, *BANDIT, "--tasks.arms", 5, "--algorithm.learn-step-sizes", iterations=2) == 0
    return out


def first(folder: Path) -> dict[str, torch.Tensor]:
    """Return the parameters that acted in the first iteration."""
    return dict(runs.load_checkpoint(folder / runs.BEST)["params"])


def refused(capsys: Captured, out: Path, *words: Any) -> str:
    assert train(out, *words) == 2
    assert not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_training_starts_where_another_run_ended(run: Path, tmp_path: Path) -> None:
    same = [*BANDIT, "--tasks.arms", 5, "--algorithm.learn-step-sizes", "--seed", 3]
    assert train(tmp_path / "then", *same, "--start-from", run) == 0
    ended = metarl.open_run(run).params
    begun = first(tmp_path / "then")
    assert set(begun) == set(ended)
    assert all(torch.equal(begun[name], value) for name, value in ended.items())
    assert runs.read_config(tmp_path / "then")["start_from"] == runs.digests(ended)


def test_parts_begin_as_always(run: Path, tmp_path: Path) -> None:
    """Of 3 arms, the last layer and its step sizes have other shapes; what is before it goes on."""
    fewer = [*BANDIT, "--tasks.arms", 3, "--algorithm.learn-step-sizes", "--seed", 3]
    assert train(tmp_path / "then", *fewer, "--start-from", run, "--start-without", "head") == 0
    ended, begun = metarl.open_run(run).params, first(tmp_path / "then")
    trained = metarl.open_run(tmp_path / "then")
    drawn = trained.learner.init(stream(3, "initialisation"))
    anew = {name for name in drawn if "head" in name}
    assert anew == {"head.weight", "head.bias", "step_size:head.weight", "step_size:head.bias"}
    for name, value in begun.items():
        assert torch.equal(value, drawn[name] if name in anew else ended[name]), name


def test_a_learner_may_have_more_than_the_run(run: Path, tmp_path: Path) -> None:
    plainly = [*BANDIT, "--tasks.arms", 5, "--start-from", run, "--start-without", "step_size"]
    assert train(tmp_path / "plain", *plainly) == 0
    learned = [*BANDIT, "--tasks.arms", 5, "--algorithm.learn-step-sizes"]
    assert train(tmp_path / "learned", *learned, "--start-from", tmp_path / "plain") == 0
    begun, plain = first(tmp_path / "learned"), metarl.open_run(tmp_path / "plain").params
    assert all(torch.equal(begun[name], value) for name, value in plain.items())
    assert len(begun) == 2 * len(plain)


def test_statistics_of_observations_go_on(tmp_path: Path) -> None:
    normalised = ["maml", "point-navigation", *BANDIT[2:], "--recipe", "none", "--algorithm.normalise-observations"]
    assert train(tmp_path / "first", *normalised) == 0
    assert train(tmp_path / "then", *normalised, "--start-from", tmp_path / "first") == 0
    before, after = (metarl.open_run(tmp_path / name).buffers for name in ("first", "then"))
    counts = [name for name in before if before[name].ndim == 0]
    assert counts and all(after[name] == 2 * before[name] for name in counts)


def test_every_seed_of_a_group_starts_there(run: Path, tmp_path: Path) -> None:
    group = [*BANDIT, "--tasks.arms", "5", "--algorithm.learn-step-sizes", "--start-from", str(run)]
    out = tmp_path / "group"
    assert cli.main(["train", *group, "--iterations", "1", "--out", str(out), "--seeds", "0", "1", "--jobs", "1"]) == 0
    ended = metarl.open_run(run).params
    for seed in ("seed-0", "seed-1"):
        assert all(torch.equal(first(out / seed)[name], value) for name, value in ended.items())


def test_a_shipped_run_is_a_start(tmp_path: Path) -> None:
    same = ["maml", "sinusoid", "--meta-batch-size", "2", "--device", "cpu", "--quiet"]
    assert train(tmp_path / "then", *same, "--start-from", "pretrained:sinusoid") == 0
    shipped = metarl.open_run("pretrained:sinusoid").params
    assert all(torch.equal(first(tmp_path / "then")[name], value) for name, value in shipped.items())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tasks.arms", "3"], "head.weight has shape (5, 4) where (3, 4) was expected (and so have head.bias"),
        (["--tasks.arms", "3"], "(--start-without) starts as always"),
        (["--start-without", "tail"], "--start-without tail: {run} has no such parameter; it has hidden_0.weight"),
        (["--start-without", "hea"], "--start-without hea: {run} has no such parameter"),
        (["--algorithm.no-learn-step-sizes"], "where no such parameter was expected"),
        (["--algorithm.activation", "tanh"], "activation is relu there and tanh here"),
        (["--algorithm.hidden", "4", "4"], "hidden is [4] there and [4, 4] here"),
    ],
)
def test_what_does_not_fit_is_refused(run: Path, tmp_path: Path, capsys: Captured, words: list[str], told: str) -> None:
    command = [*BANDIT, "--recipe", "none", "--tasks.arms", "5", "--algorithm.learn-step-sizes"]
    assert told.format(run=run) in refused(capsys, tmp_path / "out", *command, "--start-from", run, *words)


def test_nothing_left_and_nothing_there_are_refused(run: Path, tmp_path: Path, capsys: Captured) -> None:
    out, names = tmp_path / "out", list(metarl.open_run(run).params)
    started = [*BANDIT, "--tasks.arms", 5, "--algorithm.learn-step-sizes", "--start-from"]
    assert f"nothing of {run} is left" in refused(capsys, out, *started, run, "--start-without", *names)
    assert "give that too" in refused(capsys, out, *BANDIT, "--start-without", "head")
    assert "does not exist: expected a run folder" in refused(capsys, out, *started, tmp_path / "gone")
    assert "contains no run" in refused(capsys, out, *started, tmp_path)
    assert "no pretrained run is called 'gone'" in refused(capsys, out, *started, "pretrained:gone")


def test_a_group_is_no_start(run: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "group"
    assert cli.main(["train", *BANDIT, "--iterations", "1", "--out", str(out), "--seeds", "0", "--jobs", "1"]) == 0
    capsys.readouterr()
    assert "is a group of seeds; give one of its runs" in refused(
        capsys, tmp_path / "out", *BANDIT, "--start-from", out
    )


def test_a_damaged_checkpoint_is_told(run: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "run").mkdir()
    for name in (runs.CONFIG, runs.CHECKPOINT):
        (tmp_path / "run" / name).write_bytes((run / name).read_bytes())
    contents = bytearray((run / runs.CHECKPOINT).read_bytes())
    contents[len(contents) // 2] ^= 255
    (tmp_path / "run" / runs.CHECKPOINT).write_bytes(contents)
    assert "damaged" in refused(capsys, tmp_path / "out", *BANDIT, "--start-from", tmp_path / "run")


def test_a_network_of_lists_is_the_same_as_one_of_tuples(tmp_path: Path) -> None:
    """Options such as joint are tuples, and lists in the run folder."""
    assert Network().joint == () and MAML().network.joint == ()
    assert train(tmp_path / "first", *BANDIT) == 0
    assert runs.read_config(tmp_path / "first")["algorithm"]["options"]["network"]["joint"] == []
    assert train(tmp_path / "then", *BANDIT, "--start-from", tmp_path / "first") == 0


def test_the_same_command_goes_on_only_from_the_same_start(run: Path, tmp_path: Path, capsys: Captured) -> None:
    out, command = tmp_path / "out", [*BANDIT, "--tasks.arms", 5, "--algorithm.learn-step-sizes"]
    assert train(out, *command, "--start-from", run) == 0
    assert train(out, *command, "--start-from", run, "--resume", iterations=2) == 0
    assert metarl.open_run(out).iteration == 2
    assert train(tmp_path / "other", *command) == 0
    capsys.readouterr()
    for words, told in {
        ("--start-from", tmp_path / "other"): "begun with another start (head.bias differs), and this one is asked for",
        ("--start-from", run, "--start-without", "head"): "begun with another start (head.bias differs), and this one",
        (): "begun with a start (--start-from), and none is asked for now",
    }.items():
        assert train(out, *command, *words, "--resume", iterations=3) == 2
        assert told in capsys.readouterr().err
    assert train(tmp_path / "other", *command, "--start-from", run, "--resume", iterations=3) == 2
    assert "begun with no start, and one (--start-from) is asked for now" in capsys.readouterr().err
    assert metarl.open_run(out).iteration == 2


def test_older_runs_know_the_names_of_their_start(run: Path, tmp_path: Path, capsys: Captured) -> None:
    out, command = tmp_path / "out", [*BANDIT, "--tasks.arms", 5, "--algorithm.learn-step-sizes"]
    assert train(out, *command, "--start-from", run) == 0
    config = runs.read_config(out)
    runs.rewrite_config(out, config | {"start_from": sorted(config["start_from"])})
    assert train(out, *command, "--start-from", run, "--start-without", "head", "--resume", iterations=2) == 2
    assert "another start (head.bias differs)" in capsys.readouterr().err
    assert train(out, *command, "--resume", iterations=2) == 2
    assert train(out, *command, "--start-from", run, "--resume", iterations=2) == 0


def test_digests_tell_numbers_types_and_shapes_apart() -> None:
    value = torch.arange(6.0)
    others = [value + 1, value.double(), value.reshape(2, 3), value.reshape(3, 2), -value, value.bfloat16()]
    found = {runs.digests({"a": one})["a"] for one in (value, *others, torch.tensor(0.0), torch.empty(0))}
    assert len(found) == 9
    assert runs.digests({"a": value}) == runs.digests({"a": value.repeat(2, 1).T[:, 1]})
    assert list(runs.digests({"b": value, "a": value})) == ["a", "b"]
