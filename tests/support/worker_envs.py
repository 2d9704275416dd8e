"""Environments for worker processes: in a module of their own, which imports no torch."""

import os
import signal
import sys
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Fragile(gymnasium.Env):
    """Starts at a random number and adds its actions; terminates after ``length``; a fault, by name, comes in step 2.

    From step 3 on it succeeds, where its length is odd; where its length is 4 it does not tell.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, length: int = 9, fault: int = 0):
        self.observation_space, self.action_space = spaces.Box(-100, 100, (2,)), spaces.Box(-2, 2, (1,))
        self.length, self.fault, self.count = length, fault, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.state = 0, self.np_random.random(2)
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        if self.count == 2 and self.fault:
            FAULTS[self.fault]()
        self.state = self.state + action
        told = {} if self.length == 4 else {"success": self.count >= 3 and self.length % 2 == 1}
        return self.state, float(self.state.sum()), self.count >= self.length, False, told


def no_key() -> None:
    raise KeyError("no key")


def hang() -> None:
    print("hangs\n", end="", flush=True)  # in one piece: several workers print
    time.sleep(LONG)


def interrupt_the_parent() -> None:
    """Press Ctrl-C while the parent waits for this step: it has asked for it, and gets no answer."""
    os.kill(os.getppid(), signal.SIGINT)
    hang()


LONG = 7200
"""Seconds that nothing waits for."""
FAULTS = [
    None,
    no_key,
    lambda: os.kill(os.getpid(), signal.SIGSEGV),
    lambda: os._exit(3),
    hang,
    interrupt_the_parent,
]
RAISES, CRASHES, EXITS, HANGS, INTERRUPTS = 1, 2, 3, 4, 5


class Asked(Fragile):
    """Observes what is true of its process: whether torch is there, whether it keeps to one thread."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.array(["torch" in sys.modules, os.environ["OMP_NUM_THREADS"] == "1"], float), {}


class Unwilling(Fragile):
    """Does not close, once it has been used."""

    def close(self) -> None:
        time.sleep(LONG * self.count)
