"""Normalised observations: statistics against NumPy's, and learners against themselves with normalised inputs."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import synthetic
from torch import Tensor

from metarl import open_run, resume, runs, train
from metarl.algorithms import MAML, RL2, SNAIL, MultiTask, Reptile, gradient_learner, normalise_observations
from metarl.algorithms.gradient.bmaml import BMAML
from metarl.algorithms.gradient.cavia import CAVIA
from metarl.algorithms.normalising import COUNT, MEAN, SQUARES
from metarl.networks import Network
from metarl.outer import SGD, TRPO, Adam, ProMP
from metarl.seeding import stream
from metarl.testing import check_algorithm, small_family
from metarl.training import Settings, gather
from metarl.types import Experience, Learner, Params, Rollout, Spec, holding, rollout_of

SMALL = Network(hidden=(8,), activation="tanh")
ALGORITHMS = [
    MAML(steps=2, learn_step_sizes=True, network=SMALL),
    MAML(adapt_only=("head",), network=SMALL),
    Reptile(steps=2, network=SMALL),
    MultiTask(condition="concatenate", network=SMALL),
    MultiTask(optimiser="adam", network=SMALL),
    RL2(hidden=5),
    CAVIA(context=3, steps=2, network=SMALL),
    BMAML(particles=2, network=SMALL),
]
SPEC = Spec((3,), 2, "continuous", 1)
OFFSET, SPREAD = torch.tensor([5.0, -300.0, 0.0]), torch.tensor([0.01, 20.0, 3.0])


def normalising(algorithm: Any) -> Any:
    return replace(algorithm, normalise_observations=True)


def far(experience: Experience) -> Experience:
    """The same experience with observations in other units."""
    return changed(experience, lambda observations: OFFSET.to(observations) + SPREAD.to(observations) * observations)


def changed(experience: Experience, function: Any) -> Experience:
    def of(batch: Any) -> Rollout:
        last = function(batch.last_observations)
        return replace(batch, observations=function(batch.observations), last_observations=last)

    return replace(experience, supports=tuple(map(of, experience.supports)), query=of(experience.query))


def data(learner: Learner, seed: int) -> Experience:
    generator = torch.Generator().manual_seed(seed)
    *supports, query = (synthetic.rollout(SPEC, 4, generator) for _ in range(learner.adaptations + 1))
    descriptors = torch.randn(4, 1, generator=generator)
    return far(Experience(descriptors=descriptors, supports=tuple(supports), query=query))


def plain_and_normalised(algorithm: Any) -> tuple[Learner, Learner, Params, list[Experience]]:
    """A learner, its twin with the statistics of two iterations, parameters, and these iterations' experience."""
    plain, twin = algorithm.build(SPEC), normalising(algorithm).build(SPEC)
    params = plain.init(torch.Generator().manual_seed(1))
    seen = [data(plain, seed) for seed in (1, 2)]
    buffers = twin.buffers.init()
    for experience in seen:
        buffers = twin.buffers.move(buffers, experience)
    return plain, holding(twin, buffers), params, seen


def steps_of(experiences: list[Experience]) -> Any:
    """All observations of steps that were taken, ``[step, 3]``."""
    batches = [rollout_of(batch) for one in experiences for batch in (*one.supports, one.query)]
    return np.concatenate([batch.observations[batch.mask > 0].double().numpy() for batch in batches])


def normalised_by(seen: list[Experience], experience: Experience) -> Experience:
    """The same experience, with observations normalised by NumPy's statistics of what was seen."""
    steps = steps_of(seen)
    mean, deviation = (torch.from_numpy(value).float() for value in (steps.mean(0), steps.std(0)))
    return changed(experience, lambda observations: (observations - mean) / deviation)


