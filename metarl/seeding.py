"""Independent, named streams of random numbers from one integer seed.

A stream depends on the seed, its name and its indices only, never on earlier draws. So iteration 300 draws the same
numbers whether or not the run was interrupted, and an exact resume needs no saved generator state.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator


def stream(seed: int, name: str, *indices: int, device: torch.device | str = "cpu") -> Generator:
    """Return the generator of a named stream, such as ``stream(0, "actions", iteration, step)``."""
    key = "/".join([str(seed), name, *map(str, indices)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return Generator(device=device).manual_seed(int.from_bytes(digest) >> 1)  # 63 bits fit a signed seed


@contextmanager
def global_generators_kept() -> Iterator[list[str]]:
    """Put the global generators back afterwards; the list then holds the names of those that were drawn from."""
    drawn = list[str]()
    python, tensors = random.getstate(), torch.get_rng_state()
    numbers: Any = np.random.get_state()  # noqa: NPY002
    try:
        yield drawn
    finally:
        now: Any = np.random.get_state()  # noqa: NPY002
        if random.getstate() != python:
            drawn.append("Python's random")
            random.setstate(python)
        if now[2] != numbers[2] or now[3:] != numbers[3:] or (now[1] != numbers[1]).any():
            drawn.append("numpy.random")
            np.random.set_state(numbers)  # noqa: NPY002
        if not torch.equal(torch.get_rng_state(), tensors):
            drawn.append("torch's default generator")
            torch.set_rng_state(tensors)
