"""Signals that ask a run to end."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.algorithms import MAML
from metarl.networks import Network
from metarl.training.interrupts import stop_on_interrupt
from metarl.training.settings import Settings
from metarl.training.start import resume, train


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_end_saves_and_stops_with_its_number(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name)

    def ask(iteration: Any) -> None:
        if iteration.progress.iteration == 2:
            os.kill(os.getpid(), number)

    settings = Settings(iterations=9, meta_batch_size=2, device="cpu", log_every=1)
    algorithm = MAML(network=Network(hidden=(4,)))
    result = train(algorithm, "sinusoid", settings=settings, out=tmp_path / "run", callbacks=[ask])
    assert (result.interrupted, result.signal, len(result.rows)) == (True, number, 2)
    assert signal.getsignal(number) is signal.SIG_DFL
    resumed, whole = resume(tmp_path / "run"), train(algorithm, "sinusoid", settings=settings)
    assert all(torch.equal(resumed.params[name], value) for name, value in whole.params.items())


def test_signals_that_are_ignored_or_handled_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_interrupt() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
