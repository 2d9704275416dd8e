"""What training asks of an outer update before it begins: only what the update has."""

from dataclasses import dataclass
from typing import Any

import pytest

from metarl.algorithms.maml import MAML
from metarl.networks.options import Network
from metarl.outer import SGD
from metarl.testing.samples import small_family
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Chunked, Learner, Outer, Selective

LINES = small_family("regression")
ALGORITHM = MAML(network=Network(hidden=(4,)))


@dataclass(frozen=True)
class Bare:
    """An outer update without more members than it needs."""

    def init(self, params: Any) -> Any:
        return {}

    def update(self, *inputs: Any) -> Any:
        return SGD(learning_rate=0.1).update(*inputs)


@dataclass(frozen=True)
class Whole(Bare):
    chunks: int | None = 3

    def check(self, learner: Learner) -> None:
        if learner.spec.control:
            raise ValueError("for labelled examples only")


def trained(outer: Any, family: Any = LINES) -> Any:
    return train(ALGORITHM, family, outer, Settings(iterations=1, meta_batch_size=2, device="cpu"))


def test_protocols_tell_what_an_update_has() -> None:
    assert isinstance(Bare(), Outer) and not isinstance(Bare(), Selective | Chunked)
    assert all(isinstance(Whole(), kind) for kind in (Outer, Selective, Chunked))
    assert not isinstance("adam", Outer)


def test_an_update_without_more_members_trains() -> None:
    assert len(trained(Bare()).rows) == 1


def test_a_refusal_and_too_many_groups_stop_it_before_it_begins() -> None:
    with pytest.raises(ValueError, match="for labelled examples only"):
        trained(Whole(), small_family("discrete"))
    with pytest.raises(ValueError, match="chunks=3 is more than the 2 tasks of a meta-batch"):
        trained(Whole())
    assert len(trained(Whole(chunks=None)).rows) == 1
