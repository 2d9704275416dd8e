"""Ctrl-C, and signals that ask a process to end: finish the current iteration, save, then stop."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from metarl.speed import ranks

ASKING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU") if hasattr(signal, name))
"""Signals that end a process where nobody handles them. Slurm sends SIGTERM, or with ``--signal`` another one, before
its time limit; a terminal that goes away sends SIGHUP."""


class Stop(threading.Event):
    """Set when training is to stop after the current iteration."""

    signal: int | None = None
    """The signal that asked for it."""


@contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """Set the event at the first Ctrl-C or signal to end, to stop after the current iteration. A second ends at once.

    Signals that somebody else handles, or ignores as nohup does, are left alone.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread can handle signals
        return
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    before |= {number: signal.SIG_DFL for number in ASKING if signal.getsignal(number) is signal.SIG_DFL}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: object) -> None:
        stop.signal = number
        stop.set()
        restore()
        again = "press Ctrl-C again" if number == signal.SIGINT else "a second signal"
        _tell(f"stopping after this iteration; {again} to stop at once")

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()


def _tell(text: str) -> None:
    if not ranks.is_first():
        return
    with suppress(OSError):  # the terminal has gone away
        print(text, file=sys.stderr)
