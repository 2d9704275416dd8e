"""A checkpoint that is not as it was written is refused by name, and the one before it is there to go on from."""

import json
import os
import random
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl import open_run, runs, training
from metarl.algorithms.maml import MAML
from metarl.control.tasks import Sampling
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.runs import checkpoints
from metarl.runs.checkpoints import load_progress
from metarl.runs.layout import RunError
from metarl.runs.records import read_record, write_record
from metarl.training.callbacks import KeepCheckpoints
from metarl.training.settings import Settings
from metarl_envs.bandit import Bandit

ALGORITHM, FAMILY = MAML(network=Network(hidden=(4,))), Bandit(arms=2, sampling=Sampling(episodes=2, horizon=3))
CONTENTS = {
    "iteration": 3, "params": {"w": torch.arange(300.0), "b": torch.ones(2)}, "outer": {"count": 2}, "best": -1.5,
    "refused": 0, "buffers": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six iterations, with checkpoints of 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = Settings(6, 2, device="cpu", checkpoint_every=2)
    training.train(ALGORITHM, FAMILY, Adam(), settings, folder, callbacks=[KeepCheckpoints(2)])
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def flip(path: Path, bit: int) -> None:
    contents = bytearray(path.read_bytes())
    contents[bit // 8] ^= 1 << bit % 8
    path.write_bytes(contents)


def test_a_checkpoint_is_read_again_before_it_is_kept_only_where_somebody_else_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, previous, read = tmp_path / "checkpoint.pt", tmp_path / "previous.pt", list[int]()
    check = checkpoints._check_hash
    monkeypatch.setattr(checkpoints, "_check_hash", lambda contents: (read.append(len(contents)), check(contents)))
    for number in range(3):
        runs.save_checkpoint(path, CONTENTS | {"iteration": number}, keep=previous)
    assert read == []
    assert load_progress(previous)["iteration"] == 1
    read.clear()
    flip(path, 2000)  # at once, within the file system's clock
    runs.save_checkpoint(path, CONTENTS | {"iteration": 3}, keep=previous)
    assert len(read) == 1
    assert load_progress(previous)["iteration"] == 1, "a damaged one is not kept"
    read.clear()
    shutil.copy(previous, path)
    runs.save_checkpoint(path, CONTENTS | {"iteration": 4}, keep=previous)
    assert len(read) == 1, "another file"
    assert load_progress(previous)["iteration"] == 1


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    runs.save_checkpoint(path, CONTENTS)
    size, draws = 8 * path.stat().st_size, random.Random(0)
    whole = path.read_bytes()
    last = range(size - 8 * 100, size)  # the hash itself, and the end of the archive
    for bit in {*(draws.randrange(size) for _ in range(400)), *last}:
        flip(path, bit)
        with pytest.raises(RunError, match=rf"{path} cannot be read; it may be truncated, damaged, or"):
            runs.load_checkpoint(path)
        path.write_bytes(whole)
    assert runs.load_checkpoint(path)["iteration"] == 3


def test_others_read_it_as_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    runs.save_checkpoint(path, CONTENTS)
    for options in ({}, {"mmap": True}):
        assert torch.equal(torch.load(path, weights_only=True, **options)["params"]["w"], CONTENTS["params"]["w"])  # type: ignore[index, arg-type]
    with zipfile.ZipFile(path) as archive:
        assert archive.comment.startswith(b"metarl sha256 ")
        assert archive.testzip() is None


def test_what_has_no_hash_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 1, **CONTENTS}, path)
    assert load_progress(path)["iteration"] == 3


def test_the_checkpoint_before_the_last_is_kept_and_is_one_to_go_on_from(run: Path, trained: Path) -> None:
    assert load_progress(run / "previous.pt")["iteration"] == 4
    assert open_run(run, "previous").iteration == 4
    flip(run / "checkpoint.pt", 8000)
    told = (
        f"{run}/checkpoint.pt cannot be read; .*the one before it, of iteration 4, is intact: to use it, rename {run}/"
    )
    for action in (lambda: training.resume(run, iterations=8), lambda: open_run(run)):
        with pytest.raises(RunError, match=told):
            action()
    (run / "checkpoint.pt").unlink()
    with pytest.raises(RunError, match=r"does not exist.*the one before it, of iteration 4, is intact"):
        training.resume(run)
    (run / "previous.pt").rename(run / "checkpoint.pt")
    training.resume(run)
    one, other = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (run, trained))
    assert one["iteration"] == other["iteration"] == 6
    assert all(torch.equal(value, other["params"][name]) for name, value in one["params"].items())


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one(run: Path) -> None:
    def damage(told: Any) -> None:
        if told.progress.iteration == 7:
            flip(run / "checkpoint.pt", 8000)

    training.resume(run, iterations=8, callbacks=[damage])
    assert load_progress(run / "checkpoint.pt")["iteration"] == 8
    assert load_progress(run / "previous.pt")["iteration"] == 4