@pytest.mark.parametrize("algorithm", [ALGORITHMS[0], RL2(hidden=5, episodes_per_trial=3)])
def test_the_statistics_are_numpys_over_all_steps_that_were_taken(algorithm: Any) -> None:
    _, learner, _, seen = plain_and_normalised(algorithm)
    buffers, steps = learner.buffers.held, steps_of(seen)  # type: ignore[union-attr]
    assert buffers is not None
    assert all((batch.mask == 0).any() for one in seen for batch in (*one.supports, one.query))  # type: ignore[union-attr]
    assert int(buffers[COUNT]) == len(steps)
    np.testing.assert_allclose(buffers[MEAN].numpy(), steps.mean(0), rtol=1e-12)
    np.testing.assert_allclose((buffers[SQUARES] / buffers[COUNT]).numpy(), steps.var(0), rtol=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_it_is_the_plain_learner_with_normalised_inputs(algorithm: Any) -> None:
    plain, twin, params, seen = plain_and_normalised(algorithm)
    raw = data(plain, seed=3)
    read = normalised_by(seen, raw)
    ours, theirs = twin.begin(params, raw.descriptors), plain.begin(params, raw.descriptors)
    with torch.no_grad():
        for given, expected in zip((*raw.supports, raw.query), (*read.supports, read.query), strict=True):
            for one, other in zip(outputs(twin, ours, given), outputs(plain, theirs, expected), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            ours, theirs = twin.adapt(ours, given), plain.adapt(theirs, expected)
        found, wanted = twin.meta_loss(params, raw)[0], plain.meta_loss(params, read)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, plain.meta_loss(params, raw)[0], rtol=1e-3)


@pytest.mark.parametrize("algorithm", [one for one in ALGORITHMS if not isinstance(one, RL2)], ids=str)
def test_episodes_are_judged_by_normalised_observations_and_keep_their_own(algorithm: Any) -> None:
    plain, twin, params, seen = plain_and_normalised(algorithm)
    raw = data(plain, seed=3)
    read = normalised_by(seen, raw)
    assert twin.estimate is not None and plain.estimate is not None
    given, expected = rollout_of(raw.query), rollout_of(read.query)
    (found,) = twin.estimate(twin.begin(params, raw.descriptors), [given])
    (wanted,) = plain.estimate(plain.begin(params, raw.descriptors), [expected])
    assert found.advantages is not None and wanted.advantages is not None
    torch.testing.assert_close(found.advantages, wanted.advantages, rtol=1e-3, atol=1e-3)
    assert found.explained_variance is not None and wanted.explained_variance is not None
    torch.testing.assert_close(found.explained_variance, wanted.explained_variance, rtol=1e-3, atol=1e-3)
    assert found.observations is given.observations and found.last_observations is given.last_observations


def outputs(learner: Learner, state: Any, batch: Any) -> list[Tensor]:
    acted, following = learner.predict(state, batch.observations[:, :, 0])
    if learner.memory is None:
        return [acted, learner.predict(state, batch.observations)[0]]
    assert learner.memory.observe is not None
    first = batch.actions[:, :, 0], batch.rewards[:, :, 0], batch.mask[:, :, 0] == 0
    then, _ = learner.predict(learner.memory.observe(following, *first), batch.observations[:, :, 1])
    return [acted, then, learner.memory.unroll(state, batch)[0]]


def test_observations_are_read_as_they_are_until_some_were_counted() -> None:
    plain, twin = MAML(network=SMALL).build(SPEC), holding(MAML(network=SMALL, normalise_observations=True).build(SPEC))
    params, inputs = synthetic.initial(plain), 100 * torch.randn(2, 3, 4, 3)
    of = [one.predict(one.begin(params, torch.zeros(2, 1)), inputs)[0] for one in (plain, twin)]
    assert torch.equal(*of)


def test_a_number_that_never_changes_is_centred_only() -> None:
    learner = normalise_observations(MAML(network=SMALL).build(SPEC))
    assert learner.buffers is not None
    experience = changed(
        synthetic.experience(MAML(network=SMALL).build(SPEC), synthetic.initial(MAML(network=SMALL).build(SPEC))),
        lambda observations: torch.cat([observations[..., :2], torch.full_like(observations[..., :1], 7.3)], -1),
    )
    state = holding(learner, learner.buffers.move(learner.buffers.init(), experience)).begin(
        learner.init(torch.Generator()), torch.zeros(1, 1)
    )
    assert state.scale[0, 2] == 1 and (state.scale[0, :2] > 0.5).all()
    torch.testing.assert_close(state.reads(torch.full((1, 1, 3), 7.4))[0, 0, 2], torch.tensor(0.1))


def test_a_policy_is_replayed_as_it_acted_after_the_statistics_have_moved() -> None:
    """Else importance ratios would not begin at 1."""
    algorithm = MAML(network=SMALL, normalise_observations=True)
    family = small_family("continuous")
    result = train(algorithm, family, settings=Settings(iterations=2, meta_batch_size=3, device="cpu"))
    tasks = family.sample(3, "train", stream(7, "tasks"))
    experience, _ = gather(result.learner, result.params, tasks, iter([stream(7, "draw", k) for k in range(9)]))

    def ratios(learner: Learner) -> list[Tensor]:
        state, found = learner.begin(result.params, experience.descriptors), []
        for batch in (*experience.supports, experience.query):
            rollout = rollout_of(batch)
            said, _ = learner.predict(state, rollout.observations)
            said_of = learner.spec.distribution.log_prob(said, rollout.actions)
            found.append((said_of - rollout.log_probs).exp())
            state = learner.adapt(state, batch)
        return found

    with torch.no_grad():
        for ratio in ratios(result.learner):
            torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-5, atol=1e-5)
        assert result.learner.buffers is not None
        later = result.learner.buffers.move(result.buffers, experience)
        assert max(float((ratio - 1).abs().max()) for ratio in ratios(holding(result.learner, later))) > 1e-3


