"""What the machine can do at best: matrix products, copies in memory, and small operations one after another."""

import time
from collections.abc import Callable

import torch
from entrant import Entrant, synchronise
from torch import Tensor


def ceilings(device: str, square: int, copied: int, batches: list[list[int]], least: float) -> Entrant:
    """Rates in float32 on torch's threads, each measured for ``least`` seconds.

    ``square`` is the side of the large matrices, ``copied`` the bytes of the copied tensor, which caches must not hold;
    ``batches`` are products ``[batch, rows, width] x [batch, width, width]``.
    """

    def rate(work: Callable[[], object], amount: float) -> float:
        work()
        seconds, repeats = 0.0, 1
        while seconds < least:
            repeats *= 2
            synchronise(device)
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            synchronise(device)
            seconds = time.perf_counter() - began
        return amount * repeats / seconds

    def products(batch: int, rows: int, width: int) -> float:
        left, right = filled(batch, rows, width), filled(batch, width, width)
        out = torch.empty_like(left)
        return rate(lambda: torch.bmm(left, right, out=out), 2 * batch * rows * width * width)

    def filled(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    def work(number: int) -> dict[str, float]:
        source, scalar = torch.ones(copied // 4, device=device), torch.ones((), device=device)
        target = torch.empty_like(source)
        found = {"gemm": products(1, square, square)}
        found |= {f"gemm_{width}": products(batch, rows, width) for batch, rows, width in batches}
        found["copy"] = rate(lambda: target.copy_(source), 2 * copied)  # read once, written once
        found["operator"] = 1 / rate(lambda: scalar.add_(1), 1)
        found["round_trip"] = 1 / rate(scalar.item, 1)
        return found

    return Entrant(work, {"threads": torch.get_num_threads()}, device)
