"""Independent, named streams of random numbers from one integer seed.

A stream depends on the seed, its name and its indices only, never on earlier draws. So iteration 300 draws the same
numbers whether or not the run was interrupted, and an exact resume needs no saved generator state.
"""

import hashlib

import torch
from torch import Generator


def stream(seed: int, name: str, *indices: int, device: torch.device | str = "cpu") -> Generator:
    """Return the generator of a named stream, such as ``stream(0, "actions", iteration, step)``."""
    key = "/".join([str(seed), name, *map(str, indices)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return Generator(device=device).manual_seed(int.from_bytes(digest) >> 1)  # 63 bits fit a signed seed