def test_without_hard_links_the_one_before_is_a_copy(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(source: Any, target: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    training.resume(run, iterations=8)
    assert load_progress(run / "previous.pt")["iteration"] == 6
    assert not list(run.glob("*.tmp"))


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iteration": None}, "iteration is None"), ({"iteration": "3"}, "iteration is '3'"),
        ({"iteration": -1}, "iteration is -1"), ({"iteration": 2**60}, "iteration is 11"),
        ({"iteration": 3.0}, r"iteration is 3\.0"), ({"iteration": True}, "iteration is True"),
        ({"iteration": torch.tensor(3)}, r"iteration is tensor\(3\)"), ({"refused": -1}, "refused is -1"),
        ({"best": "high"}, "best is 'high'"), ({"params": None}, "params is None"), ({"params": {"w": 3}}, "params is"),
        ({"params": {3: torch.ones(2)}}, "params is"), ({"outer": [1]}, r"outer is \[1\]"),
        ({"params": {"w": torch.tensor([1.0, NAN])}}, "numbers that are not finite in the parameter w"),
        ({"params": {"w": torch.tensor([1.0, -INFINITE])}}, "numbers that are not finite in the parameter w"),
        ({"buffers": [1]}, r"buffers is \[1\]"), ({"buffers": {"b": 1}}, "buffers is"),
        ({"buffers": {"b": torch.tensor(NAN)}}, "numbers that are not finite in the parameter b"),
        *(({name: ...}, f"{name} is missing") for name in CONTENTS),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = tmp_path / "best.pt"
    changed = {name: value for name, value in (CONTENTS | changes).items() if value is not ...}
    runs.save_checkpoint(path, changed)
    with pytest.raises(RunError, match=f"{path} (is damaged: |has ){told}") as caught:
        load_progress(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda outer: outer.pop("count"), "its state has no count"),
        (lambda outer: outer.update(count="3"), "count of its state is str, not a number"),
        (lambda outer: outer.update(count=NAN), "count of the outer update's state is not a number"),
        (lambda outer: outer.update(first=3.0), "first of its state is a number, not torch.float32"),
        (lambda outer: outer.update(first=outer["first"][:-1]), "first of its state is torch.float32"),
        (lambda outer: outer.update(first=outer["first"].double()), "first of its state is torch.float64"),
        (lambda outer: outer["second"].fill_(NAN), "second of the outer update's state is not a number"),
    ],
)
def test_the_optimisers_state_is_checked(run: Path, change: Any, told: str) -> None:
    path = run / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    change(saved["outer"])
    torch.save(saved, path)
    with pytest.raises(RunError, match=f"{path} is damaged.*{told}"):
        training.resume(run, iterations=9)


@pytest.mark.parametrize("which", ["checkpoint-2", "checkpoint-2.pt"])
def test_kept_checkpoints_are_opened(trained: Path, which: str) -> None:
    assert open_run(trained, which).iteration == 2


@pytest.mark.parametrize("which", ["checkpoint-3", "../checkpoint", "first", "", "config.json", "last.pt", 3])
def test_others_are_refused_and_those_that_there_are_named(trained: Path, which: Any) -> None:
    names = "last, best, validated, previous or checkpoint-ITERATION"
    with pytest.raises(RunError, match=f"expected one of {names}; .* also has checkpoint-2, checkpoint-4, "):
        open_run(trained, which)


def test_a_record_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    contents = {"a": [1, 2.5, NAN], "b": {"2": (True, None, "ä")}, "sizes": {3: 4}}
    write_record(path, contents)
    read = read_record(path)
    assert read["b"] == {"2": [True, None, "ä"]}
    write_record(path, {"number": 0.1, "name": "a"})
    whole = path.read_bytes()
    found = 0
    for bit in range(8 * len(whole)):
        flip(path, bit)
        try:
            assert read_record(path) == {"number": 0.1, "name": "a"}  # white space
        except RunError as error:
            found += 1
            assert str(path) in str(error)
        except AssertionError:
            assert b'"sha256"' not in path.read_bytes(), "only without a checksum are other contents read"
        path.write_bytes(whole)
    assert found > 7 * len(whole)
    path.write_text(json.dumps({"number": 0.2}))
    assert read_record(path) == {"number": 0.2}


@pytest.mark.parametrize("text", ["[" * 200_000, "{" + '"a":{' * 60 + "}" * 61, "[" * 51 + "]" * 51, "1" * 5000])
def test_deep_and_monstrous_records_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"config\.json cannot be read"):
        runs.read_config(tmp_path)


def test_records_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(RunError, match=r"config\.json cannot be read: it is larger than"):
        runs.read_config(tmp_path)


@pytest.mark.benchmark
def test_the_hash_takes_a_small_part_of_the_time_of_saving(tmp_path: Path) -> None:
    path, contents = tmp_path / "x.pt", CONTENTS | {"params": {"w": torch.randn(2_500_000)}}
    for name, save in {
        "plain": lambda: torch.save(contents, path),
        "hashed and kept": lambda: runs.save_checkpoint(path, contents, keep=tmp_path / "previous.pt"),
        "hashed": lambda: runs.save_checkpoint(path, contents),
    }.items():
        times = []
        for _ in range(9):
            began = time.perf_counter()
            save()
            times.append(time.perf_counter() - began)
        print(f"{name}: {1000 * sorted(times)[4]:.1f} ms for 10 MB")
