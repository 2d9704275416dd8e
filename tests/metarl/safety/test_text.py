import errno
import io
import os
import pty
import sys
from typing import Any

import pytest

from metarl.safety import harmless, harmless_streams

EVIL = "a\x1b]0;title\x07b\x1b[2Jc\rd\x9b31me\u202ef\x08"
SHOWN = r"a\x1b]0;title\x07b\x1b[2Jc\rd\x9b31me\u202ef\x08"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_sequences_are_written_out() -> None:
    assert harmless(EVIL) == SHOWN
    assert harmless("two\nlines\tof é, 漢字 and 'quotes'") == "two\nlines\tof é, 漢字 and 'quotes'"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_whoever_prints_prints_harmlessly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, name, stream)
    with harmless_streams():
        print(EVIL, file=getattr(sys, name))
        getattr(sys, name).writelines([EVIL])
    assert stream.getvalue() == f"{SHOWN}\n{SHOWN}"
    assert getattr(sys, name) is stream


def test_a_terminal_gets_colours_and_bars_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    own = "\r\x1b[1;31mred\x1b[0m\x1b[A"
    with harmless_streams():
        print(own + "\x1b]0;title\x07\x1b[2J", end="")
    assert stream.getvalue() == own + r"\x1b]0;title\x07\x1b[2J"


def test_without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with harmless_streams():
        assert sys.stdout is None
    assert sys.stdout is None


def test_a_terminal_that_goes_away_takes_nothing_along(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    with harmless_streams():
        print("seen")
        os.close(ours)
        with pytest.raises(OSError) as gone:
            os.write(theirs, b"x")
        assert gone.value.errno == errno.EIO
        for _ in range(3):
            print("not seen", flush=True)
    monkeypatch.undo()
    with pytest.raises(OSError):
        stream.close()


def test_other_faults_of_streams_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Terminal):
        def write(self, text: str) -> Any:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(sys, "stdout", Full())
    with harmless_streams(), pytest.raises(OSError, match="full"):
        print("x")
