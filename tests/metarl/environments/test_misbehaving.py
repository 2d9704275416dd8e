"""Environments that end the program, press Ctrl-C, return complex numbers, or do not close."""

import signal
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import worker_envs

import metarl
from metarl import cli
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.rollouts import RolloutError
from metarl.control.sampling import Sampling
from metarl.environments import LaneError, is_fault
from metarl.training import Settings, TrainingError
from metarl_envs.bandit import Bandit


class Misbehaving(worker_envs.Fragile):
    """Does what ``fault`` says in its second step, or when it is closed."""

    def step(self, action: Any) -> Any:
        observation, *others = self._plain(action)
        if self.count == 2:
            FAULTS[self.fault]()
        return (observation + 1j * self.count if self.fault == COMPLEX else observation, *others)

    def _plain(self, action: Any) -> Any:
        fault, self.fault = self.fault, 0
        try:
            return super().step(action)
        finally:
            self.fault = fault

    def close(self) -> None:
        if self.fault == OPEN and self.count:
            raise OSError("cannot close")


def press() -> None:
    raise KeyboardInterrupt


def exhaust() -> None:
    raise MemoryError("no memory")


FAULTS = [lambda: None, lambda: sys.exit(0), press, lambda: None, lambda: None, exhaust]
EXITS, PRESSES, COMPLEX, OPEN, EXHAUSTS = 1, 2, 3, 4, 5
TOLD = {EXITS: "SystemExit: 0", PRESSES: "KeyboardInterrupt", COMPLEX: "complex numbers", EXHAUSTS: "no memory"}


def family(fault: int, workers: int) -> GymnasiumFamily:
    parameters = spaces.Dict(fault=spaces.Discrete(1, start=fault))
    sampling = Sampling(episodes=2, horizon=4)
    return GymnasiumFamily(Misbehaving, parameters, "attribute", sampling=sampling, workers=workers)


@pytest.fixture
def handled() -> Any:
    """Ctrl-C is handled by somebody else than Python, as during training."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fault", TOLD)
def test_a_fault_is_told_with_its_lane_and_task(fault: int, workers: int, handled: None) -> None:
    lanes = family(fault, workers).environment(4, torch.device("cpu"))
    try:
        lanes.reset(options={"fault": np.full(4, fault)})
        with pytest.raises(LaneError, match=rf"lane 0, step [12]: .*{TOLD[fault]}.*task {{'fault': {fault}}}"):
            for _ in range(2):
                lanes.step(np.zeros((4, 1)))
    finally:
        lanes.close()


def test_ctrl_c_is_not_blamed_on_an_environment() -> None:
    assert not is_fault(KeyboardInterrupt())
    lanes = family(PRESSES, 1).environment(1, torch.device("cpu"))
    lanes.reset(options={"fault": [PRESSES]})
    lanes.step(np.zeros((1, 1)))
    with pytest.raises(KeyboardInterrupt):
        lanes.step(np.zeros((1, 1)))
    lanes.close()


def test_training_ends_with_an_error_and_not_in_silence() -> None:
    """In Python, SystemExit(0) would end the user's script as if it had succeeded."""
    with pytest.raises(RolloutError, match=r"task 0, lane 0 .*step 2: LaneError: .*SystemExit: 0"):
        metarl.train("maml", family(EXITS, 1), settings=Settings(1, 2, device="cpu"))

    def leave(iteration: Any) -> None:
        sys.exit(0)

    with pytest.raises(TrainingError, match=r"called sys.exit\(0\)"):
        metarl.train("maml", Bandit(arms=2), settings=Settings(1, 2, device="cpu"), callbacks=[leave])


def test_a_failing_close_is_a_warning_and_closes_the_others() -> None:
    lanes = family(OPEN, 1).environment(2, torch.device("cpu"))
    lanes.reset(options={"fault": [OPEN] * 2})
    lanes.step(np.zeros((2, 1)))
    with pytest.warns(UserWarning, match=r"could not be closed: OSError: cannot close") as told:
        lanes.close()
    assert len(told) == 2
    assert lanes.closed


def test_own_vector_lanes_may_not_return_complex_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Bandit(arms=2)
    lanes = type(chosen.environment(1, torch.device("cpu")))
    step = lanes.step
    monkeypatch.setattr(lanes, "step", lambda self, actions: _complex(step(self, actions)))
    with warnings.catch_warnings(action="error"), pytest.raises(RolloutError, match=r"rewards at step 1 are complex"):
        metarl.train("maml", chosen, settings=Settings(1, 2, device="cpu"))


def _complex(outcome: Any) -> Any:
    observation, reward, *others = outcome
    return (observation, reward + 0j, *others)


def test_a_command_does_not_end_with_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bandit, "sample", lambda *arguments: sys.exit(0))
    assert cli.main(["train", "maml", "bandit", "--iterations", "1", "--out", "unused"]) in (1, 2)
