"""Parts of an iteration that are compiled do what the plain ones do, or say why they are not compiled."""

import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from gymnasium.vector import VectorWrapper
from support.precision import assert_alike

from metarl.algorithms.maml import MAML
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.rl2 import RL2
from metarl.control import rollouts
from metarl.control.rollouts import RolloutError
from metarl.control.sampling import Sampling
from metarl.environments.mdp import MDPVectorEnv
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.speed import parts
from metarl.speed.parts import Graphs
from metarl.training.loop import Run
from metarl.training.settings import Settings
from metarl.training.start import resume, train
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation, navigation
from metarl_envs.robots.half_cheetah import HalfCheetahVelocity
from metarl_envs.tabular import TabularMDP

SMALL = Network(hidden=(8, 8))
SAMPLING = Sampling(episodes=3, horizon=25)  # two graphs and a rest
FEW = TRPO(cg_iterations=3)
NAVIGATION = PointNavigation(sampling=SAMPLING)


def replayed(function, inputs, streams):
    """What a captured graph does: it reads where it read before, and writes where it wrote before."""
    places = [value.clone() for value in inputs]
    results = [result.detach().clone() for result in function(places, streams)]

    def replay(values, streams):
        for place, value in zip(places, values, strict=True):
            place.copy_(value)
        for result, found in zip(results, function(places, streams), strict=True):
            result.copy_(found)
        return [result.clone() for result in results]

    return replay, function(inputs, streams)


@pytest.fixture
def uncompiled(monkeypatch):
    """Graphs are traced, and run as they are."""
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    monkeypatch.setattr(parts, "_on_gpu", lambda values: True)
    monkeypatch.setattr(parts, "captured", replayed)


def end(algorithm, family, outer, compiled, iterations=4):
    run = Run(algorithm, family, outer, Settings(iterations, 3, compile=compiled, device="cpu"))
    progress = run.first()
    for _ in range(iterations):
        progress, row = run.iterate(progress)
    return run, progress, {name: float(value) for name, value in row.items() if not name.startswith("time/")}


CASES = {
    "maml": (MAML(network=SMALL), NAVIGATION, FEW),
    "tanh, three steps": (MAML(3, network=Network(hidden=(8,), activation="tanh")), NAVIGATION, FEW),
    "groups of tasks": (MAML(network=SMALL), NAVIGATION, replace(FEW, chunks=2)),
    "graphs of groups made anew": (MAML(network=SMALL), NAVIGATION, replace(FEW, chunks=2, keep_graphs=False)),
    "meta-sgd": (MAML(network=SMALL, learn_step_sizes=True), NAVIGATION, FEW),
    "bandit": (MAML(network=SMALL), Bandit(sampling=SAMPLING), FEW),
    "random numbers of the environment": (MAML(network=SMALL), TabularMDP(sampling=SAMPLING), FEW),
    "another outer update": (MAML(network=SMALL), NAVIGATION, ProMP()),
    "a memory": (RL2(hidden=8), TabularMDP(sampling=replace(SAMPLING, horizon=20)), Adam()),
    "a memory, and a rest": (RL2(hidden=8), Bandit(sampling=SAMPLING), FEW),
    "conditioned": (MultiTask(network=SMALL, condition="concatenate"), NAVIGATION, FEW),
    "few steps": (MAML(network=SMALL), PointNavigation(sampling=replace(SAMPLING, horizon=4)), FEW),
}


