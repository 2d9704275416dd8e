"""How long one call of an environment or a family may take.

A thread looks at the clock, and interrupts the main thread by a signal where a call takes too long. That reaches Python
and what waits in the system, but no native code that never returns: lanes in worker processes, which are killed, have
no such limit. Elsewhere than in the main thread, and on Windows, only workers are limited. While the process is paused
(SIGSTOP, Ctrl-Z), the clock stands still.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

DEFAULT = 600.0
"""Seconds."""


class TimeLimitError(RuntimeError):
    """A call took longer than the limit."""


class _Watch:
    """The limit in force, and the call that is running."""

    def __init__(self) -> None:
        self.seconds: float | None = DEFAULT
        self.watched: int | None = None
        """The thread that is interrupted; None: nobody is."""
        self.deadline: float | None = None
        self.what = ""
        self.sent = False
        self.paused = 0.0
        """Seconds for which the process did not run. Only the thread that looks writes it."""


_watch = _Watch()


def step_timeout() -> float | None:
    """Return the limit in force, in seconds; None for no limit."""
    return _watch.seconds


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Limit each call in ``limited``, and each command to a worker, to some seconds; None: no limit."""
    before, _watch.seconds = _watch.seconds, seconds
    try:
        if seconds is None or _watch.watched is not None or not _can_interrupt():
            yield
        else:
            with _watching():
                yield
    finally:
        _watch.seconds = before


def _can_interrupt() -> bool:
    return (
        hasattr(signal, "SIGALRM")
        and hasattr(signal, "pthread_kill")
        and threading.current_thread() is threading.main_thread()
    )


@contextmanager
def _watching() -> Iterator[None]:
    ended = threading.Event()
    before = signal.getsignal(signal.SIGALRM)

    def interrupt(number: int, frame: Any) -> None:
        if _watch.sent:
            _interrupt()
        elif callable(before):
            before(number, frame)  # somebody else's alarm

    thread = threading.Thread(target=_look, args=(ended, threading.get_ident()), daemon=True)
    signal.signal(signal.SIGALRM, interrupt)
    _watch.watched = threading.get_ident()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _watch.watched = _watch.deadline = None
        signal.signal(signal.SIGALRM, before)


def _look(ended: threading.Event, watched: int) -> None:
    """Interrupt the watched thread whenever its deadline has passed."""
    before = time.monotonic(), time.process_time()
    while not ended.wait(interval := min(1.0, (_watch.seconds or 1.0) / 10)):
        now = time.monotonic(), time.process_time()
        passed, used = (after - earlier for earlier, after in zip(before, now, strict=True))
        before = now
        if used < 0.1 * passed:  # or native code has kept this thread from looking
            _watch.paused += max(0.0, passed - interval)
        deadline = _watch.deadline
        if deadline is not None and not _watch.sent and _clock() > deadline:
            _watch.sent = True
            signal.pthread_kill(watched, signal.SIGALRM)


def _clock() -> float:
    """Return seconds in which the process ran, from some start on."""
    return time.monotonic() - _watch.paused


def _interrupt() -> None:
    """Raise TimeLimitError, unless the call has returned since the signal was sent."""
    deadline, _watch.sent, _watch.deadline = _watch.deadline, False, None
    if deadline is not None and _clock() > deadline:
        raise TimeLimitError(f"{_watch.what} took longer than {_watch.seconds:g} s, the limit of --step-timeout")


class limited:  # a context manager, called as a function: a generator would cost every step more
    """Limit what happens within, if a ``time_limit`` is in force in this thread. Calls within calls do not count.

    Raises TimeLimitError, which says what took so long.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_outer = False

    def __enter__(self) -> None:
        if _watch.watched is None or _watch.deadline is not None or threading.get_ident() != _watch.watched:
            return
        self._is_outer, _watch.what = True, self._what
        _watch.deadline = _clock() + (_watch.seconds or float("inf"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_outer:
            _watch.deadline = None
