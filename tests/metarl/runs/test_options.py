"""Options of every kind that has a type hint come back as they were, or are refused before training."""

import dataclasses
import math
import sys
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from metarl import runs
from metarl.algorithms import MAML
from metarl.fewshot import NWayKShot
from metarl.networks import Network
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Learner, Spec


class Colour(Enum):
    RED = "red"
    BLUE = (0, 0, 255)


class Kind(IntEnum):
    NEAR = 1
    FAR = 2


class Word(StrEnum):
    YES = "no"
    NO = "yes"


class Access(Flag):
    READ = 1
    WRITE = 2


class Range(NamedTuple):
    low: float = 0.0
    high: float = 1.0
    kind: Kind = Kind.NEAR


RANGE = Range()


@dataclasses.dataclass(frozen=True)
class Layer:
    size: int = 3
    colour: Colour = Colour.RED


@dataclasses.dataclass(frozen=True)
class Block:
    layers: int = 3


@dataclasses.dataclass(frozen=True)
class Typed:
    """An algorithm with an option of every kind that its type hint tells."""

    colour: Colour = Colour.RED
    maybe: Colour | None = None
    kind: Kind = Kind.NEAR
    word: Word = Word.YES
    access: Access = Access.READ
    folder: Path = Path("data")
    folders: tuple[Path, ...] = ()
    layers: tuple[Layer, ...] = (Layer(),)
    listed: list[Layer] = dataclasses.field(default_factory=list)
    named: dict[str, Layer] = dataclasses.field(default_factory=dict)
    several: Layer | Block | None = None
    span: Range = RANGE
    kinds: frozenset[Kind] = frozenset()
    rate: float = math.nan
    limit: float = math.inf
    either: str | Path = "x"
    anything: Any = None

    def build(self, spec: Spec) -> Learner:
        raise NotImplementedError


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"colour": Colour.BLUE, "maybe": Colour.RED, "kind": Kind.FAR, "word": Word.NO},
        {"access": Access.READ | Access.WRITE},
        {"folder": Path("/a/b"), "folders": (Path("c"), Path("d"))},
        {"layers": (Layer(4), Layer(colour=Colour.BLUE)), "listed": [Layer(5)], "named": {"head": Layer(6)}},
        {"several": Block(2)},
        {"several": Layer(2)},
        {"span": Range(0.5, 2.0, Kind.FAR), "kinds": frozenset({Kind.FAR, Kind.NEAR})},
        {"rate": 0.5, "limit": 3.0},
    ],
)
def test_options_come_back_with_their_types(changes: dict[str, Any]) -> None:
    target = Typed(**changes)
    rebuilt = runs.rebuild(runs.describe(target), "algorithms")
    for field in dataclasses.fields(target):
        ours, theirs = getattr(target, field.name), getattr(rebuilt, field.name)
        assert type(theirs) is type(ours)
        assert repr(theirs) == repr(ours)


def test_what_earlier_versions_recorded_is_read_all_the_same() -> None:
    record = runs.describe(Typed())
    record["options"] |= {"kind": 2, "word": "no", "span": [0.0, 2.0, 1]}
    rebuilt = runs.rebuild(record, "algorithms")
    assert (rebuilt.kind, rebuilt.word, rebuilt.span) == (Kind.FAR, Word.YES, Range(0.0, 2.0, Kind.NEAR))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"anything": Kind.FAR}, r"anything is .*FAR.* \(Kind\), and would be read back as 'FAR' \(str\)"),
        ({"anything": (1, Colour.RED)}, "anything is .*, and would be read back as"),
        ({"anything": Range()}, r"anything is .* \(Range\), and would be read back as .* \(dict\)"),
        ({"anything": True, "kind": 1}, r"kind is 1 \(int\), and would be read back as .*NEAR.* \(Kind\)"),
        ({"either": Path("x")}, r"either is PosixPath\('x'\) .*, and would be read back as 'x' \(str\)"),
        ({"anything": object()}, "option anything holds a object, which is not plain data"),
        ({"anything": "__main__:network"}, "option anything holds '__main__:network', of the script that is running"),
    ],
)
def test_options_that_no_type_hint_brings_back_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"Typed cannot be recorded in a run folder: its {told}|its option {told}"):
        runs.describe(Typed(**changes))


def test_a_class_of_the_running_script_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(MAML):
        """Defined where no other process finds it."""

    Mine.__module__, Mine.__qualname__ = "__main__", "Mine"
    with pytest.raises(ValueError, match=r"^Mine is defined in the script or notebook that is running.*without a run"):
        train(Mine(), "sinusoid", settings=Settings(iterations=1, meta_batch_size=2), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    settings = Settings(iterations=1, meta_batch_size=2, device="cpu")
    assert len(train(Mine(network=Network(hidden=(4,))), "sinusoid", settings=settings).rows) == 1


def test_a_table_is_refused_in_one_short_line_with_the_name_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("my_tables")
    monkeypatch.setitem(sys.modules, "my_tables", module)
    table = NWayKShot(torch.randn(40, 3), torch.arange(40) % 10, ways=2)
    expected = (
        "^NWayKShot cannot be recorded in a run folder: its option inputs holds a Tensor, which is not plain data; "
    )
    with pytest.raises(
        ValueError, match=f"{expected}assign it to a name in an importable module, and pass 'module:name'"
    ):
        runs.describe(table)
    module.table = table
    with pytest.raises(ValueError, match=f"{expected}pass 'my_tables:table' instead of the object$") as caught:
        runs.describe(table)
    assert caught.value.__suppress_context__
    assert runs.describe(table, "my_tables:table") == {"reference": "my_tables:table", "options": {}}
