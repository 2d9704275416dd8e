"""How ranks learn that one of them has failed, hangs or is gone: from the store that they all reach.

A rank that fails tells its error there before it goes. Those that wait in a collective look twice a second.
"""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist

LOOK_EVERY = timedelta(seconds=0.5)
"""How long a rank waits in a collective before it looks whether another one has failed, and looks again."""
LINGER = 2.0
"""Seconds that rank 0, whose process may hold the store, stays after it has failed until the others have heard."""


class RankError(RuntimeError):
    """The ranks of a run cannot go on together. The message names the rank that is to blame, if that is known."""

    is_told = True
    """Commands print the message, and no traceback: that is the other rank's."""


@dataclass
class Board:
    """Where the ranks of a run tell each other what ends it. Nothing here fails where the store cannot be reached."""

    rank: int
    count: int
    key: str
    """What the board's entries in the store begin with, of this run only."""
    seconds: float
    """How long a rank waits for the others."""
    number: int = 0
    """How many collectives this rank has begun."""

    def tell(self, error: BaseException) -> None:
        """Tell the others what ended this rank, unless another one has failed before."""
        with suppress(Exception):
            if not isinstance(error, RankError):
                _store().compare_set(self._failed, "", f"rank {self.rank} failed: {described(error)}")
            if self.rank != 0:
                _store().add(self._gone, 1)
            elif not isinstance(error, RankError):
                self._linger()

    def _linger(self) -> None:
        """Wait a little until the others have failed, too."""
        until = time.monotonic() + LINGER
        while time.monotonic() < until and _store().add(self._gone, 0) < self.count - 1:
            time.sleep(0.05)

    def wait(self, work: Any, what: str) -> None:
        """Wait until a collective has ended. Raises RankError where another rank fails, or does not come."""
        self.number += 1
        began, waits = time.monotonic(), False
        while not self._ended(work, what, began):
            if (told := self._told()) is not None:
                raise RankError(f"{told} (rank {self.rank} waited for it: {what})")
            if not waits:
                waits = True
                with suppress(Exception):
                    _store().set(self._waiting(self.rank), self._place(what))

    def _ended(self, work: Any, what: str, began: float) -> bool:
        """Wait a moment for a collective, and return whether it has ended well. Raises RankError where it failed."""
        try:
            work.wait(LOOK_EVERY)
        except RuntimeError:
            if not work.is_completed():
                return False
            try:
                work.wait()  # which tells how it has ended: perhaps well, meanwhile
            except RuntimeError as error:
                self.lost(what, error, time.monotonic() - began)
        return True

    def lost(self, what: str, error: Exception, seconds: float = 0.0) -> NoReturn:
        """Raise RankError for a collective that failed: it tells which one, and why, as far as is known."""
        if (told := self._told()) is not None:
            raise RankError(f"{told} (rank {self.rank} waited for it: {what})") from error
        place = f"rank {self.rank} of {self.count} waited in vain for the others ({what})"
        if seconds > 0.9 * self.seconds and (absent := list(self._absent(what))):
            raise RankError(f"{place} for {seconds:.0f} s: {'; '.join(absent)}; see --rank-timeout") from error
        raise RankError(f"{place}; one of them has ended or cannot be reached: {_reason(error)}") from error

    def _told(self) -> str | None:
        """Return what another rank has told of its failure."""
        with suppress(Exception):
            if _store().check([self._failed]):
                return str(_store().get(self._failed).decode(errors="replace"))
        return None

    def _absent(self, what: str) -> Iterator[str]:
        """Yield which ranks do not wait where this one does, and where they are."""
        for rank in range(self.count):
            with suppress(Exception):
                known = _store().check([self._waiting(rank)])
                place = _store().get(self._waiting(rank)).decode(errors="replace") if known else ""
                number, _, theirs = place.partition(" ")
                if place != self._place(what) and rank != self.rank:
                    elsewhere = known and int(number) >= self.number
                    yield f"rank {rank} waits elsewhere ({theirs})" if elsewhere else f"rank {rank} did not come"

    def _place(self, what: str) -> str:
        return f"{self.number} {what}"

    @property
    def _failed(self) -> str:
        return f"{self.key}/failed"

    @property
    def _gone(self) -> str:
        return f"{self.key}/gone"

    def _waiting(self, rank: int) -> str:
        return f"{self.key}/waiting/{rank}"


def _reason(error: Exception) -> str:
    """Return what gloo says of a broken connection, without the places in its source and its advice."""
    return re.sub(r"^\[\S+:\d+\] ", "", first_line(error)).partition(". ")[0]


def described(error: BaseException) -> str:
    """Return an error in one line, with its kind."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
