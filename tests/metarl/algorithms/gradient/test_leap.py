"""Leap against algorithm 1 of its paper in a plain loop, and against finite differences of the length of a path."""

import pytest
import torch
from support import slow_inner, synthetic
from support.meta_gradients import assert_finite_differences, meta_gradient
from support.synthetic import CONTINUOUS, DISCRETE

from metarl.algorithms.gradient.leap import Leap
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.shared.mini_batches import positions
from metarl.evaluation.scores import evaluate
from metarl.networks.options import Network
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Examples, Spec
from metarl_plugins.sinusoid import Sinusoid

float64 = pytest.mark.usefixtures("float64")
REGRESSION, CLASSIFICATION = Spec((3,), 2, "regression"), Spec((3,), 4, "classification")
SPECS = pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION], ids=lambda spec: spec.kind)
SMALL = Network(hidden=(5,), activation="tanh")


def built(spec, **options):
    learner = Leap(**{"network": SMALL, "steps": 6, "step_size": 0.3, "batch_size": 4, **options}).build(spec)
    params = synthetic.initial(learner)
    return learner, params, synthetic.experience(learner, params)


class Path:
    """One task's path, walked by torch's own optimiser, each step on a mini-batch of its own."""

    def __init__(self, spec, params, support, size, steps, optimiser="sgd", step_size=0.3):
        self.kind, items = spec.kind, len(support.targets)
        chosen = [positions("cycle", items, min(size, items), step) for step in range(steps + 1)]
        self.batches = [Examples(inputs=support.inputs[index], targets=support.targets[index]) for index in chosen]
        self.points = slow_inner.train(spec.kind, params, self.batches[:-1], optimiser, step_size)
        self.losses = [self.loss(*pair) for pair in zip(self.points, self.batches, strict=True)]

    def loss(self, point, batch):
        return slow_inner.loss(self.kind, point, batch)

    def falls(self, stabilise):
        pairs = zip(self.losses[1:], self.losses[:-1], strict=True)
        return [-abs(after - before) if stabilise else after - before for after, before in pairs]

    def meta_gradient(self, stabilise, power):
        """Algorithm 1: each step adds eq. 8, with the Jacobian of its point as the identity."""
        total = {name: torch.zeros_like(value) for name, value in self.points[0].items()}
        for step, fall in enumerate(self.falls(stabilise)):
            here = {name: value.clone().requires_grad_() for name, value in self.points[step].items()}
            slopes = torch.autograd.grad(self.loss(here, self.batches[step]), list(here.values()))
            ways = {name: self.points[step + 1][name] - self.points[step][name] for name in here}
            length = (fall**2 + sum(way.square().sum() for way in ways.values())) ** 0.5
            for (name, way), slope in zip(ways.items(), slopes, strict=True):
                total[name] -= power * (fall * slope + way) * length ** (power - 2)
        return total

    def length(self, stabilise, power, shift):
        """The path's length where all its points move with the first, but for the ends of its steps."""
        total = 0.0
        for step, fall in enumerate(self.falls(stabilise)):
            moved = {name: value + shift[name] for name, value in self.points[step].items()}
            height = self.losses[step] + fall - self.loss(moved, self.batches[step])
            ways = [self.points[step + 1][name] - value for name, value in moved.items()]
            total = total + (height**2 + sum(way.square().sum() for way in ways)) ** (power / 2)
        return total


def paths(spec, params, experience, size=4, steps=6, optimiser="sgd", step_size=0.3):
    supports = [slow_inner.task_of(experience.supports[0], task) for task in range(4)]
    return [Path(spec, params, support, size, steps, optimiser, step_size) for support in supports]


