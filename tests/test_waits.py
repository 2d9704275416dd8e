"""How often a processor waits for a GPU: counted in whole meta-iterations, on a pretended device and on a real one.

What is sent to a device is not waited for; what is read from it is. Each draw of episodes asks once whether all of its
numbers are finite, each update reads what it decides by, and a row of metrics is read at once where it is logged.
"""

import warnings
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from support import pretended

from metarl import seeding
from metarl.advantages.baseline import fitted_values
from metarl.algorithms.gradient.bmaml import BMAML
from metarl.algorithms.gradient.cavia import CAVIA
from metarl.algorithms.gradient.imaml import IMAML
from metarl.algorithms.gradient.leap import Leap
from metarl.algorithms.gradient.meta_lstm import MetaLSTM
from metarl.algorithms.maml import MAML
from metarl.algorithms.mann import MANN
from metarl.algorithms.matching import Matching
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.protonet import ProtoNet
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.rl2 import RL2
from metarl.algorithms.siamese import Siamese
from metarl.algorithms.snail import SNAIL
from metarl.control.sampling import Sampling
from metarl.environments import mdp
from metarl.evaluation.scores import evaluate
from metarl.fewshot import classification, regression
from metarl.fewshot.classification import NWayKShot
from metarl.fewshot.regression import TableRegression
from metarl.networks.options import Network
from metarl.outer.gradient import SGD, Adam
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.training import loop
from metarl.training.loop import Run
from metarl.training.settings import Settings
from metarl_envs.bandit import Bandit
from metarl_envs.mujoco import Simulation
from metarl_envs.navigation import PointNavigation
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity
from metarl_envs.tabular import TabularMDP
from metarl_plugins.sinusoid import Sinusoid

