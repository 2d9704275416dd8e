"""SVPG's step against a loop over pairs of particles, MAML's, and finite differences."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from support import synthetic
from support.meta_gradients import assert_finite_differences, meta_gradient
from support.stein import SMALL, built, slow_step
from support.synthetic import CONTINUOUS, DISCRETE

from metarl import objectives
from metarl.algorithms.gradient.bmaml import BMAML
from metarl.algorithms.maml import MAML
from metarl.control.sampling import Sampling
from metarl.numerics import flatten
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation

float64 = pytest.mark.usefixtures("float64")
SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=lambda spec: spec.kind)


def alone(rollout, task, episodes):
    """Some episodes of a task."""
    cut = {name: value[[task]][:, episodes] for name, value in vars(rollout).items() if value is not None}
    return replace(rollout, **cut)


@float64
@SPECS
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_step_is_that_of_a_loop_over_pairs(spec, count):
    learner, params = built(spec, particles=count, prior=0.7, temperature=0.2)
    support = synthetic.experience(learner, params).supports[0]
    assert support.mask.shape[1] == 3  # two particles play two and one of them; of four, one plays none
    found = learner.adapt(learner.begin(params, torch.zeros(4, 0)), support).particles
    single = MAML(network=SMALL).build(spec)
    shapes = {name: value[0].shape for name, value in params.items()}
    sizes = [shape.numel() for shape in shapes.values()]
    for task in range(4):

        def log_posterior(place, row, task=task):
            pieces = dict(zip(shapes, row.split(sizes), strict=True))
            own = {name: piece.view(shapes[name]) for name, piece in pieces.items()}
            if place >= 3:
                return -0.7 / 2 * row.square().sum()
            played = alone(support, task, list(range(place, 3, count)))
            outputs, _ = single.predict(single.begin(own, torch.zeros(1, 0)), played.observations)
            gain = -objectives.surrogate("likelihood_ratio", spec.distribution, outputs, played)[0]
            return gain / 0.2 - 0.7 / 2 * row.square().sum()

        rows = torch.stack([flatten(value[particle] for value in params.values()) for particle in range(count)])
        expected = slow_step(rows, log_posterior, 0.2, 0.3)
        own = [flatten(value[task, particle] for value in found.values()) for particle in range(count)]
        torch.testing.assert_close(torch.stack(own), expected, rtol=1e-9, atol=1e-10)


@float64
@SPECS
def test_one_particle_without_prior_is_maml(spec):
    learner, params = built(spec, particles=1, prior=0.0, steps=2)
    experience = synthetic.experience(learner, params)
    maml = MAML(steps=2, step_size=0.3, network=SMALL).build(spec)
    network = {name: value[0] for name, value in params.items()}
    found, expected = (meta_gradient(one, start, experience) for one, start in ((learner, params), (maml, network)))
    torch.testing.assert_close({name: value[0] for name, value in found.items()}, expected)


@float64
@SPECS
def test_meta_gradient_matches_finite_differences(spec):
    learner, params = built(spec, particles=2, steps=2)
    experience = synthetic.experience(learner, params)
    found = meta_gradient(learner, params, experience)
    assert_finite_differences(lambda moved: learner.meta_loss(moved, experience)[0].mean(), params, found, rel=2e-5)


@float64
@SPECS
@pytest.mark.parametrize("episodes", [1, 2, 3, 4, 7])
def test_episodes_are_dealt_out_to_particles_in_turn(spec, episodes):
    learner, params = built(spec, particles=3)
    single, observations = MAML(network=SMALL).build(spec), torch.randn(2, episodes, 4, 3)
    found, _ = learner.predict(learner.begin(params, torch.zeros(2, 0)), observations)
    for episode in range(episodes):
        own = single.begin({name: value[episode % 3] for name, value in params.items()}, torch.zeros(2, 0))
        expected, _ = single.predict(own, observations[:, episode])
        torch.testing.assert_close(found[:, episode], expected)
    acting, _ = learner.predict(learner.begin(params, torch.zeros(2, 0)), observations[:, :, 2])
    torch.testing.assert_close(acting, found[:, :, 2])


def test_it_learns_bandits():
    family, algorithm = Bandit(sampling=Sampling(episodes=20, horizon=10)), BMAML(particles=2, step_size=4.0, prior=0.0)
    rows = train(algorithm, family, settings=Settings(iterations=20, meta_batch_size=20, device="cpu")).rows
    gained = [row["return/step_1"] - row["return/step_0"] for row in rows[-5:]]
    assert sum(gained) / len(gained) > 0.5


def test_one_policy_answers_for_many_observations(tmp_path):
    """Rows of observations are no episodes: the first particle acts, however many there are."""
    family = PointNavigation(sampling=Sampling(episodes=4, horizon=5))
    run = train(BMAML(particles=3, network=SMALL), family, settings=Settings(1, 2, device="cpu"), out=tmp_path / "run")
    rows = torch.randn(5, 2)
    policy = run.policy(run.tasks(1))
    torch.testing.assert_close(policy(rows).mean, torch.cat([policy(row[None]).mean for row in rows]))
    adapted = run.adapt_to(gymnasium.make("metarl/PointNavigation-v0"), episodes=3, horizon=5)
    acted = adapted.act(rows.numpy())
    np.testing.assert_allclose(acted, np.concatenate([adapted.act(row[None]) for row in rows.numpy()]), rtol=1e-5)
    path = adapted.export(tmp_path / "policy.pt2")
    program = torch.export.load(path).module()
    np.testing.assert_allclose(program(rows).detach().numpy(), acted, rtol=1e-5)
