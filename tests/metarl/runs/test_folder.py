"""Run folders: what they hold, that writing is atomic, that everything recorded can be rebuilt, clear refusals."""

import copy
import dataclasses
import errno
import json
import math
import os
import typing
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import pytest
import torch
from gymnasium import spaces
from torch import nn

from metarl import outer, plugins, runs
from metarl.algorithms.maml import MAML
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.sampling import Sampling
from metarl.files import write_bytes, write_json
from metarl.networks.options import Network
from metarl.runs.folder import RunError
from metarl.types import Learner, Spec
from metarl_envs.bandit import Bandit

RECORD = {"reference": "metarl.algorithms.maml:MAML", "options": {}}
CONFIG = {"algorithm": RECORD, "tasks": RECORD, "outer": RECORD, "settings": {"seed": 3}}
GROUPS: list[plugins.Group] = ["algorithms", "tasks"]
INSTALLED = [(group, plugin.name) for group in GROUPS for plugin in plugins.available(group)]

PENDULUMS = GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)), "attribute")
SMALL = Bandit(arms=2)


@dataclasses.dataclass(frozen=True)
class Varied:
    """An algorithm with options of every kind that can be recorded."""

    schedule: tuple[tuple[int, float], ...] = ((1, 0.5),)
    sampling: Sampling | None = None
    mode: Literal["a", "b"] = "a"
    rate: float | None = 0.1
    words: list[str] = dataclasses.field(default_factory=list)
    table: dict[str, float] = dataclasses.field(default_factory=dict)
    anything: Any = None
    built: int = dataclasses.field(default=0, init=False)

    def build(self, spec: Spec) -> Learner:
        raise NotImplementedError


class Plain:
    """An algorithm that is no dataclass."""

    def __init__(self, rate: float = 0.1) -> None:
        self.rate = rate

    def build(self, spec: Spec) -> Learner:
        raise NotImplementedError


PLAIN = Plain(rate=0.5)


def small_network(spec: Spec) -> nn.Module:
    return nn.Linear(spec.input_shape[0], spec.model_outputs)


def here(name: str) -> str:
    return f"{__name__}:{name}"


def through_json(record: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(record))


def other_value(hint: Any, value: Any) -> list[Any]:
    """Values of an option beside its own."""
    choices = [choice for choice in typing.get_args(hint) if choice is not NoneType]
    if typing.get_origin(hint) is Literal:
        return [choice for choice in choices if choice != value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return variants(value)
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2, value / 2 if isinstance(value, float) else value + 1]
    if isinstance(value, tuple) and value and ... not in choices:  # of fixed length, such as a range
        return [tuple(2 * part for part in value), value[::-1]]
    if isinstance(value, tuple):
        return [(*value, value[-1])] if value else [(4,) if int in choices else ("head",)]
    if value is None:
        some: dict[Any, Any] = {int: 1, float: 0.5, str: "x", Path: Path("/x")}
        some |= {tuple[float, ...]: (1.0, 0.25), tuple[float, float]: (0.25, 1.0), tuple[int, int]: (1, 3)}
        return [some[choice] for choice in choices]
    return []


def variants(target: Any) -> list[Any]:
    """Instances that differ from target in one option each."""
    hints, found = typing.get_type_hints(type(target)), []
    for field in dataclasses.fields(target):
        for value in other_value(hints[field.name], getattr(target, field.name)):
            try:
                found.append(dataclasses.replace(target, **{field.name: value}))
            except ValueError:
                continue  # options limit each other; others are tried
    return found


@pytest.mark.parametrize(("group", "name"), INSTALLED)
def test_everything_installed_is_rebuilt_with_its_options(group: plugins.Group, name: str) -> None:
    default = plugins.load(group, name)()
    changed = variants(default)
    assert len(changed) >= len(dataclasses.fields(default)) - 1, "nearly every option can be changed"
    for target in (default, *changed):
        if getattr(target, "file", None) is not None:
            continue  # a table's units are recorded, and this one is not there
        record = through_json(runs.describe(target, name))
        assert record["reference"] == name
        assert runs.rebuild(record, group) == target


