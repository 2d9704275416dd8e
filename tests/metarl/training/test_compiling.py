"""Compiled iterations do what the plain ones do, or say why they are not compiled."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support.precision import assert_alike
from support.synthetic import classes

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
from metarl.algorithms.siamese import Siamese
from metarl.algorithms.snail import SNAIL
from metarl.fewshot.regression import Regression
from metarl.networks.options import Network
from metarl.outer.gradient import SGD, Adam
from metarl.training import compiling
from metarl.training.loop import Run, TrainingError
from metarl.training.settings import Settings
from metarl.training.start import resume, train
from metarl_plugins.sinusoid import Sinusoid

SMALL = Network(hidden=(8, 8))
CONV4 = Network(architecture="conv4", filters=4)
SINUSOID = Sinusoid(shots=3)
ONE_KIND = Sinusoid(amplitude=(1.0, 1.0), phase=(0.0, 0.0), shots=3)
"""Its descriptors are one-hot: (1, 0)."""
MAML_PLUS = MAML(2, network=SMALL, learn_step_sizes=True, step_sizes="layer_step", multi_step_loss=0.9)


CASES = {
    "maml": (MAML(network=SMALL), SINUSOID, Adam()),
    "two steps": (MAML(2, network=SMALL), SINUSOID, Adam()),
    "first order": (MAML(network=SMALL, first_order=True), SINUSOID, Adam()),
    "meta-sgd": (MAML(network=SMALL, learn_step_sizes=True), SINUSOID, Adam()),
    "maml++": (MAML_PLUS, SINUSOID, Adam()),
    "epochs": (MAML(network=SMALL), SINUSOID, Adam(epochs=2)),
    "chunks": (MAML(network=SMALL), SINUSOID, Adam(chunks=2)),
    "annealed": (MAML(network=SMALL), SINUSOID, SGD(0.01)),
    "reptile": (Reptile(network=SMALL), SINUSOID, SGD()),
    "multi-task": (MultiTask(network=SMALL), SINUSOID, Adam()),
    "pcgrad": (MultiTask(network=SMALL, weighting="pcgrad"), SINUSOID, Adam()),
    "gradnorm": (MultiTask(network=SMALL, weighting="gradnorm"), ONE_KIND, Adam()),
    "pixels": (MAML(network=SMALL), classes(8, shots=2), Adam()),
    "conv4": (MAML(network=CONV4), classes(28, shots=2), Adam()),
    "protonet": (ProtoNet(), classes(8, shots=2), Adam()),
    "matching": (Matching(), classes(8, shots=2), Adam()),
    "siamese": (Siamese(), classes(8, shots=2), Adam()),
    "mann": (MANN(), classes(8, shots=2), Adam()),
    "meta-lstm": (MetaLSTM(2, units=3, network=SMALL), classes(8, shots=2), Adam()),
    "snail": (SNAIL(), classes(8, ways=2), Adam()),
    "cavia": (CAVIA(network=SMALL), SINUSOID, Adam()),
    "film": (CAVIA(context_in="film", network=CONV4), classes(28, shots=2), Adam()),
    "imaml": (IMAML(3, network=SMALL), SINUSOID, Adam(chunks=2)),
    "bmaml": (BMAML(3, network=SMALL), SINUSOID, Adam()),
    "leap": (Leap(3, 0.01, batch_size=2, network=SMALL), SINUSOID, Adam()),
}


@pytest.fixture
def uncompiled(monkeypatch):
    """Graphs are traced, and run as they are."""
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)


def test_an_iteration_that_is_one_graph_shows_no_experience(uncompiled):
    told = []
    settings = Settings(2, 2, device="cpu", compile=True)
    train(MAML(network=SMALL), SINUSOID, Adam(), settings, callbacks=[told.append])
    assert [one.experience for one in told] == [None, None]


def both(algorithm, family, outer, iterations=4, **options):
    """The plain run and the compiled one, and where each ends."""
    runs = [
        Run(algorithm, family, outer, Settings(iterations, 3, compile=compile, **options)) for compile in (False, True)
    ]
    ends = []
    for run in runs:
        progress = run.first()
        for _ in range(iterations):
            progress, row = run.iterate(progress)
        ends.append((progress, row))
    return runs, ends


def close(one, other):
    return all(torch.allclose(one[name], other[name], rtol=1e-7, atol=1e-9) for name in one)


@pytest.mark.parametrize("name", CASES)
def test_traced_iterations_are_the_plain_ones(name, uncompiled, float64):
    (_, run), ((plain, row), (found, found_row)) = both(*CASES[name])
    assert run.compiling.compiled is not None
    assert close(found.params, plain.params)
    assert found_row.keys() == row.keys() - {"time/sampling_seconds"}
    names = [name for name in found_row if not name.startswith("time/")]
    assert [float(found_row[name]) for name in names] == pytest.approx([float(row[name]) for name in names])


def test_an_iteration_that_has_come_to_take_another_way_is_compiled_anew(uncompiled, float64):
    # The early steps' losses stop counting after the ninth of ten iterations, or the fourth.
    algorithm = MAML(2, network=SMALL, multi_step_loss=0.4)
    (_, run), ((plain, _), (found, _)) = both(algorithm, SINUSOID, Adam(), iterations=10)
    assert close(found.params, plain.params)
    assert run.compiling.missed == 0
    first = Run(algorithm, SINUSOID, Adam(), Settings(10, 3, compile=True))
    progress, ways = first.first(), []
    for _ in range(10):
        progress, _ = first.iterate(progress)
        ways.append((first.compiling.missed, first.compiling.compiled))
    assert [missed for missed, _ in ways] == [0, 0, 0, 0, 1, 2, 3, 0, 0, 0]
    assert len({id(compiled) for _, compiled in ways}) == 2


@dataclass(frozen=True)
class Unseeded:
    """Draws from elsewhere than its streams."""

    how: str

    @property
    def spec(self):
        return SINUSOID.spec

    def sample(self, num_tasks, split, generator):
        tasks = SINUSOID.sample(num_tasks, split, generator)
        if self.how == "torch":
            tasks.parameters["phase"] = torch.rand(num_tasks)
        if self.how == "numpy":
            tasks.parameters["phase"] = torch.as_tensor(
                np.random.default_rng(generator.initial_seed()).random(num_tasks)
            )
        if self.how == "number":
            tasks.parameters["phase"] = torch.full((num_tasks,), float(torch.rand((), generator=generator)))
        if self.how == "whole number":
            tasks.parameters["phase"] = torch.full((num_tasks,), int(torch.randint(2**31, (), generator=generator)))
        return tasks


REASONS = {
    "torch": "aten.rand.default draws random numbers from another generator",
    "numpy": "would differ: the iteration depends on more than its parameters and streams",
    "number": "you're trying to get value out of a tracing tensor",
}


@pytest.mark.parametrize("how", REASONS)
def test_what_cannot_be_compiled_is_told_once_and_runs_as_it_is(how, uncompiled, float64):
    torch.manual_seed(0)
    run = Run(MAML(network=SMALL), Unseeded(how), Adam(), Settings(2, 3, compile=True))
    with pytest.warns(UserWarning, match=REASONS[how]) as told:
        progress, row = run.iterate(run.first())
    assert len(told) == 1
    assert "which changes its speed only" in str(told[0].message)
    assert "time/sampling_seconds" in row
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.iterate(progress)


def test_iterations_that_go_another_way_every_time_are_compiled_no_more(uncompiled, float64):
    run = Run(MAML(network=SMALL), Unseeded("whole number"), Adam(), Settings(30, 3, compile=True))
    progress, compiled = run.first(), set()
    with pytest.warns(UserWarning, match="changes too often"):
        for _ in range(30):
            progress, _ = run.iterate(progress)
            compiled.add(id(run.compiling.compiled))
    assert progress.iteration == 30
    assert run.compiling.compiled is None
    assert len(compiled) < 6


class Curriculum:
    """Sinusoids whose amplitudes grow when told to."""

    spec, factor = SINUSOID.spec, 1.0

    def sample(self, num_tasks, split, generator):
        tasks = SINUSOID.sample(num_tasks, split, generator)
        return replace(tasks, parameters=tasks.parameters | {"amplitude": self.factor * tasks.parameters["amplitude"]})


def rows_and_warnings(run, iterations, change):
    progress, rows, warned = run.first(), {}, {}
    for number in range(1, iterations + 1):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            progress, rows[number] = run.iterate(progress)
        warned[number] = [str(one.message) for one in told]
        change(run, number)
    return progress, rows, warned


def test_what_a_callback_changes_later_is_found_and_reaches_the_run(uncompiled, float64):
    """Harder tasks from iteration 6 on: the graph still drew the easy ones, whose loss was 2 where theirs is 200."""

    def harder(run, number):
        run.family.factor = 10.0 if number >= 5 else 1.0

    ends = [
        rows_and_warnings(Run(MAML(network=SMALL), Curriculum(), Adam(), Settings(10, 3, compile=compile)), 10, harder)
        for compile in (False, True)
    ]
    (_, plain, silent), (_, rows, warned) = ends
    assert not any(silent.values())
    assert [number for number, told in warned.items() if told] == [8]
    assert "from iteration 8 on, iterations are not compiled" in warned[8][0]
    assert "what was changed after iteration 4 " in warned[8][0]
    losses, expected = ([float(found[number]["loss/step_1"]) for number in (5, 8, 9, 10)] for found in (rows, plain))
    assert losses[0] == pytest.approx(expected[0])
    assert losses == pytest.approx(expected, rel=0.1)
    assert min(expected[1:]) > 10 * expected[0]


def test_another_step_size_is_found_too(uncompiled, float64):
    """Which no loss shows at once."""

    def faster(run, number):
        if number == 3:
            object.__setattr__(run.outer, "learning_rate", 0.1)

    run = Run(MAML(network=SMALL), SINUSOID, Adam(), Settings(6, 3, compile=True))
    _, _, warned = rows_and_warnings(run, 6, faster)
    assert [number for number, told in warned.items() if told] == [4]
    assert "the parameters would differ" in warned[4][0]


def test_comparisons_are_few_at_fixed_iterations_and_change_nothing(uncompiled, monkeypatch, float64):
    compared, at = compiling.Compiling._compared, list[int]()

    def counted(self, outcome, params, state, progress, number):
        at.append(number)
        return compared(self, outcome, params, state, progress, number)

    monkeypatch.setattr(compiling.Compiling, "_compared", counted)

    def run(every):
        at.clear()
        monkeypatch.setattr(compiling, "EVERY", every)
        run = Run(MAML(network=SMALL), SINUSOID, Adam(), Settings(24, 3, compile=True))
        progress, _, warned = rows_and_warnings(run, 24, lambda run, number: None)
        assert not any(warned.values())
        return progress, list(at)

    (rarely, some), (often, more) = run(1000), run(10)
    assert some == [2, 4, 8, 16]
    assert more == [2, 4, 8, 10, 16, 20]
    assert all(torch.equal(rarely.params[name], value) for name, value in often.params.items())


def test_gradients_that_are_not_finite_are_refused(uncompiled):
    # Finite numbers, whose squares are not.
    family = Regression(lambda inputs, scale: scale * inputs.sign(), {"scale": (1e30, 1e30)})
    run = Run(MAML(network=SMALL), family, Adam(), Settings(9, 3, compile=True))
    progress = first = run.first()
    with pytest.raises(TrainingError, match="5 iterations in a row"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(9):
            progress, row = run.iterate(progress)
            assert row["outer/refused"] == progress.iteration
    assert all(torch.equal(progress.params[name], value) for name, value in first.params.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_run_is_near_the_plain_one_and_resumes_exactly(tmp_path):
    settings = {"meta_batch_size": 3, "checkpoint_every": 2, "log_every": 1}
    plain, compiled = (Settings(4, **settings, compile=compile) for compile in (False, True))
    ends = []
    keep = [lambda iteration: ends.append(iteration.progress)]
    whole = train(MAML(network=SMALL), SINUSOID, settings=compiled, out=tmp_path / "run", callbacks=keep)
    beside = Run(MAML(network=SMALL), SINUSOID, Adam(), plain)
    assert_alike(beside, [beside.first(), *ends[:-1]], ends, whole.rows)
    options = {"settings": compiled, "out": tmp_path / "cut"}
    train(MAML(network=SMALL), SINUSOID, callbacks=[lambda iteration: iteration.progress.iteration < 2], **options)
    cut = resume(tmp_path / "cut")
    assert len(cut.rows) == 2
    assert all(torch.equal(cut.params[name], value) for name, value in whole.params.items())
