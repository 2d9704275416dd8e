"""BMAML's SVGD step against a loop over pairs of particles, against a posterior in closed form, and MAML."""

import pytest
import torch
from support import synthetic
from support.meta_gradients import assert_finite_differences, gradient_of, meta_gradient
from support.stein import SMALL, built, slow_step
from torch.nn import functional

from metarl.algorithms.gradient.bmaml import BMAML, particle_outputs
from metarl.algorithms.gradient.stein import kernel, svgd
from metarl.algorithms.maml import MAML
from metarl.evaluation.scores import evaluate
from metarl.networks.options import Network
from metarl.numerics import flatten
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Examples, Spec, pooled
from metarl_plugins.sinusoid import Sinusoid

float64 = pytest.mark.usefixtures("float64")
REGRESSION, CLASSIFICATION = Spec((3,), 2, "regression"), Spec((3,), 4, "classification")
SPECS = pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION], ids=lambda spec: spec.kind)


def adapted(learner, params, experience):
    state = learner.begin(params, experience.descriptors)
    for support in experience.supports:
        state = learner.adapt(state, support)
    return state


@float64
@SPECS
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_step_is_that_of_a_loop_over_pairs(spec, count):
    learner, params = built(spec, particles=count, noise=0.4, prior=0.7)
    experience = synthetic.experience(learner, params)
    support, shapes = experience.supports[0], {name: value[0].shape for name, value in params.items()}
    found = learner.adapt(learner.begin(params, experience.descriptors), support).particles
    sizes = [shape.numel() for shape in shapes.values()]
    for task in range(4):
        inputs, targets = support.inputs[task], support.targets[task]

        def log_posterior(place, row, inputs=inputs, targets=targets):
            pieces = dict(zip(shapes, row.split(sizes), strict=True))
            own = {name: piece.view(shapes[name]) for name, piece in pieces.items()}
            hidden = torch.tanh(functional.linear(inputs, own["hidden_0.weight"], own["hidden_0.bias"]))
            outputs = functional.linear(hidden, own["head.weight"], own["head.bias"])
            if spec.kind == "classification":
                likelihood = -functional.cross_entropy(outputs, targets, reduction="sum")
            else:
                likelihood = torch.distributions.Normal(outputs, 0.4).log_prob(targets).sum()
            return likelihood - 0.7 / 2 * row.square().sum()

        temperature = 1 / 6 if spec.kind == "classification" else 2 * 0.4**2 / (6 * 2)
        rows = torch.stack([flatten(value[particle] for value in params.values()) for particle in range(count)])
        expected = slow_step(rows, log_posterior, temperature, 0.3)
        own = [flatten(value[task, particle] for value in found.values()) for particle in range(count)]
        torch.testing.assert_close(torch.stack(own), expected, rtol=1e-9, atol=1e-10)


@float64
@SPECS
@pytest.mark.parametrize(("count", "steps"), [(1, 1), (3, 1), (4, 2)])
def test_meta_gradient_matches_finite_differences_while_the_leader_waits(spec, count, steps):
    learner, params = built(spec, particles=count, steps=steps, leader_steps=2)
    experience = synthetic.experience(learner, params)
    both = pooled([experience.supports[-1], experience.query])
    with torch.no_grad():
        leader = learner.adapt(learner.adapt(adapted(learner, params, experience), both), both).particles

    def chase(moved):
        chaser = adapted(learner, moved, experience).particles
        return sum((chaser[name] - value).square().sum() for name, value in leader.items()) / 4

    found = meta_gradient(learner, params, experience)
    torch.testing.assert_close(learner.meta_loss(params, experience)[0].mean(), chase(params))
    assert_finite_differences(chase, params, found, rel=2e-5, atol=1e-8)


@float64
@SPECS
@pytest.mark.parametrize("prior", [0.0, 2.0])
def test_one_particle_is_maml_with_its_prior(spec, prior):
    learner, params = built(spec, particles=1, prior=prior, steps=2)
    experience = synthetic.experience(learner, params)
    maml = MAML(steps=1, step_size=0.3, network=SMALL).build(spec)
    network = {name: value[0] for name, value in params.items()}
    items = 6 if spec.kind == "classification" else 6 * 2 / (2 * 0.1**2)
    for _ in range(2):
        state = learner.begin({name: value.unsqueeze(0) for name, value in network.items()}, experience.descriptors)
        found = learner.adapt(state, experience.supports[0]).particles
        plain = maml.adapt(maml.begin(network, experience.descriptors), experience.supports[0]).params
        expected = {name: value - 0.3 * prior / items * network[name] for name, value in plain.items()}
        torch.testing.assert_close({name: value[:, 0] for name, value in found.items()}, expected)
        network = {name: value[0] for name, value in expected.items()}