@pytest.mark.parametrize("kind", [outer.TRPO, outer.ProMP, outer.Adam])
def test_outer_updates_are_rebuilt_with_their_options(kind: Any) -> None:
    for target in (kind(), *variants(kind())):
        record = through_json(runs.describe(target))
        assert record["reference"] == kind.__name__.lower()
        assert runs.rebuild(record, "outers") == target


@pytest.mark.parametrize(
    "target",
    [
        Varied(),
        Varied(((1, 0.5), (2, 0.25)), Sampling(3, 4), "b", None),
        Varied(words=["a"], table={"x": 1.0}, anything="text"),
        Varied(anything=(1, (2, "b"), None, True)),
        Varied(anything={"slope": (0.5, 1.5)}),
    ],
)
def test_options_of_every_plain_kind_are_rebuilt(target: Varied) -> None:
    assert runs.rebuild(through_json(runs.describe(target)), "algorithms") == target


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"anything": [1]}, "anything"),
        ({"anything": Sampling()}, "anything"),
        ({"table": {1: 2.0}}, "table"),
        ({"table": {"a": [1]}}, "table"),
    ],
)
def test_options_that_would_come_back_changed_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(
        ValueError, match=f"cannot be recorded in a run folder: its option {name} is .*would be read back as"
    ):
        runs.describe(Varied(**options))


@pytest.mark.parametrize(
    "network", [lambda spec: small_network(spec), small_network, torch.float32], ids=["lambda", "function", "other"]
)
def test_options_that_are_no_plain_data_are_refused(network: Any) -> None:
    with pytest.raises(ValueError, match=r"MAML cannot be recorded .* is not plain data.*pass 'module:name'"):
        runs.describe(MAML(network=Network(architecture=network)))


def test_a_local_class_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Local(MAML):
        """Nobody else can import it."""

    with pytest.raises(ValueError, match=r"Local cannot be recorded in a run folder.*importable module"):
        runs.describe(Local())


def test_a_class_that_is_no_dataclass_is_refused_as_its_options_are_unknown() -> None:
    with pytest.raises(ValueError, match="Plain is not a dataclass"):
        runs.describe(Plain(rate=0.5))
    with pytest.raises(ValueError, match="which is of another class"):
        runs.describe(MAML(), here("Varied"))


def test_an_instance_that_is_bound_to_a_name_is_found_under_it() -> None:
    for name, group, target in (("PENDULUMS", "tasks", PENDULUMS), ("PLAIN", "algorithms", PLAIN)):
        record = through_json(runs.describe(target, here(name)))
        assert record == {"reference": here(name), "options": {}}
        assert runs.rebuild(record, group) is target


def test_an_instance_is_recorded_with_what_differs_from_the_bound_one() -> None:
    changed = dataclasses.replace(PENDULUMS, sampling=Sampling(episodes=3))
    record = through_json(runs.describe(changed, here("PENDULUMS")))
    assert list(record["options"]) == ["sampling"]
    assert runs.rebuild(record, "tasks") == changed
    assert runs.describe(Bandit(arms=4), here("SMALL"))["options"] == {"arms": 4}


def test_a_family_that_only_a_name_can_give_back_is_refused_without_one() -> None:
    with pytest.raises(ValueError, match=r"GymnasiumFamily cannot be recorded .* is not plain data"):
        runs.describe(PENDULUMS)


@pytest.mark.parametrize(
    "record",
    [
        {"options": {}},
        {"reference": "metarl.algorithms.maml:MAML"},
        {"reference": 3, "options": {}},
        {"reference": "metarl.algorithms.maml:MAML", "options": {"bogus": 1}},
        {"reference": "metarl.algorithms.maml:MAML", "options": {"steps": "one"}},
        {"reference": "metarl.algorithms.maml:MAML", "options": [1]},
        {"reference": "metarl_envs.bandit:Bandit", "options": {"sampling": {"bogus": 1}}},
        {"reference": "metarl_envs.bandit:Bandit", "options": {"sampling": 3, "arms": None}},
    ],
)
def test_a_record_that_cannot_be_used_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="cannot be built with the options that this run recorded"):
        runs.rebuild(record, "algorithms")