@pytest.mark.parametrize(
    ("algorithm", "outer"),
    [
        (MAML(network=SMALL), TRPO()), (MAML(network=SMALL), ProMP()), (MAML(network=SMALL), Adam()),
        (Reptile(network=SMALL), SGD()), (Reptile(network=SMALL, optimiser="sgd"), SGD(weight_decay=0.1)),
        (RL2(hidden=4), Adam()),
    ],
)  # fmt: skip
def test_no_outer_update_moves_them_and_runs_go_on_bit_for_bit(algorithm: Any, outer: Any, tmp_path: Path) -> None:
    settings = Settings(iterations=4, meta_batch_size=3, device="cpu", checkpoint_every=1)
    algorithm, family = normalising(algorithm), small_family("continuous")
    whole = train(algorithm, family, replace(outer, anneal=False) if isinstance(outer, SGD) else outer, settings)
    run = tmp_path / "run"
    train(algorithm, family, replace(outer, anneal=False) if isinstance(outer, SGD) else outer, replace(settings, iterations=2), run)  # fmt: skip  # noqa: E501
    resumed = resume(run, iterations=4)
    opened = open_run(run)
    copy = pickle.loads(pickle.dumps(opened))
    assert set(whole.buffers) == {COUNT, MEAN, SQUARES} and not whole.buffers.keys() & whole.params.keys()
    assert int(whole.buffers[COUNT]) == 4 * 3 * 3 * 4 * (whole.learner.adaptations + 1)  # no episode ends early
    for other in (resumed, opened, copy):
        for name, value in (whole.params | whole.buffers).items():
            assert torch.equal(value, (other.params | other.buffers)[name]), name
    best = runs.load_checkpoint(run / "best.pt")
    assert int(best["buffers"][COUNT]) * 4 == best["iteration"] * int(whole.buffers[COUNT]), "those that it acted with"
    observations = torch.randn(5, 1)
    if opened.learner.memory is None:
        task = opened.tasks(1)
        torch.testing.assert_close(copy.policy(task)(observations).mean, opened.policy(task)(observations).mean)


@pytest.mark.parametrize("algorithm", [MAML(network=SMALL), Reptile(network=SMALL), RL2(hidden=4)])
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_it_keeps_the_contract(algorithm: Any, kind: Any) -> None:
    check_algorithm(normalising(algorithm), small_family(kind))


def test_a_learner_of_ones_own_reads_normalised_observations() -> None:
    def step(params: Params, gradients: Params) -> Params:
        return {name: value - 0.1 * gradients[name] for name, value in params.items()}

    class Own:
        def build(self, spec: Spec) -> Learner:
            return normalise_observations(normalise_observations(gradient_learner(spec, step, SMALL)))

    with pytest.raises(ValueError, match=r"observations\.count is counted twice"):
        Own().build(SPEC)
    once = normalise_observations(gradient_learner(SPEC, step, SMALL))
    assert holding(once).begin(once.init(torch.Generator()), torch.zeros(2, 1)).mean.shape == (2, 3)


def test_a_learner_without_its_buffers_says_what_to_do() -> None:
    learner = MAML(network=SMALL, normalise_observations=True).build(SPEC)
    with pytest.raises(ValueError, match=r"observations.count.*are not among the parameters: use .*holding"):
        learner.begin(learner.init(torch.Generator()), torch.zeros(1, 1))


@pytest.mark.parametrize("algorithm", [MAML(), Reptile(), MultiTask(), RL2(), CAVIA(), BMAML()])
def test_labelled_examples_have_no_steps_to_count(algorithm: Any) -> None:
    with pytest.raises(ValueError, match=r"normalise_observations .*control"):
        normalising(algorithm).build(Spec((3,), 2, "classification"))
    assert not hasattr(SNAIL(), "normalise_observations")