@float64
def test_particles_become_samples_of_a_posterior():
    """Of a line's slope and offset, which is normal; its moments are known."""
    spec = Spec((1,), 1, "regression")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 8, 1, generator=generator)
    targets = 0.7 * inputs - 0.4 + 0.5 * torch.randn(1, 8, 1, generator=generator)
    options = {"particles": 40, "noise": 0.5, "prior": 1.0, "step_size": 0.5, "network": Network(hidden=())}
    learner = BMAML(**options).build(spec)
    state = learner.begin(synthetic.initial(learner), torch.zeros(1, 0))
    for _ in range(800):
        state = learner.adapt(state, Examples(inputs=inputs, targets=targets))
    features = torch.cat([inputs[0], torch.ones(8, 1)], dim=1)
    precision = features.mT @ features / 0.25 + torch.eye(2)
    mean = torch.linalg.solve(precision, features.mT @ targets[0] / 0.25)[:, 0]
    rows = torch.cat([value.flatten(2) for value in state.particles.values()], dim=2)[0]
    torch.testing.assert_close(rows.mean(0), mean, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(rows.mT.cov(correction=0), torch.linalg.inv(precision), rtol=0.15, atol=0.01)


@float64
@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_predictions_are_means_of_what_each_particle_says(batch_norm):
    spec = Spec((1, 16, 16), 3, "classification")
    learner, params = built(spec, network=Network("conv4", filters=2, batch_norm=batch_norm))
    experience = synthetic.few_shot(spec)
    state, inputs = adapted(learner, params, experience), experience.query.inputs
    each = particle_outputs(learner, state, inputs)
    assert each.shape == (3, 3, 5, 3)
    torch.testing.assert_close(each.exp().sum(-1), torch.ones(3, 3, 5))
    torch.testing.assert_close(learner.predict(state, inputs)[0].exp(), each.exp().mean(1))
    for particle in range(3):
        alone = state._replace(particles={name: value[:, [particle]] for name, value in state.particles.items()})
        torch.testing.assert_close(learner.predict(alone, inputs)[0], each[:, particle])


@float64
def test_the_spread_of_a_regressions_particles_tells_where_nothing_is_known():
    learner, params = built(REGRESSION, particles=5)
    experience = synthetic.experience(learner, params)
    state = adapted(learner, params, experience)
    each = particle_outputs(learner, state, experience.query.inputs)
    torch.testing.assert_close(learner.predict(state, experience.query.inputs)[0], each.mean(1))
    far = particle_outputs(learner, state, 10 * experience.query.inputs)
    assert far.std(1).mean() > each.std(1).mean()


@float64
def test_particles_that_coincide_are_not_torn_apart():
    rows = {"weight": torch.full((2, 4, 3), 0.1)}
    slopes = {"weight": torch.ones(2, 4, 3)}
    torch.testing.assert_close(svgd(rows, slopes, 0.5, 0.2), {"weight": torch.full((2, 4, 3), -0.1)})
    found = gradient_of(lambda params: svgd(params, slopes, 0.5, 0.2)["weight"].sum(), rows)
    assert found["weight"].isfinite().all()


def test_the_kernel_of_a_single_particle_is_one():
    weights, variance = kernel(torch.randn(3, 1, 5))
    assert weights.tolist() == [[[1]]] * 3
    assert variance.tolist() == [1, 1, 1]


def test_one_class_moves_particles_by_prior_and_repulsion_only():
    spec = Spec((3,), 1, "classification")
    learner, params = built(spec, prior=0.0, particles=1)
    experience = synthetic.experience(learner, params)
    state = adapted(learner, params, experience)
    torch.testing.assert_close({name: value[0] for name, value in state.particles.items()}, params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 0}, "particles=0: expected at least 1"),
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"leader_steps": 0}, "leader_steps=0: expected at least 1"),
        ({"step_size": 0.0}, "must be positive"),
        ({"noise": 0.0}, "noise=0.0 must be positive"),
        ({"noise": float("inf")}, "must be positive and finite"),
        ({"prior": -1.0}, "at least 0"),
        ({"prior": float("inf")}, "at least 0, and finite"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BMAML(**options)


def test_it_learns_sinusoids():
    family, algorithm = Sinusoid(shots=5), BMAML(particles=3, network=Network(hidden=(40, 40)))
    result = train(algorithm, family, settings=Settings(iterations=500, meta_batch_size=10))
    found = evaluate(result.learner, result.params, family, tasks=100, steps=1)
    before, after = (found.metrics[f"loss/step_{step}"]["mean"] for step in (0, 1))
    assert after < 0.85 * before


def test_particles_are_the_tasks_own():
    learner, params = built(CLASSIFICATION)
    experience = synthetic.experience(learner, params)
    whole = adapted(learner, params, experience)
    part = adapted(learner, params, synthetic.chosen(experience, slice(1, 2)))
    torch.testing.assert_close({name: value[1:2] for name, value in whole.particles.items()}, part.particles)