@float64
@SPECS
@pytest.mark.parametrize(("measure", "power"), [("length", 1), ("energy", 2)])
@pytest.mark.parametrize("stabilise", [True, False])
def test_meta_gradient_is_algorithm_1s(spec, measure, power, stabilise):
    learner, params, experience = built(spec, measure=measure, stabilise=stabilise)
    walked = paths(spec, params, experience)
    rises = [after > before for path in walked for before, after in zip(path.losses, path.losses[1:], strict=False)]
    assert any(rises)  # else the stabiliser would change nothing
    each = [path.meta_gradient(stabilise, power) for path in walked]
    expected = {name: sum(gradient[name] for gradient in each) / 4 for name in params}
    torch.testing.assert_close(meta_gradient(learner, params, experience), expected, rtol=1e-8, atol=1e-10)
    losses, _ = learner.meta_loss(params, experience)
    nothing = {name: torch.zeros_like(value) for name, value in params.items()}
    torch.testing.assert_close(losses, torch.stack([path.length(stabilise, power, nothing) for path in walked]))


@float64
@SPECS
@pytest.mark.parametrize(("measure", "power"), [("length", 1), ("energy", 2)])
def test_meta_gradient_matches_finite_differences_of_the_length_with_frozen_targets(spec, measure, power):
    learner, params, experience = built(spec, measure=measure, stabilise=False)
    walked = paths(spec, params, experience)
    nothing = {name: torch.zeros_like(value) for name, value in params.items()}
    assert_finite_differences(
        lambda shift: sum(path.length(False, power, shift) for path in walked) / 4,
        nothing,
        meta_gradient(learner, params, experience),
    )


@float64
def test_paths_of_adam_are_measured_as_they_go():
    learner, params, experience = built(REGRESSION, optimiser="adam", step_size=0.05, batch_size=None)
    walked = paths(REGRESSION, params, experience, size=6, optimiser="adam", step_size=0.05)
    each = [path.meta_gradient(True, 1) for path in walked]
    expected = {name: sum(gradient[name] for gradient in each) / 4 for name in params}
    torch.testing.assert_close(meta_gradient(learner, params, experience), expected, rtol=1e-6, atol=1e-9)


@float64
@SPECS
@pytest.mark.parametrize("mini_batches", ["cycle", "replacement"])
def test_inner_steps_are_reptiles(spec, mini_batches):
    options = {"steps": 6, "step_size": 0.3, "batch_size": 4, "mini_batches": mini_batches, "network": SMALL}
    reptile = Reptile(optimiser="sgd", **options).build(spec)
    learner, params, experience = built(spec, mini_batches=mini_batches)
    state, expected = learner.begin(params, experience.descriptors), reptile.begin(params, experience.descriptors)
    for support in experience.supports:
        state, expected = learner.adapt(state, support), reptile.adapt(expected, support)
    torch.testing.assert_close(state.params, expected.params)
    _, metrics = learner.meta_loss(params, experience)
    torch.testing.assert_close(metrics, reptile.meta_loss(params, experience)[1])


@float64
def test_a_path_that_goes_nowhere_has_no_gradient():
    spec = Spec((3,), 1, "classification")  # one class: solved before the first step
    learner, params, experience = built(spec)
    losses, _ = learner.meta_loss(params, experience)
    assert losses.tolist() == [0] * 4
    assert not any(value.any() for value in meta_gradient(learner, params, experience).values())


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=lambda spec: spec.kind)
def test_policies_are_refused_with_what_serves_them(spec):
    with pytest.raises(ValueError, match="for control use reptile"):
        Leap().build(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least one inner step"),
        ({"step_size": 0.0}, "step_size=0.0 must be positive"),
        ({"step_size": float("inf")}, "must be positive and finite"),
        ({"batch_size": 0}, "at least 1, or None"),
        ({"optimiser": "rmsprop"}, "expected sgd or adam"),
        ({"mini_batches": "all"}, "expected cycle or replacement"),
        ({"measure": "p3"}, "expected length or energy"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Leap(**options)


def test_many_steps_lead_further_from_where_it_starts():
    family = Sinusoid(shots=10)
    algorithm = Leap(steps=20, step_size=0.01, network=Network(hidden=(40, 40), activation="tanh"))
    errors = []
    for iterations in (1, 100):
        result = train(algorithm, family, settings=Settings(iterations=iterations, meta_batch_size=10))
        found = evaluate(result.learner, result.params, family, tasks=100, steps=20)
        errors.append(found.metrics["loss/step_20"]["mean"])
    assert errors[1] < 0.6 * errors[0]
