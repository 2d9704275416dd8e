"""Text of other packages and files, printed so that a terminal shows it and does not obey it."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_OWN = re.compile(r"\r|\x1b\[[0-9;]*m|\x1b\[A")
"""What tyro's help and tqdm's bars send to a terminal: the start of the line, colours, the line above."""


def harmless(text: str) -> str:
    """Return text with control sequences written out, as Python does in a repr. Line ends and tabs stay."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    return char if char.isprintable() or char in "\n\t" else repr(char)[1:-1]


@contextmanager
def harmless_streams() -> Iterator[None]:
    """Write out control sequences in all that this process prints, whoever wrote the text.

    A terminal still gets colours and bars. Where it goes away, what was printed for it is dropped.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Shown(stream) for stream in before)
    try:
        yield
    finally:
        for name, own in zip(("stdout", "stderr"), before, strict=True):
            if isinstance(getattr(sys, name), _Shown):  # else somebody has redirected it since
                setattr(sys, name, own)


class _Shown:
    """A stream whose text is made harmless before it is written; in all else it is the stream that it wraps."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._terminal = bool(stream.isatty())

    def write(self, text: str) -> int:
        parts, last = [], 0
        for own in _OWN.finditer(text) if self._terminal else ():
            parts += [harmless(text[last : own.start()]), own[0]]
            last = own.end()
        self._reach(lambda: self._stream.write("".join([*parts, harmless(text[last:])])))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._reach(self._stream.flush)

    def _reach(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            if not (self._terminal and error.errno == errno.EIO):  # a terminal that was closed
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)