def test_a_record_of_what_is_no_longer_installed_is_refused() -> None:
    with pytest.raises(plugins.PluginError, match="no module 'gone'"):
        runs.rebuild({"reference": "gone:Family", "options": {}}, "tasks")


def test_a_new_folder_holds_the_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    runs.create(folder, CONFIG)
    config = runs.read_config(folder)
    assert config["settings"] == {"seed": 3}
    assert config["algorithm"] == RECORD
    assert config["versions"]["torch"] == torch.__version__
    assert config["versions"]["metarl"] == metadata.version("metarl-toolkit"), "under the name that is imported"
    assert set(config) == {"format", "algorithm", "tasks", "outer", "settings", "versions", "git"}
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_folder_with_a_run_may_hold_other_files(tmp_path: Path) -> None:
    runs.create(tmp_path, CONFIG)
    (tmp_path / "notes.txt").write_text("mine")
    runs.create(tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    runs.create(tmp_path, CONFIG)
    old = "checkpoint.pt", "best.pt", "progress.csv", "evaluation.json", "events.out.tfevents.1.host.2.0"
    for name in old:
        (tmp_path / name).write_text("old")
    with pytest.raises(
        RunError, match=rf"{tmp_path} already contains a run.*--out.*metarl resume {tmp_path}.*--overwrite"
    ):
        runs.create(tmp_path, CONFIG)
    assert all((tmp_path / name).exists() for name in old)
    runs.create(tmp_path, CONFIG, overwrite=True)
    runs.settle(tmp_path)  # as its first checkpoint does
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match=f"cannot create the run folder {folder}: "):
            runs.create(folder, CONFIG)
        with pytest.raises(RunError, match=r"contains no run: config\.json is missing"):
            runs.read_config(folder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("\udcff", "cannot be read"),
        ("[1]", "has format None; this version reads 1"),
        ("{}", "has format None"),
        ('{"format": 6}', "has format 6; this version reads 1 to 5"),
        ('{"format": 0}', "has format 0"),
        ('{"format": true}', "has format True"),
        ('{"format": "2"}', "has format 2"),
        ('{"format": 1}', "is damaged: it lacks algorithm and tasks and outer and settings"),
        (json.dumps({"format": 1, **CONFIG, "tasks": [1]}), "it lacks tasks"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=told) as caught:
        runs.read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(RunError, match="cannot be read"):
        runs.read_config(tmp_path)
    with pytest.raises(RunError, match="cannot be read"):
        runs.load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_a_damaged_evaluation_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(RunError, match=r"evaluation\.json"):
        runs.read_evaluation(tmp_path)


SCORE = {"mean": 1.0, "low": 0.5, "high": 1.5, "per_task": [0.5, 1.5]}
SCORED = {
    "metrics": {"return/step_0": SCORE},
    "tasks": 2,
    "split": "test",
    "iteration": 3,
    "seed": 0,
    "strata": None,
    "environment_steps": [0.0],
    "references": {"return/zero_actions": SCORE},
    "family": {},
    "batch_norm": None,
}


def test_an_evaluation_with_all_that_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(SCORED))
    assert runs.read_evaluation(tmp_path) == SCORED


@pytest.mark.parametrize("value", [{}, [None], "x", 1.5, True], ids=repr)
@pytest.mark.parametrize(
    "place",
    [
        ("tasks",),
        ("iteration",),
        ("seed",),
        ("strata",),
        ("environment_steps",),
        ("environment_steps", 0),
        ("references", "return/zero_actions"),
        ("references", "return/zero_actions", "mean"),
        ("metrics", "return/step_0", "mean"),
        ("metrics", "return/step_0", "per_task"),
        ("metrics", "return/step_0", "per_task", 1),
    ],
    ids=str,
)
def test_an_evaluation_with_a_field_of_another_kind_is_refused(
    tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    if (place[-1] == "strata" and isinstance(value, list)) or (place[-1] in ("mean", 0, 1) and value == 1.5):
        pytest.skip("a value that it may have")
    record = copy.deepcopy(SCORED)
    inside: Any = record
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"evaluation\.json is damaged: .* is not what an evaluation writes"):
        runs.read_evaluation(tmp_path)


