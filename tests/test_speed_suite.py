"""The speed suite of tests/benchmarks: all of it runs, its contest is fair, and its counts are what torch computes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metarl.algorithms.maml import MAML
from metarl.control.sampling import Sampling
from metarl.networks.derivatives import perceptron
from metarl.networks.options import Network
from metarl.outer import adapted
from metarl.outer.trpo import TRPO
from metarl.seeding import stream
from metarl.training.iteration import gather
from metarl_envs.navigation import PointNavigation

BENCHMARKS = Path(__file__).parent / "benchmarks"
LONG = pytest.mark.benchmark  # half a minute each, and minutes on a slow machine


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    ["ceilings", *(pytest.param(each, marks=LONG) for each in ("iteration", "few-shot", "sampling", "growth"))],
)
def test_every_part_runs_at_a_small_size(part: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    command = [sys.executable, str(BENCHMARKS / "suite.py"), "--small", "--only", part, "--json", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(path.read_text())
    assert found["machine"]["versions"]["torch"] == torch.__version__
    rows = [row for group in found["parts"][part].values() for row in group["rows"].values()]
    finished = [row for row in rows if "absent" not in row]
    assert finished and all(row["seconds"] > 0 and row["peak_bytes"] > 2**20 for row in finished)
    assert all(math.isfinite(value) for row in finished for value in row["numbers"].values())
    assert ended.stdout.count("\n| ") > 2


FAKES = """
import time
from entrant import Entrant

now = 0.0
time.perf_counter = lambda: now  # work takes the time that it says, however busy the machine is

def working(seconds):
    def work(number):
        global now
        now += seconds
        return {"steps": 10.0}
    return Entrant(work, {"asked": seconds})

def broken():
    raise ValueError("this one cannot start")

def breaking():
    def work(number):
        if number:
            raise ValueError("this one fails at work")
    return Entrant(work)

def lacking():
    raise ModuleNotFoundError("No module named 'jax'", name="jax")
"""


def compete(makers: dict[str, tuple[str, dict[str, Any]]], rounds: int = 3) -> dict[str, dict[str, Any]]:
    import contest

    contestants = [contest.Contestant(name, f"fakes:{make}", given) for name, (make, given) in makers.items()]
    return contest.compete(contest.Group("fakes", {}, contestants, rounds))


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.usefixtures("fakes")
def test_contestants_are_compared_round_by_round() -> None:
    rows = compete({"one": ("working", {"seconds": 0.02}), "three": ("working", {"seconds": 0.06})})
    assert [len(row["series"]) for row in rows.values()] == [3, 3]
    assert rows["one"]["ratio"] == 1 and rows["three"]["ratio"] == pytest.approx(3)
    assert rows["three"]["told"] == {"asked": 0.06} and rows["three"]["numbers"] == {"steps": 10.0}


@pytest.mark.usefixtures("fakes")
def test_who_fails_or_is_not_installed_is_told_and_the_others_go_on() -> None:
    names = {"working": {"seconds": 0.01}, "broken": {}, "breaking": {}, "lacking": {}}
    rows = compete({name: (name, given) for name, given in names.items()})
    assert rows["broken"] == {"failed": "ValueError: this one cannot start"}
    assert rows["breaking"]["failed"] == "ValueError: this one fails at work" and "seconds" not in rows["breaking"]
    assert rows["lacking"] == {"absent": "jax is not installed"}
    assert rows["working"]["seconds"] == pytest.approx(0.01)


class Products(TorchDispatchMode):
    """Counts the operations of batched matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        if name in ("aten::bmm", "aten::baddbmm", "aten::baddbmm_"):
            left, right = args[-2:]
            self.operations += 2 * left.shape[0] * left.shape[1] * left.shape[2] * right.shape[2]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("steps", [1, 2])
