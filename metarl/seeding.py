"""Independent, named streams of random numbers from one integer seed, and one row or one stream for each task.

A stream depends on the seed, its name and its indices only, never on earlier draws. So iteration 300 draws the same
numbers whether or not the run was interrupted, and an exact resume needs no saved generator state.

Task k gets the same numbers however many tasks there are: 5 test tasks are the first 5 of 40. ``uniform`` draws a row
for each task in one call, which costs no more than ``torch.rand``; ``spawn`` makes a generator for each task, for
everything else.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

_WORDS = 624
"""Words of 32 bits in a state of mt19937, the generator on the CPU (Matsumoto and Nishimura, 1998)."""
_FIRST_WORD = 3
"""Where they begin in torch's layout of that state, in 64-bit integers. The seed is number 0."""


class Places(NamedTuple):
    """Which tasks of a batch some tasks are: they draw the rows that they would have drawn in the whole."""

    at: Tensor
    """``[task]``: their numbers in the whole."""
    of: int
    """Number of tasks in the whole."""


def stream(seed: int, name: str, *indices: int, device: torch.device | str = "cpu") -> Generator:
    """Return the generator of a named stream, such as ``stream(0, "actions", iteration, step)``."""
    return _generator("/".join([str(seed), name, *map(str, indices)]).encode(), device)


def spawn(generator: Generator, count: int | Places) -> list[Generator]:
    """Return independent generators on the generator's device; number k is the same however many there are.

    With ``Places``, they are those of some tasks, as they are in the whole.

    The given generator moves on by the same amount, whatever the count. A meta-iteration on labelled examples that
    spawns generators cannot be compiled.
    """
    device = generator.device
    if device.type == "cpu":
        key = torch.randint(2**63 - 1, (2,), generator=generator).numpy().astype("<i8").tobytes()
    else:  # its state lies in main memory: nothing waits for the device
        key = generator.get_state().numpy().tobytes()
        torch.rand(1, generator=generator, device=device)  # moves it on
    numbers = count.at.tolist() if isinstance(count, Places) else range(count)
    return [_generator(b"%b/spawn/%d" % (key, number), device) for number in numbers]


def uniform(generator: Generator, tasks: int | Places, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Draw ``[task, *shape]`` in [0, 1) on the generator's device. Row k is the same however many tasks there are.

    With ``Places``, the rows are those of some tasks, as they are in the whole.

    Draw all numbers of a task in one call: a second call begins where the first has ended, which depends on the number
    of tasks. Where one call is not enough, each gets a generator by ``spawn``.
    """
    if isinstance(tasks, Places):
        return uniform(generator, tasks.of, *shape, dtype=dtype)[tasks.at]
    device = generator.device
    if device.type == "cpu":  # filled in order, number by number
        return torch.rand(tasks, *shape, generator=generator, dtype=dtype)
    # A GPU's threads share the work by its size, so the numbers are computed from their places instead.
    key = torch.randint(2**63 - 1, (2,), generator=generator, device=device)
    return _placed(key, tasks, torch.Size(shape), dtype or torch.get_default_dtype())


def normal(numbers: Tensor) -> Tensor:
    """Return standard normal numbers for uniform ones in [0, 1), such as ``uniform`` draws, one for each.

    They are quantiles. In float32, none is further than 5.5 standard deviations from 0.
    """
    least = torch.finfo(numbers.dtype).eps / 4  # half of the smallest number that is drawn besides 0
    quantiles: Tensor = torch.special.ndtri(numbers.clamp_min(least))
    return quantiles


def _generator(name: bytes, device: torch.device | str = "cpu") -> Generator:
    # A seed tells streams apart where torch shows no more (63 bits fit a signed integer).
    seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) >> 1
    generator = Generator(device=device).manual_seed(seed)
    if generator.device.type == "cpu":
        # On a CPU, torch makes a state of the seed's lower 32 bits: two of 10^5 streams would likely be the same.
        # So the name is hashed into the whole state. CUDA's generator uses all bits of its seed.
        state = generator.get_state()
        words = np.frombuffer(hashlib.shake_256(name).digest(4 * _WORDS), dtype="<u4")
        state.numpy().view(np.uint64)[_FIRST_WORD : _FIRST_WORD + _WORDS] = words
        generator.set_state(state)
    return generator


_STEP = -0x61C8864680B583EB
"""2^64 divided by the golden ratio, as a signed integer."""


def _placed(key: Tensor, tasks: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return numbers in [0, 1), ``[task, *shape]``, which follow from the key ``[2]`` and their places."""
    count = shape.numel()
    of_tasks = _mixed(key[0] + _STEP * torch.arange(tasks, device=key.device)).unsqueeze(1)
    places = _mixed(of_tasks + _STEP * torch.arange(count, device=key.device))
    # Mixed again with the second number of the key: two keys share no row unless all of their bits are equal.
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))  # as many as the dtype holds: no number is rounded to 1
    numbers: Tensor = _mixed(places ^ key[1]) >> 64 - bits & 2**bits - 1
    return numbers.to(dtype).mul(2.0**-bits).reshape(tasks, *shape)


def _mixed(values: Tensor) -> Tensor:
    """Mix the bits of 64-bit integers (the finaliser of SplitMix64: Steele, Lea and Flood, 2014). Products wrap."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        values = (values ^ values >> shift & 2 ** (64 - shift) - 1) * factor
    return values


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