SAMPLING = Sampling(episodes=3, horizon=5)
NAVIGATION, BANDIT, TABULAR = (
    PointNavigation(sampling=SAMPLING),
    Bandit(sampling=SAMPLING),
    TabularMDP(sampling=SAMPLING),
)
ON_THE_CPU = HalfCheetahVelocity(sampling=SAMPLING, simulation=Simulation("native"))
LABELS = torch.arange(60) // 4
PIXELS = torch.randint(256, (60, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = NWayKShot(PIXELS, LABELS, ways=3, rotations="train")
TABLE = TableRegression(torch.rand(60, 2), torch.rand(60), LABELS, shots=2)
MLP, CONV = Network(hidden=(8,)), Network("conv4", filters=4)
WIDE = {"channels": 4, "keys": (4, 4), "values": (4, 4), "embedding": 4}


class Case(NamedTuple):
    algorithm: Any
    family: Any
    outer: Any
    waits: int
    """In an iteration that is not logged, but for the line search, which waits once for each length that it tries."""

    def __str__(self) -> str:
        return "-".join(type(part).__name__ for part in self[:3])


CASES = [
    # Control: one for each of two draws; TRPO one more and its line search, ProMP one, Adam one for each epoch.
    Case(MAML(network=MLP), NAVIGATION, TRPO(), 3),
    Case(MAML(network=MLP, surrogate="dice"), TABULAR, TRPO(), 3),
    Case(MAML(network=MLP, steps=3), BANDIT, TRPO(keep_graphs=False), 5),
    Case(MAML(network=MLP), NAVIGATION, ProMP(epochs=5), 3),
    Case(MAML(network=MLP), NAVIGATION, Adam(), 3),
    Case(MAML(network=MLP, exploration_term=1.0), NAVIGATION, Adam(), 3),
    Case(RL2(hidden=8), NAVIGATION, TRPO(), 3),
    Case(RL2(hidden=8), BANDIT, Adam(epochs=3), 5),
    Case(Reptile(network=MLP, steps=2, carry_moments=False), TABULAR, SGD(), 4),
    Case(CAVIA(network=MLP), NAVIGATION, TRPO(), 3),
    # Where environments run on the CPU, every step waits for its actions besides.
    Case(MAML(network=MLP), ON_THE_CPU, TRPO(), 3 + 2 * SAMPLING.horizon),
    # Labelled examples: whether the meta-gradient is finite.
    Case(MAML(network=MLP), Sinusoid(), Adam(), 1),
    Case(MAML(network=MLP, steps=3, learn_step_sizes=True, multi_step_loss=0.5), Sinusoid(), SGD(1e-3), 1),
    Case(Reptile(network=MLP), Sinusoid(), SGD(), 1),
    Case(MultiTask(network=MLP, condition="add"), Sinusoid(), Adam(), 1),
    *(
        Case(MultiTask(network=MLP, weighting=how), Sinusoid(amplitude=(1.0, 1.0), phase=(0.0, 0.0)), Adam(), 1)
        for how in ("uncertainty", "pcgrad", "gradnorm")  # which read one-hot descriptors: (1, 0)
    ),
    Case(MAML(network=MLP), TABLE, Adam(), 1),
    Case(MAML(network=CONV), IMAGES, Adam(), 1),
    Case(MAML(network=Network("conv4", filters=4, batch_norm="inductive")), IMAGES, SGD(), 1),
    Case(Reptile(network=CONV), IMAGES, SGD(), 1),
    Case(ProtoNet(network=CONV), IMAGES, Adam(), 1),
    Case(ProtoNet(network=CONV), IMAGES, SGD(), 1),
    Case(Matching(network=CONV, full_context=True), IMAGES, Adam(), 1),
    Case(Siamese(network=CONV), IMAGES, Adam(), 1),
    Case(SNAIL(network=CONV, **WIDE), IMAGES, Adam(), 1),
    Case(MANN(slots=6, width=4, controller=5, heads=2), IMAGES, Adam(), 1),
    Case(RL2(hidden=8), IMAGES, Adam(), 1),
    Case(CAVIA(network=MLP), Sinusoid(), Adam(), 1),
    Case(CAVIA(context_in="film", network=CONV), IMAGES, Adam(), 1),
    Case(IMAML(steps=3, network=MLP), Sinusoid(), Adam(), 1),
    Case(IMAML(steps=3, optimiser="adam", momentum=0.5, network=CONV), IMAGES, Adam(), 1),
    Case(BMAML(particles=3, network=MLP), Sinusoid(), Adam(), 1),
    Case(BMAML(particles=2, network=CONV), IMAGES, Adam(), 1),
    Case(Leap(steps=3, network=MLP), Sinusoid(), Adam(), 1),
    Case(Leap(steps=3, batch_size=2, network=CONV), IMAGES, SGD(1e-3), 1),
    Case(MetaLSTM(steps=2, units=3, network=CONV), IMAGES, Adam(), 1),
]


def named(name: str) -> Case:
    """Return the first case of this name."""
    return next(case for case in CASES if str(case) == name)


EVALUATED = {
    # A draw for each of three policies, one row for each score, and the steps that were learned from.
    "MAML-PointNavigation-TRPO": 3 + 1 + 1,
    "MAML-Sinusoid-SGD": 1,
    "ProtoNet-NWayKShot-Adam": 2,
}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let runs take the pretended device."""
    monkeypatch.setattr(loop, "resolve_device", lambda name: pretended.DEVICE)
    with pretended.generators(seeding, mdp):
        yield


def run_of(case: Case) -> Run:
    return Run(case.algorithm, case.family, case.outer, Settings(iterations=3, meta_batch_size=4))


def expected(case: Case, row: Any) -> int:
    return case.waits + int(row.get("outer/line_search_steps", 0))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_meta_iteration_waits_a_handful_of_times(case: Case, pretend: None) -> None:
    run = run_of(case)
    with pretended.Waits():
        progress, _ = run.iterate(run.first())  # what is sent once only is sent here
    with pretended.Waits() as waits:
        reached, row = run.iterate(progress)
    assert {value.device for value in reached.params.values()} == {pretended.DEVICE}
    assert row["outer/refused"] == 0
    assert sum(waits.counts.values()) == expected(case, row), "\n".join(waits.places)


@pytest.mark.parametrize("case", [named(name) for name in EVALUATED], ids=str)
def test_a_logged_row_is_read_at_once(case: Case, pretend: None) -> None:
    run = run_of(case)
    with pretended.Waits():
        _, row = run.iterate(run.first())
    with pretended.Waits() as waits:
        numbers = loop.read_numbers(row)
    assert waits.counts == {"to the processor": 1}
    assert all(isinstance(value, float | int) for value in numbers.values())


@pytest.mark.parametrize(("name", "waits"), list(EVALUATED.items()))
def test_an_evaluation_waits_for_draws_and_scores(name: str, waits: int, pretend: None) -> None:
    case = named(name)
    run = run_of(case)
    with pretended.Waits():
        params = run.first().params
        evaluate(run.learner, params, case.family, 3, 2, device=pretended.DEVICE)
    with pretended.Waits() as counted:
        evaluate(run.learner, params, case.family, 3, 2, device=pretended.DEVICE)
    assert sum(counted.counts.values()) == waits, "\n".join(counted.places)


@pytest.fixture
def drawn_alike() -> Iterator[None]:
    """Let both devices draw the same numbers. Else streams and rows of random numbers are made differently there."""

    def generator(name: bytes, device: Any = "cpu") -> torch.Generator:
        return seeding.Generator(device=device).manual_seed(zlib.crc32(name))

    def uniform(generator: torch.Generator, *shape: int, dtype: Any = None) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype, device=generator.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeding, "_generator", generator)
        for module in (classification, regression):
            patch.setattr(module, "uniform", uniform)
        yield


@pytest.mark.parametrize("case", [case for case in CASES if not case.family.spec.control], ids=str)
def test_a_pretended_device_gives_what_the_cpu_gives(
    case: Case, drawn_alike: None, pretend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended.Waits():
        run = run_of(case)
        there, _ = run.iterate(run.first())
        there = {name: value.cpu() for name, value in there.params.items()}
    monkeypatch.undo()
    run = Run(case.algorithm, case.family, case.outer, Settings(iterations=3, meta_batch_size=4, device="cpu"))
    here, _ = run.iterate(run.first())
    assert all(torch.allclose(value, there[name], atol=1e-6) for name, value in here.params.items())


def test_baselines_are_fitted_as_on_the_cpu_without_a_wait() -> None:
    """Ridges rise as often as they ever need to, where nobody asks whether they did enough."""
    generator = torch.Generator().manual_seed(0)
    features, returns = (torch.rand(3, 4, *shape, generator=generator).double() for shape in ((6, 9), (5,)))
    features[1] = 1e6 * features[1, :1, :1]  # one and the same observation
    mask, cut = torch.ones(3, 4, 5).double(), torch.zeros(3, 4, 5).double()
    mask[2, :, 1:] = 0
    with pretended.Waits():
        there = [value.to(pretended.DEVICE) for value in (features, returns, mask, cut)]
    with pretended.Waits() as waits:
        found = fitted_values(*there)
    assert waits.counts == {}
    with pretended.Waits():
        assert torch.equal(found.cpu(), fitted_values(features, returns, mask, cut))


READS: list[tuple[str, Any]] = [
    ("_local_scalar_dense", lambda values: values.sum().item()),
    ("_local_scalar_dense", lambda values: bool((values > 0).all())),
    ("_local_scalar_dense", lambda values: float(values[0, 0])),
    ("to the processor", lambda values: values.tolist()),
    ("to the processor", lambda values: values.cpu().numpy()),
    ("nonzero", lambda values: values.nonzero()),
    ("index", lambda values: values[values > 0]),
    ("index_put_", lambda values: values.index_put_((values > 0,), torch.zeros(()))),
    ("masked_select", lambda values: values.masked_select(values > 0)),
    ("equal", lambda values: torch.equal(values, values)),
    ("to the device", lambda values: torch.ones(3).to(values.device)),
    ("to the device", lambda values: values.copy_(torch.ones(2, 3))),
]


@pytest.mark.parametrize(("name", "read"), READS)
def test_waits_are_counted(name: str, read: Any) -> None:
    with pretended.Waits() as waits:
        read(torch.ones(2, 3, device=pretended.DEVICE))
    assert waits.counts == {name: 1}


def test_what_needs_no_wait_is_not_counted_and_what_cannot_be_is_refused() -> None:
    generator = pretended.Generator(pretended.DEVICE).manual_seed(0)
    with pretended.Waits() as waits:
        values = torch.rand(2, 3, generator=generator, device=generator.device, requires_grad=True)
        sent = torch.ones(2, 3).to(values.device, non_blocking=True)
        loss = torch.where(values > 0.5, values * sent, 0.0).tanh().sum()
        (gradient,) = torch.autograd.grad(loss, values, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), values)
        with torch.no_grad():
            values[0] = values[1] + torch.ones(()) + values[:, torch.tensor(0)].sum()
        with pytest.raises(AssertionError, match="between the device and main memory"):
            values + torch.ones(2, 3)
    assert waits.counts == {}


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_meta_iteration_waits_as_often_on_a_gpu(case: Case) -> None:
    assert_waits_on_a_gpu(case, compiled=False)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", [case for case in CASES if case.family.spec.control], ids=str)
def test_a_compiled_one_of_control_waits_no_more_often(case: Case) -> None:
    assert_waits_on_a_gpu(case, compiled=True)


def assert_waits_on_a_gpu(case: Case, compiled: bool) -> None:
    settings = Settings(iterations=4, meta_batch_size=4, device="cuda", compile=compiled)
    run = Run(case.algorithm, case.family, case.outer, settings)
    progress = run.first()
    for _ in range(2):  # in which what is compiled is checked
        progress, _ = run.iterate(progress)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _, row = run.iterate(progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{each.filename}:{each.lineno}" for each in told if "called a synchronizing" in str(each.message)]
    assert len(places) <= expected(case, row), "\n".join(places)
