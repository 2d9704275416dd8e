"""One and two ranks on this machine: iterations a second, the share of time in sums, and what is sent.

Run by hand: ``python tests/benchmarks/ranks.py``. Strong scaling gives two ranks the tasks of one; weak scaling twice
as many. One and two ranks take turns, and the fastest iterations of all turns count: other work only adds
time. CPU seconds are those of the busier rank. ``--json`` keeps the numbers.
"""

import argparse
import json
import pickle
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gymnasium import spaces
from slow_point import Slow

from metarl import MAML, Settings, train
from metarl.control import GymnasiumFamily, Sampling
from metarl.networks import Network
from metarl.outer import TRPO, Adam
from metarl.speed.ranks.failing import Board
from metarl_envs.navigation import PointNavigation
from metarl_envs.robots.half_cheetah import HalfCheetahDirection
from metarl_plugins.sinusoid import Sinusoid

SLOW = GymnasiumFamily(
    Slow, spaces.Dict(goal=spaces.Box(-1.0, 1.0)), apply="keyword", sampling=Sampling(episodes=4, horizon=10), workers=2
)
SMALL = Sampling(episodes=10, horizon=50)
CASES: dict[str, tuple[Any, Any, int, int]] = {
    "2-D navigation, TRPO": (PointNavigation(sampling=SMALL), TRPO(), 20, 8),
    "half-cheetah, TRPO": (HalfCheetahDirection(sampling=SMALL), TRPO(), 10, 5),
    "sinusoids, Adam": (Sinusoid(), Adam(), 20, 30),
    "5 ms a step, 2 workers a rank": (SLOW, Adam(), 4, 4),
}
"""Family, outer update, tasks of a meta-batch, and iterations of a turn."""
WARM = 2
"""First iterations of a turn, which are left out."""


@dataclass
class Watch:
    """Notes what a rank does in each iteration."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))
    """Number, bytes and seconds of collectives by what is summed."""
    sent: int = 0

    def begin(self) -> None:
        """Note each collective from now on, and each iteration by its comparison of parameters at the end."""
        ask, reduce, gather = Board.wait, dist.all_reduce, dist.all_gather

        def all_reduce(tensor: Any, **options: Any) -> Any:
            self.sent = tensor.nbytes
            return reduce(tensor, **options)

        def all_gather(found: Any, tensor: Any, **options: Any) -> Any:
            self.sent = tensor.nbytes
            return gather(found, tensor, **options)

        def wait(board: Board, work: Any, what: str) -> None:
            began = time.perf_counter()
            ask(board, work, what)
            told = self.sums[what]
            told[:] = told[0] + 1, told[1] + self.sent, told[2] + time.perf_counter() - began
            if what == "comparing parameters":
                self.note(None)

        Board.wait = wait  # type: ignore[method-assign]
        dist.all_reduce, dist.all_gather = all_reduce, all_gather

    def note(self, iteration: Any) -> None:
        """Note the time: a callback of one process."""
        self.walls.append(time.perf_counter())
        self.cpus.append(time.process_time())
        if len(self.walls) == WARM:
            self.sums.clear()


def work(rank: int, count: int, name: str, weak: bool, folder: Path) -> None:
    """Train as one rank, and leave what was noted."""
    torch.set_num_threads(1)
    watch, (family, outer, tasks, iterations) = Watch(), CASES[name]
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
        watch.begin()
    settings = Settings(device="cpu", iterations=iterations + WARM, log_every=10_000)
    settings = replace(settings, meta_batch_size=tasks * count if weak else tasks)
    train(MAML(network=Network()), family, outer, settings, callbacks=[watch.note] if count == 1 else [])
    told = np.diff(watch.walls[WARM - 1 :]), np.diff(watch.cpus[WARM - 1 :]), dict(watch.sums), iterations
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(told))


def turn(count: int, name: str, weak: bool) -> list[Any]:
    """Train with so many ranks, and return what each has noted."""
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        ranks = [
            get_context("spawn").Process(target=work, args=(rank, count, name, weak, folder)) for rank in range(count)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(count)]


def measured(name: str, turns: int) -> dict[str, Any]:
    """Return the numbers of one family."""
    kinds = {"one": (1, False), "strong": (2, False), "weak": (2, True)}
    found: dict[str, list[list[Any]]] = {kind: [] for kind in kinds}
    for _ in range(turns):
        for kind, (count, weak) in kinds.items():
            found[kind].append(turn(count, name, weak))
    walls = {kind: min(float(min(ranks[0][0])) for ranks in of) for kind, of in found.items()}
    cpus = {kind: min(max(float(min(rank[1])) for rank in ranks) for ranks in of) for kind, of in found.items()}
    _, _, sums, iterations = found["strong"][-1][0]
    each = {what: [value / iterations for value in told] for what, told in sums.items()}
    waits = [min(sum(told[2] for told in rank[2].values()) / float(sum(rank[0])) for rank in ranks)
             for ranks in found["strong"]]  # fmt: skip
    return {"seconds": walls, "cpu_seconds": cpus, "sums": each, "share_in_sums": min(waits)}


def report(name: str, found: dict[str, Any]) -> None:
    """Print a family's rows."""
    number, sent, _ = (sum(told[place] for told in found["sums"].values()) for place in range(3))
    cells = [f"{1 / found['seconds']['one']:.2f}"]
    for times in (found["seconds"], found["cpu_seconds"]):
        cells += [f"{times['one'] / times['strong']:.2f}", f"{2 * times['one'] / times['weak']:.2f}"]
    print(" | ".join(["", name, *cells, f"{found['share_in_sums']:.0%}", f"{number:.1f}", f"{sent:,.0f}", ""]).strip())
    for what, (count, nbytes, _) in found["sums"].items():
        print(f"  - {what}: {count:.1f}, {nbytes:,.0f} bytes")


def main() -> None:
    """Measure every family and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES), help="some of the families")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    print("| family | iterations/s, one rank | strong | weak | strong, CPU | weak, CPU | in sums | sums | bytes |")
    told = {name: measured(name, options.turns) for name in options.cases}
    for name, found in told.items():
        report(name, found)
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
