import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from metarl.safety import TimeLimitError, limited, step_timeout, time_limit


def test_a_call_that_takes_too_long_is_interrupted_and_named() -> None:
    with time_limit(0.2):
        with limited("a quick call"):
            pass
        told = r"a slow call took longer than 0.2 s, the limit of --step-timeout"
        with pytest.raises(TimeLimitError, match=told), limited("a slow call"):
            time.sleep(3600)
        time.sleep(0.5)  # nothing runs, so nothing takes too long
        with pytest.raises(TimeLimitError, match="another"), limited("another"):
            while True:
                pass


def test_the_outer_call_counts() -> None:
    with time_limit(0.3), pytest.raises(TimeLimitError, match="outer"), limited("outer"):
        while True:
            with limited("inner"):
                time.sleep(0.01)


def test_limits_end_where_they_should() -> None:
    handler, threads = signal.getsignal(signal.SIGALRM), threading.active_count()
    before = step_timeout()
    with time_limit(5.0):
        assert step_timeout() == 5.0
        with time_limit(None):
            assert step_timeout() is None
            with limited("anything"):
                pass
    assert (signal.getsignal(signal.SIGALRM), threading.active_count(), step_timeout()) == (handler, threads, before)


def test_somebody_elses_alarm_reaches_them() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    try:
        with time_limit(100.0), limited("a call"):
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert heard == [signal.SIGALRM]


def test_other_threads_are_not_interrupted() -> None:
    found: list[Any] = []

    def work() -> None:
        with time_limit(0.1), limited("a call"):
            time.sleep(0.5)
        found.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["done"]


PAUSED = """
import time
from metarl.safety import limited, time_limit

with time_limit(4.0), limited("a step"):
    print("runs", flush=True)
    for _ in range(20):
        time.sleep(0.05)
print("done")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals that pause a process")
def test_a_pause_of_the_process_does_not_count() -> None:
    script = subprocess.Popen([sys.executable, "-c", PAUSED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert script.stdout is not None
    assert script.stdout.readline() == "runs\n"
    script.send_signal(signal.SIGSTOP)
    time.sleep(5.0)
    script.send_signal(signal.SIGCONT)
    told, error = script.communicate(timeout=120)
    assert (told, error, script.returncode) == ("done\n", "", 0)