@pytest.mark.parametrize("name", CASES)
def test_traced_parts_are_the_plain_ones(name, uncompiled, float64):
    algorithm, family, outer = CASES[name]
    _, plain, row = end(algorithm, family, outer, compiled=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run, found, found_row = end(algorithm, family, outer, compiled=True)
    captured = {"TRPO's products", "TRPO's steps"} if isinstance(outer, TRPO) else set()
    assert {key[0] for key in run.graphs.parts} == {"the environment's steps", *captured}
    assert found_row == pytest.approx(row, rel=1e-6, abs=1e-9)
    assert all(torch.allclose(found.params[name], plain.params[name], rtol=1e-6, atol=1e-9) for name in plain.params)


def test_inner_steps_share_their_kernels(uncompiled):
    run, *_ = end(MAML(3, network=SMALL), NAVIGATION, FEW, compiled=True, iterations=1)
    steps = [key for key in run.graphs.parts if key[0] == "the environment's steps"]
    assert len(steps) == 4
    assert len(run.graphs._kernels) == 1


def test_a_function_is_called_where_its_graph_is_compared_and_nowhere_else(uncompiled):
    called, used, counts = list[int](), Graphs(), {}

    def double(values):
        called.append(len(called))
        return {"twice": 2 * values["once"], "name": values["name"]}

    for iteration in range(1, 111):
        with used.used(iteration):
            for number in (1.0, 2.0):
                found = parts.run_compiled("doubles", double, ({"once": torch.full((2,), number), "name": "x"},), ())
                assert found["name"] == "x"
                assert found["twice"].tolist() == [2 * number, 2 * number]
        counts[iteration] = len(called)
    # Recorded and traced; compared again in the next iteration, and after ever longer ones.
    grown = [number for number in range(2, 111) if counts[number] > counts[number - 1]]
    assert (counts[1], grown) == (2, [2, 4, 8, 16, 32, 50, 64, 100])
    assert counts[110] == 2 + len(grown)
    assert parts.run_compiled("doubles", double, ({"once": torch.ones(1), "name": "y"},), ())["name"] == "y"
    assert len(called) == counts[110] + 1  # outside of a compiled run


@dataclass(frozen=True)
class Lanes:
    """Navigation whose lanes break a rule."""

    how: str
    inner: PointNavigation = NAVIGATION

    @property
    def spec(self):
        return self.inner.spec

    def sample(self, num_tasks, split, generator):
        tasks = self.inner.sample(num_tasks, split, generator)
        made = BROKEN[self.how]
        return replace(
            tasks, environment=lambda lanes, device: made(navigation(), {"goal": (0, 0)}, lanes, None, device)
        )


class Unseeded(MDPVectorEnv):
    """Draws from elsewhere than its generator."""

    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, rewards + torch.rand(rewards.shape), *rest


class Asking(MDPVectorEnv):
    """Does what depends on its numbers."""

    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, rewards if (rewards < 0).all() else -rewards, *rest


class Forgetful(MDPVectorEnv):
    """Leaves its goals out."""

    def snapshot(self):
        return super().snapshot()[1:]

    def restore(self, snapshot):
        super().restore((self._parameters, *snapshot))


class Counting(MDPVectorEnv):
    """Its snapshots hold another number each time."""

    steps = 0

    def snapshot(self):
        Counting.steps += 1
        return Counting.steps, *super().snapshot()

    def restore(self, snapshot):
        super().restore(snapshot[1:])


class Strange(Counting):
    """Its snapshots hold objects."""

    def snapshot(self):
        return object(), *super().snapshot()[1:]


BROKEN = {env.__name__: env for env in (Unseeded, Asking, Forgetful, Counting, Strange)}
REASONS = {
    "Unseeded": "draws random numbers from another generator",
    "Asking": "reads a bool or an integer from a tensor",
    "Forgetful": "depend on more than their arguments and random generators",
    "Counting": "they are called with too many kinds of arguments",
    "Strange": "a object is not a tensor, plain value",
}


@pytest.mark.filterwarnings("ignore:the environments of .* draw from torch's default generator")
@pytest.mark.parametrize("how", REASONS)
def test_what_cannot_be_compiled_is_told_once_and_runs_as_it_is(how, uncompiled, float64, monkeypatch):
    monkeypatch.setattr(parts, "MAX_PARTS", 3)
    run = Run(MAML(network=SMALL), Lanes(how), FEW, Settings(9, 3, compile=True, device="cpu"))
    progress = run.first()
    with pytest.warns(UserWarning, match=REASONS[how]) as told:
        for _ in range(5):
            progress, _ = run.iterate(progress)
    assert len(told) == 1
    assert "the environment's steps are not compiled, which affects only speed" in str(told[0].message)
    if how != "Unseeded":
        _, plain, _ = end(MAML(network=SMALL), Lanes(how), FEW, compiled=False, iterations=5)
        assert all(torch.allclose(progress.params[name], value, rtol=1e-6) for name, value in plain.params.items())


class Paid(MDPVectorEnv):
    """Pays more when told to, by a number that no snapshot holds."""

    factor = 1.0

    def step(self, actions):
        observations, rewards, *rest = super().step(actions)
        return observations, rewards * Paid.factor, *rest


@pytest.mark.parametrize("started", [0, 3])
def test_what_is_changed_later_is_found_and_reaches_the_run(started, uncompiled, monkeypatch, float64):
    """After iteration 5 there is a tenfold reward: found in iteration 8, or at once in a process that starts there."""
    monkeypatch.setitem(BROKEN, "Paid", Paid)
    monkeypatch.setattr(Paid, "factor", 1.0)
    # The mean return of twelve tasks varies by less than half. Steps after the last graph pay more at once.
    run = Run(MAML(network=SMALL), Lanes("Paid"), FEW, Settings(12, 12, compile=True, device="cpu"))
    progress, returns, warned = run.first()._replace(iteration=started), {}, {}
    while progress.iteration < 12:
        number = progress.iteration + 1
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            progress, row = run.iterate(progress)
        returns[number], warned[number] = float(row["return/step_0"]), [str(one.message) for one in told]
        if number == 5:
            monkeypatch.setattr(Paid, "factor", 10.0)
    found = [number for number, messages in warned.items() if messages]
    assert found == [8]
    assert "are no longer compiled: they depend on more than their arguments" in warned[8][0]
    assert f"a change after iteration {4 if started == 0 else 5} " in warned[8][0]
    assert all(returns[number] < 6 * returns[5] for number in range(8, 13))  # returns are negative
    assert all(returns[number] > 6 * returns[5] for number in (6, 7))


def test_a_change_of_one_percent_is_found(uncompiled, monkeypatch):
    """In float32: rounding stays far below, see FAR."""
    monkeypatch.setitem(BROKEN, "Paid", Paid)
    monkeypatch.setattr(Paid, "factor", 1.0)
    run = Run(MAML(network=SMALL), Lanes("Paid"), FEW, Settings(4, 3, compile=True, device="cpu"))
    progress = run.first()
    for _ in range(3):
        progress, _ = run.iterate(progress)
    monkeypatch.setattr(Paid, "factor", 1.01)
    with pytest.warns(UserWarning, match="the environment's steps are no longer compiled: they depend on more than"):
        run.iterate(progress)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_lanes_behind_a_wrapper_of_ones_own_run_as_they_are(on_gpu, uncompiled, monkeypatch, float64):
    """It may keep what is in no snapshot. Their policies are compiled on a GPU."""
    monkeypatch.setitem(BROKEN, "wrapped", lambda *arguments: VectorWrapper(MDPVectorEnv(*arguments)))
    monkeypatch.setattr(rollouts, "_on_gpu", lambda generator: on_gpu)
    run = Run(MAML(network=SMALL), Lanes("wrapped"), FEW, Settings(4, 3, device="cpu"))
    run.graphs, progress = Graphs(), run.first()
    for _ in range(4):
        progress, _ = run.iterate(progress)
    policies = {"the policies"} if on_gpu else set()
    assert {key[0] for key in run.graphs.parts} == {"TRPO's products", "TRPO's steps", *policies}
    _, plain, _ = end(MAML(network=SMALL), NAVIGATION, FEW, compiled=False)
    assert all(torch.allclose(progress.params[name], value, rtol=1e-6) for name, value in plain.params.items())


def test_environments_whose_steps_are_no_graph_are_refused_on_a_cpu():
    settings = Settings(iterations=1, compile=True, device="cpu")
    with pytest.raises(ValueError, match="the steps of this environment are no graph"):
        train(MAML(), HalfCheetahVelocity(), settings=settings)


def test_errors_of_an_environment_are_told_as_ever(uncompiled, monkeypatch):
    def fail(self, actions):
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(MDPVectorEnv, "step", fail)
    run = Run(MAML(network=SMALL), NAVIGATION, FEW, Settings(2, 3, compile=True, device="cpu"))
    with pytest.raises(RolloutError, match="an environment raised: step 1: ZeroDivisionError: broken"), pytest.warns():
        run.iterate(run.first())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_run_is_near_the_plain_one_and_resumes_exactly(tmp_path):
    settings = {"meta_batch_size": 3, "checkpoint_every": 2, "device": "cpu"}
    warnings.simplefilter("error", UserWarning)
    plain, compiled = (Settings(4, **settings, compile=compile) for compile in (False, True))
    ends = []
    keep = [lambda iteration: ends.append(iteration.progress)]
    whole = train(MAML(network=SMALL), NAVIGATION, settings=compiled, out=tmp_path / "run", callbacks=keep)
    beside = Run(MAML(network=SMALL), NAVIGATION, TRPO(), plain)
    assert_alike(beside, [beside.first(), *ends[:-1]], ends, whole.rows)
    options = {"settings": compiled, "out": tmp_path / "cut"}
    train(MAML(network=SMALL), NAVIGATION, callbacks=[lambda iteration: iteration.progress.iteration < 2], **options)
    cut = resume(tmp_path / "cut")
    assert len(cut.rows) == 2
    assert all(torch.equal(cut.params[name], value) for name, value in whole.params.items())