def test_operations_of_an_update_are_those_that_torch_computes(steps: int) -> None:
    import counts

    torch.set_num_threads(1)
    family = PointNavigation(sampling=Sampling(episodes=2, horizon=5))
    learner = MAML(network=Network(hidden=(7, 6), activation="tanh"), steps=steps).build(family.spec)
    params = learner.init(stream(0, "initialisation"))
    draws = (stream(0, "draw", index) for index in range(steps + 1))
    experience, _ = gather(learner, params, family.sample(3, "train", stream(0, "tasks")), draws)
    network = {"hidden": [7, 6], "activation": "tanh"}
    sizes = {"family": "navigation", "tasks": 3, "episodes": 2, "horizon": 5, "steps": steps, **network}
    expected = counts.trpo_parts(sizes, tries=1)
    with Products() as linearising:
        line = adapted.linearise(learner, params, experience)
    vector = torch.ones_like(line.gradient.detach())
    with Products() as products:
        for _ in range(counts.PRODUCTS):
            adapted.kl_hessian_product(learner, [line], vector)
    with Products() as evaluation:
        adapted.surrogate_and_kl(learner, params, [experience], [line.outputs.detach()])
    assert linearising.operations == expected["adaptation"].operations + expected["gradient"].operations
    assert products.operations == expected["conjugate gradient"].operations
    assert evaluation.operations == expected["line search"].operations
    assert counts.NARROW == perceptron.NARROW


@pytest.mark.usefixtures("float64")
def test_plain_contestants_take_the_same_step() -> None:
    import iteration

    size = {"family": "navigation", "tasks": 3, "episodes": 4, "horizon": 6, "device": "cpu", "keep_memory": False}
    problem = iteration.Problem(hidden=[8, 8], activation="tanh", **size)
    outer = TRPO()
    ours, plain = problem.run(problem.network, outer), problem.run(problem.opaque(), outer)
    params = ours.first().params
    draws = (stream(0, "draw", index) for index in range(2))
    experience, _ = gather(ours.learner, params, problem.size.family.sample(3, "train", stream(0, "tasks")), draws)
    expected = ours.outer.update(ours.learner, params, {}, experience).params
    found = iteration.plain_update(plain.learner, params, experience, outer)
    assert any(not torch.equal(expected[name], params[name]) for name in params)
    assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-10) for name in params)


def test_tables_replace_what_stands_between_their_marks() -> None:
    import tables

    page = "before\n<!-- suite: sampling -->\nold\n<!-- end -->\nafter\n<!-- suite: growth -->\nkept\n<!-- end -->\n"
    expected = page.replace("old\n", "\nnew\n\n")
    assert tables.replaced(page, "sampling", "new") == expected
    with pytest.raises(ValueError, match="no place for iteration"):
        tables.replaced(page, "iteration", "new")


def test_growth_is_drawn_from_the_points_on_its_axes(tmp_path: Path) -> None:
    import growth_picture
    import tables

    points = [("navigation", 10, 1), ("navigation", 20, 1), ("navigation", 10, 2), ("navigation", 20, 2)]
    groups = {
        str(point): {
            "sizes": {"family": point[0], "tasks": point[1], "steps": point[2], "hidden": [8, 8], "base": [10, 1, 8]},
            "rows": {"metarl": {"seconds": 0.001 * point[1] * point[2], "peak_bytes": 3 << 20, "start_bytes": 1 << 20}},
        }
        for point in points
    }
    axes = tables.axes(groups)
    assert [sorted(value for _, value in rows) for rows in axes.values()] == [[10, 20], [1, 2], [8]]
    assert "| 20 | 20 | 2 |" in tables.growth(groups) and "| 2 | 20 | 2 |" in tables.growth(groups)
    growth_picture.draw(axes, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_arithmetic_of_ranks_is_that_of_its_page(tmp_path: Path) -> None:
    import ranks_arithmetic

    page = (BENCHMARKS.parents[1] / "docs" / "many_machines.md").read_text(encoding="utf-8")
    assert all(line in page for line in ranks_arithmetic.table().splitlines()[2:])
    assert ranks_arithmetic.seconds(1, 1) == pytest.approx((13.7 * 20e-6, 0))
    assert ranks_arithmetic.weak(8, 10**9) < 0.6  # 11 sums of 8 GB, twice through 200 GB/s
    ranks_arithmetic.draw(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 10_000
