"""One integer seed, and independent named streams of random numbers from it.

A stream is made from its name and indices alone, never from what was drawn before: so iteration 300 draws the same
numbers whether or not a run was interrupted, and nothing has to be saved to resume it exactly.
"""

import hashlib

import torch
from torch import Generator


def stream(seed: int, name: str, *indices: int, device: torch.device | str = "cpu") -> Generator:
    """Return the generator of one stream, such as ``stream(0, "actions", iteration, step)``."""
    key = "/".join([str(seed), name, *map(str, indices)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return Generator(device=device).manual_seed(int.from_bytes(digest) >> 1)
