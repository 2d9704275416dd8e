"""Random damage to every file of a run folder, random edits of its records, random options: only documented errors.

``METARL_FUZZ`` is the number of cases of each test; by default few, for CI.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from metarl import cli, plugins
from metarl.algorithms import MAML
from metarl.commands import train as command
from metarl.networks import Network
from metarl.training import open_run
from metarl.training.callbacks import KeepCheckpoints
from metarl.training.settings import Settings
from metarl.training.start import train

FUZZ = settings(
    max_examples=int(os.environ.get("METARL_FUZZ", "25")),
    deadline=None,
    derandomize="METARL_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
COMMANDS = (["plot"], ["evaluate", "--tasks", "2", "--steps", "1"], ["resume", "--iterations", "3", "--quiet"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fuzzed") / "run"
    options = Settings(2, 2, device="cpu", validate_every=1, validation_tasks=2, validation_steps=1, checkpoint_every=1)
    algorithm = MAML(network=Network(hidden=(4,)))
    train(algorithm, "sinusoid", settings=options, out=out, callbacks=[KeepCheckpoints(1)])
    for _ in range(2):
        assert cli.main(["evaluate", str(out), "--tasks", "2", "--steps", "1"]) == 0
    assert cli.main(["plot", str(out)]) == 0
    return out


@contextlib.contextmanager
def copied(run: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(run, Path(folder) / "run"))


@st.composite
def damage(draw: st.DrawFn) -> Any:
    """Return a function from a file's bytes to damaged ones."""
    kind = draw(st.sampled_from(["flip", "cut", "double", "insert", "empty"]))
    place, length = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 40))
    bits, junk = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=20))

    def damaged(contents: bytes) -> bytes:
        at = int(place * len(contents))
        head, middle, tail = contents[:at], contents[at : at + length], contents[at + length :]
        flipped = bytes([middle[0] ^ bits]) + middle[1:] if middle else b""
        changed = {"flip": flipped, "cut": b"", "double": middle * 2, "insert": junk + middle}
        return b"" if kind == "empty" else head + changed[kind] + tail

    return damaged


def said(words: list[str]) -> tuple[int, str]:
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(words)
    return code, told.getvalue()


@FUZZ
@given(st.data(), damage(), st.sampled_from(COMMANDS))
def test_damaged_files_are_read_or_refused(run: Path, data: st.DataObject, change: Any, words: list[str]) -> None:
    files = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(files))
    with copied(run) as folder:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        code, told = said([words[0], str(folder), *words[1:]])
        assert code in (0, 2), told
        assert "Traceback" not in told


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=4) | st.just("a:b"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(record: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    parts = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    return [at, *(place for name, part in parts for place in places(part, (*at, name)))]


def changed(record: Any, place: tuple[Any, ...], value: Any) -> Any:
    record = copy.deepcopy(record)
    inner = record
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return record


@FUZZ
@given(st.data(), VALUES)
def test_edited_configurations_are_used_or_refused(run: Path, data: st.DataObject, value: Any) -> None:
    config = {name: part for name, part in json.loads((run / "config.json").read_text()).items() if name != "sha256"}
    place = data.draw(st.sampled_from([place for place in places(config) if place]))
    assume(place != ("settings", "wandb"))  # asks for another package
    with copied(run) as folder:
        (folder / "config.json").write_text(json.dumps(changed(config, place, value)))
        with contextlib.suppress(ValueError, plugins.PluginError):
            open_run(folder, device="cpu")


@FUZZ
@given(st.data(), VALUES, st.sampled_from(["evaluation.json", "evaluations.json"]))
def test_edited_scores_are_used_or_refused(run: Path, data: st.DataObject, value: Any, name: str) -> None:
    record = json.loads((run / name).read_text())
    if isinstance(record, dict):
        record.pop("sha256")
    place = data.draw(st.sampled_from([place for place in places(record) if place]))
    with copied(run) as folder:
        (folder / name).write_text(json.dumps(changed(record, place, value)))
        for words in (["plot", str(folder)], ["resume", str(folder), "--iterations", "3", "--quiet"]):
            code, told = said(words)
            assert code in (0, 2), told


OPTIONS = (
    "--iterations", "--meta-batch-size", "--seed", "--device", "--log-every", "--validate-every", "--recipe", "--outer",
    "--algorithm.step-size", "--algorithm.steps", "--algorithm.hidden", "--algorithm.activation", "--tasks.shots",
    "--outer.learning-rate", "--quiet", "--compile", "--nothing", "--start-from",
)  # fmt: skip
WORDS = st.text(max_size=5) | st.sampled_from(
    ["1", "0", "-1", "nan", "inf", "1e400", "None", "none", "cpu", "adam", "~x"]
)


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(OPTIONS), WORDS), max_size=3))
def test_random_options_are_taken_or_refused_in_a_line(options: list[tuple[str, str]]) -> None:
    words = [word for pair in options for word in pair]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            command.prepare(["maml", "sinusoid", *words, "--out", f"{folder}/run"])
        except (ValueError, plugins.PluginError) as error:
            assert str(error)
        except SystemExit as stop:
            assert {"-h", "--help"} & set(words)
            assert not stop.code
