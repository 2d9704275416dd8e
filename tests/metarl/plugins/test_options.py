"""One rule for options: integers where integers are due, finite numbers, NumPy's numbers as Python's."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from metarl import cli, plugins
from metarl.algorithms import MAML
from metarl.control import Sampling
from metarl.networks import Network
from metarl.outer import TRPO
from metarl.sb3.baselines import PPOBaseline
from metarl.training.callbacks import Evaluate, KeepCheckpoints, StopAtScore
from metarl.training.settings import Settings

SAMPLING = Sampling()


@dataclasses.dataclass(frozen=True)
class Options:
    """A field of every kind that has a rule."""

    count: int = 1
    share: float = 0.5
    limit: float = math.inf
    some: int | None = None
    either: float | tuple[float, ...] = 1.0
    flag: bool = False
    word: str = "a"
    mode: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.0, 1.0)
    folder: Path | None = None
    anything: Any = None
    sampling: Sampling = SAMPLING


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"count": 1.5}, "count=1.5: expected an integer"),
        ({"count": 2.0}, "count=2.0: expected an integer"),
        ({"count": True}, "count=True: expected an integer"),
        ({"count": np.float64(2)}, "count=.*: expected an integer"),
        ({"count": "2"}, "count='2': expected an integer"),
        ({"count": None}, "count=None: expected an integer"),
        ({"count": torch.tensor(2)}, "count=<Tensor>: expected an integer"),
        ({"share": math.nan}, "share=nan: expected a finite number"),
        ({"share": -math.inf}, "share=-inf: expected a finite number"),
        ({"share": np.float32("inf")}, "share=.*: expected a finite number"),
        ({"share": True}, "share=True: expected a finite number"),
        ({"limit": math.nan}, "limit=nan: expected a finite number"),
        ({"some": 1.5}, "some=1.5: expected an integer or None"),
        ({"either": (1.0, math.inf)}, "either=.*: expected a finite number or a tuple, each of it a finite number"),
        ({"flag": 1}, "flag=1: expected True or False"),
        ({"word": 1}, "word=1: expected text"),
        ({"mode": "c"}, "mode='c': expected one of a, b"),
        ({"sizes": 3}, "sizes=3: expected a tuple"),
        ({"sizes": (1, 2.0)}, r"sizes=\(1, 2.0\): expected a tuple, each of it an integer"),
        ({"pair": (1.0,)}, r"pair=\(1.0,\): expected a tuple of 2"),
        ({"sampling": Sampling(episodes=2.5)}, "sampling.episodes=2.5: expected an integer"),  # type: ignore[arg-type]
    ],
)
def test_an_option_of_another_type_is_refused_by_its_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f": {told}$"):
        plugins.checked_options(Options(**changes))


def test_numbers_of_numpy_are_read_as_pythons() -> None:
    changes = {
        "count": np.int64(3), "share": np.float64(0.25), "some": np.uint8(4), "flag": np.bool_(True),
        "sizes": [np.int32(5), 6], "pair": (np.float64(1), 2), "anything": np.int64(7), "folder": "data",
        "sampling": Sampling(episodes=np.int64(8)),
    }  # fmt: skip
    found = plugins.checked_options(Options(**changes))
    expected = Options(3, 0.25, some=4, flag=True, sizes=(5, 6), pair=(1.0, 2), folder=Path("data"), anything=7)
    assert found == dataclasses.replace(expected, sampling=Sampling(episodes=8))
    assert [type(value) for value in (found.count, found.share, found.flag)] == [int, float, bool]
    assert type(found.sampling.episodes) is int


def test_what_fits_stays_the_very_same_object() -> None:
    for options in (Options(), Options(count=2, either=(1.0,), folder=Path("x"), limit=3.0), MAML(), TRPO(), object()):
        assert plugins.checked_options(options) is options


@pytest.mark.parametrize(
    "make",
    [
        lambda: Settings(iterations=1.5),  # type: ignore[arg-type]
        lambda: Settings(iterations=True),
        lambda: Settings(log_every=2.0),  # type: ignore[arg-type]
        lambda: Evaluate(every=1.5),  # type: ignore[arg-type]
        lambda: Evaluate(stop_at=math.nan),
        lambda: KeepCheckpoints(every=2.5),  # type: ignore[arg-type]
        lambda: StopAtScore(math.nan),
        lambda: PPOBaseline(learning_rate=math.inf),
        lambda: PPOBaseline(n_steps=1.5),  # type: ignore[arg-type]
    ],
)
def test_options_of_training_are_checked_when_they_are_made(make: Any) -> None:
    with pytest.raises(ValueError, match=r"\w+: \w+=.*: expected an integer|expected a finite number"):
        make()


def test_settings_take_numbers_of_numpy() -> None:
    settings = Settings(iterations=np.int64(2), seed=np.uint32(3))  # type: ignore[arg-type]
    assert (type(settings.iterations), type(settings.seed)) == (int, int)
    assert settings == Settings(iterations=2, seed=3)


def test_a_path_where_something_is_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert plugins.absolute_paths(Options(folder=Path("data"))).folder == tmp_path / "data"
    for folder in (Path("nothing"), tmp_path, None):
        options = Options(folder=folder)
        assert plugins.absolute_paths(options) is options


def test_long_values_are_shortened_to_their_type() -> None:
    assert plugins.shortened(torch.zeros(100, 100)) == "<Tensor>"
    assert plugins.shortened(("a",) * 142) == "<tuple>"
    assert len(plugins.shortened("a" * 500)) < 100
    assert plugins.shortened((1, 2)) == "(1, 2)"
    assert plugins.shortened(Network(hidden=(4,))) == "<Network>"


def floats(target: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every option of an object that holds floats, at any depth, with the object changed in it to infinity."""
    for field in dataclasses.fields(target):
        value = getattr(target, field.name)
        if not field.init:
            continue
        if dataclasses.is_dataclass(value):
            for name, changed, infinite in floats(value, f"{prefix}{field.name}."):
                yield name, dataclasses.replace, (target, {field.name: (changed, infinite)})
        elif isinstance(value, float):
            yield f"{prefix}{field.name}", dataclasses.replace, (target, {field.name: float("inf")})
        elif isinstance(value, tuple) and value and all(isinstance(one, float) for one in value):
            yield f"{prefix}{field.name}", dataclasses.replace, (target, {field.name: (value[0], float("inf"))})


def made(change: Any, given: Any) -> Any:
    target, values = given
    return change(
        target,
        **{
            name: made(*value) if isinstance(value, tuple) and callable(value[0]) else value
            for name, value in values.items()
        },
    )


def test_no_option_of_any_plugin_is_infinite() -> None:
    """The one rule is applied to whatever is trained; options whose default is infinite may be that."""
    tried = 0
    for plugin in plugins.installed(*plugins.GROUPS):
        kind = plugins.load(plugin.group, plugin.name)
        if not dataclasses.is_dataclass(kind):
            continue
        for name, change, given in floats(kind()):
            tried += 1
            try:
                plugins.checked_options(made(change, given))
            except ValueError:
                continue
            pytest.fail(f"{plugin.name} takes {name}=inf")
    assert tried > 60


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "run", "--schedule", "1", "inf"],
        ["train", "maml", "sinusoid", "--step-timeout", "inf"],
        ["train", "maml", "sinusoid", "--algorithm.step-size", "nan"],
        ["render", "run", "--fps", "inf"],
        ["baseline", "ppo", "bandit", "--learning-rate", "inf"],
    ],
    ids=" ".join,
)
def test_commands_refuse_infinity(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