@pytest.mark.parametrize("ends", [{"low": 2.0}, {"high": 0.8}, {"low": 2.0, "high": 1.8, "seeds": 2}], ids=str)
def test_an_interval_that_cannot_be_is_refused(tmp_path: Path, ends: dict[str, float]) -> None:
    record = SCORED | {"metrics": {"return/step_0": SCORE | ends}}
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="return/step_0 is not what an evaluation writes"):
        runs.read_evaluation(tmp_path)


@pytest.mark.parametrize(
    "ends", [{"mean": math.inf, "low": math.nan, "high": math.nan}, {"low": 1.2, "seeds": 2}], ids=str
)
def test_an_interval_that_can_be_is_read(tmp_path: Path, ends: dict[str, float]) -> None:
    record = SCORED | {"metrics": {"return/step_0": SCORE | ends}}
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    assert runs.read_evaluation(tmp_path)["metrics"]["return/step_0"].keys() == (SCORE | ends).keys()


CONTENTS = {"params": {"w": torch.arange(300.0)}, "iteration": 3, "outer": {"count": 2, "none": None}, "best": -1.5}


def test_a_checkpoint_comes_back_as_it_was_without_running_code(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    runs.save_checkpoint(path, CONTENTS)
    for found in (runs.load_checkpoint(path), torch.load(path, weights_only=True)):
        assert torch.equal(found["params"].pop("w"), torch.arange(300.0))
        assert found == {"format": 2, "params": {}, "iteration": 3, "outer": {"count": 2, "none": None}, "best": -1.5}


def test_a_checkpoint_that_was_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    runs.save_checkpoint(path, CONTENTS)
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 61), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match=f"{path} cannot be read; it may be truncated") as caught:
            runs.load_checkpoint(path)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("contents", [b"hello, this is no checkpoint", b"\x80\x02.", bytes(range(256))])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(contents)
    with pytest.raises(RunError, match=f"{path} cannot be read"):
        runs.load_checkpoint(path)


def test_a_missing_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(RunError, match=f"{path} does not exist: the run has not saved a checkpoint yet"):
        runs.load_checkpoint(path)
    for contents in ({"format": 3}, {"format": "2"}, {"weights": torch.ones(2)}, [1, 2], torch.ones(1)):
        torch.save(contents, path)
        with pytest.raises(RunError, match="not a checkpoint of this version of metarl"):
            runs.load_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"format": 1, "params": Plain()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="cannot be read"):
        runs.load_checkpoint(tmp_path / "checkpoint.pt")


def test_another_architecture_is_named() -> None:
    ours = {"w": torch.zeros(2, 3), "b": torch.zeros(2)}
    runs.check_architecture(ours, {name: value + 1 for name, value in ours.items()}, Path("x.pt"))
    for theirs, told in (
        (
            {"w": torch.zeros(3, 2), "b": torch.zeros(2)},
            r"w is torch.float32 \(3, 2\) there and torch.float32 \(2, 3\)",
        ),
        ({"w": torch.zeros(2, 3)}, r"b is absent there and torch.float32 \(2,\) in this .*\(1 parameters differ\)"),
        (ours | {"more": torch.zeros(1)}, r"more is torch.float32 \(1,\) there and absent"),
        (ours | {"b": torch.zeros(2, dtype=torch.float64)}, r"b is torch.float64 \(2,\) there and torch.float32"),
    ):
        with pytest.raises(RunError, match=f"x.pt was written for another architecture: {told}"):
            runs.check_architecture(ours, theirs, Path("x.pt"))


@pytest.mark.parametrize("place", ["open", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if place == "fsync" else Path, place, full)
    with pytest.raises(OSError, match=f"could not write {path}: No space left on device.*is intact") as caught:
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, new: (order.append("rename"), replace(path, new)))
    write_json(tmp_path / "x.json", {"a": [1]})
    assert order == ["sync", "rename"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1]}


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(OSError, match=f"could not write {folder}/x.json"):
            write_json(folder / "x.json", 1)
