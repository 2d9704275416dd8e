"""iMAML against closed forms of quadratic problems, finite differences of solutions, and torch's linear solver."""

import pytest
import torch
from support import synthetic
from support.meta_gradients import assert_finite_differences, meta_gradient
from support.synthetic import CONTINUOUS, DISCRETE
from torch.autograd.graph import saved_tensors_hooks

from metarl.algorithms.gradient.imaml import IMAML, solve
from metarl.algorithms.maml import MAML
from metarl.networks.options import Network
from metarl.numerics import flatten
from metarl.types import Spec

float64 = pytest.mark.usefixtures("float64")
REGRESSION, CLASSIFICATION = Spec((3,), 2, "regression"), Spec((3,), 4, "classification")
SMALL = Network(hidden=(5,), activation="tanh")
LINE = Spec((3,), 1, "regression")
SOLVERS = [
    {"optimiser": "sgd", "step_size": 0.1},
    {"optimiser": "sgd", "step_size": 0.05, "momentum": 0.5},
    {"optimiser": "adam", "step_size": 0.003, "steps": 3000},
]


def built(spec, network=SMALL, **options):
    learner = IMAML(**{"network": network, **options}).build(spec)
    return learner, synthetic.initial(learner)


def solved(learner, params, experience):
    state = learner.begin(params, experience.descriptors)
    for support in experience.supports:
        state = learner.adapt(state, support)
    return state.params


class Line:
    """Regression of a line with a weight of 2 on squared distances from the start: all in closed form."""

    def __init__(self, params, experience):
        def rows(batch):
            inputs = torch.cat([batch.inputs, torch.ones_like(batch.inputs[..., :1])], dim=-1)
            return inputs, batch.targets

        start = torch.cat([params["head.weight"], params["head.bias"].unsqueeze(1)], dim=1).mT
        (inputs, targets), (query, answers) = rows(experience.supports[0]), rows(experience.query)
        hessian = 2 * inputs.mT @ inputs / inputs.shape[1]
        shrunk = hessian + 2 * torch.eye(4)
        self.solution = torch.linalg.solve(shrunk, 2 * inputs.mT @ targets / inputs.shape[1] + 2 * start)
        slope = 2 * query.mT @ (query @ self.solution - answers) / query.shape[1]
        self.gradient = (2 * torch.linalg.solve(shrunk, slope)).mean(0).flatten()


def line(**options):
    learner, params = built(LINE, Network(hidden=()), **{"step_size": 0.05, "strength": 2.0, **options})
    experience = synthetic.experience(learner, params)
    return learner, params, experience, Line(params, experience)


@float64
@pytest.mark.parametrize("options", SOLVERS, ids=str)
def test_solution_and_gradient_of_a_quadratic_problem_are_its_closed_form(options):
    learner, params, experience, expected = line(**{"steps": 400, **options})
    found = solved(learner, params, experience)
    weights = torch.cat([found["head.weight"], found["head.bias"].unsqueeze(1)], dim=2).mT
    near = 1e-2 if options["optimiser"] == "adam" else 1e-9  # Adam of one step size goes on around the solution
    torch.testing.assert_close(weights, expected.solution, rtol=near, atol=near)
    gradient = flatten(meta_gradient(learner, params, experience).values())
    torch.testing.assert_close(gradient, expected.gradient, rtol=near, atol=near)


@float64
def test_the_gradients_error_falls_with_inner_steps_and_with_the_solvers():
    def errors(name, numbers, **options):
        for number in numbers:
            learner, params, experience, expected = line(**options, **{name: number})
            found = flatten(meta_gradient(learner, params, experience).values())
            yield float((found - expected.gradient).norm() / expected.gradient.norm())

    inner = list(errors("steps", (1, 4, 16, 64, 256), solver_steps=5))
    assert inner == sorted(inner, reverse=True)
    assert inner[0] > 0.1
    assert inner[-1] < 1e-9
    outer = list(errors("solver_steps", (1, 2, 3, 4), steps=400))
    assert outer == sorted(outer, reverse=True)
    assert outer[0] > 1e-3
    assert outer[-1] < 1e-9  # a problem of four parameters


@float64
@pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("options", SOLVERS[:2], ids=str)
def test_meta_gradient_is_that_of_the_solutions_query_loss(spec, options):
    learner, params = built(spec, steps=120, solver_steps=40, strength=6.0, **options)
    experience = synthetic.experience(learner, params)
    found, metrics = meta_gradient(learner, params, experience), learner.meta_loss(params, experience)[1]
    assert metrics["inner/gradient"].max() < 1e-7
    assert_finite_differences(
        lambda moved: learner.meta_loss(moved, experience)[0].mean(), params, found, entries=2, rel=1e-4, atol=1e-7
    )
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    assert learner.meta_loss(leaves, experience)[1]["inner/residual"].max() < 1e-6


@float64
def test_damping_leads_to_first_order_maml():
    learner, params = built(REGRESSION, damping=1e9)
    experience = synthetic.experience(learner, params)
    state = learner.begin(params, experience.descriptors)
    for support in experience.supports:
        state = learner.adapt(state, support)
    leaves = {name: value.requires_grad_() for name, value in state.params.items()}
    outputs, _ = learner.predict(state._replace(params=leaves), experience.query.inputs)
    loss = (outputs - experience.query.targets).square().mean((1, 2)).sum()
    slopes = torch.autograd.grad(loss, list(leaves.values()))
    found = meta_gradient(learner, params, experience)
    for slope, value in zip(slopes, found.values(), strict=True):
        torch.testing.assert_close(value, slope.mean(0), rtol=1e-6, atol=1e-8)


@float64
def test_tasks_are_solved_for_side_by_side():
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(5, 6, 6, generator=generator)
    matrices = roots @ roots.mT + torch.eye(6)
    matrices[3] = -matrices[3]  # no direction is positive
    target = {"a": torch.randn(5, 2, 2, generator=generator), "b": torch.randn(5, 2, generator=generator)}
    target = {name: value.index_fill(0, torch.tensor(4), 0) for name, value in target.items()}

    def rows(params):
        return torch.cat([value.flatten(1) for value in params.values()], dim=1)

    def product(vector):
        image = (matrices @ rows(vector).unsqueeze(2)).squeeze(2)
        return {"a": image[:, :4].reshape(5, 2, 2), "b": image[:, 4:]}

    found, residual = solve(product, target, 6)
    expected = torch.linalg.solve(matrices[:3], rows(target)[:3])
    torch.testing.assert_close(rows(found)[:3], expected)
    assert residual[:3].max() < 1e-9
    assert residual.tolist()[3:] == [1, 0]
    assert not rows(found)[3:].any()


class Kept:
    """A tensor that a graph keeps, and how many numbers all graphs keep now, and kept at most."""

    now = most = 0

    def __init__(self, value):
        self.value = value
        Kept.now += value.numel()
        Kept.most = max(Kept.now, Kept.most)

    def __del__(self):
        Kept.now -= self.value.numel()


def test_memory_for_the_meta_gradient_does_not_grow_with_the_inner_steps():
    spec = Spec((1, 16, 16), 3, "classification")
    network = Network("conv4", filters=4)

    def kept(algorithm):
        learner = algorithm.build(spec)
        params = learner.init(torch.Generator().manual_seed(0))
        experience = synthetic.experience(learner, params)
        with saved_tensors_hooks(Kept, lambda kept: kept.value):
            Kept.now = Kept.most = 0
            meta_gradient(learner, params, experience)
        return Kept.most

    assert kept(IMAML(steps=1, network=network)) == kept(IMAML(steps=16, network=network))
    assert kept(MAML(steps=16, network=network)) > 4 * kept(MAML(steps=2, network=network))


def test_one_class_is_solved_before_the_first_step():
    spec = Spec((3,), 1, "classification")
    learner, params = built(spec)
    experience = synthetic.experience(learner, params)
    found = solved(learner, params, experience)
    torch.testing.assert_close(found, {name: value.expand_as(found[name]) for name, value in params.items()})
    assert not any(value.any() for value in meta_gradient(learner, params, experience).values())


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=lambda spec: spec.kind)
def test_policies_are_refused_with_what_serves_them(spec):
    with pytest.raises(ValueError, match="another one with every draw of episodes: for control use maml or cavia"):
        IMAML().build(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"solver_steps": 0}, "solver_steps=0: expected at least 1"),
        ({"step_size": -0.1}, "step_size=-0.1 must be positive"),
        ({"strength": 0.0}, "strength=0.0 must be positive"),
        ({"strength": float("nan")}, "must be positive"),
        ({"momentum": 1.0}, "less than 1"),
        ({"step_size": float("inf")}, "must be positive and finite"),
        ({"damping": -1.0}, "at least 0"),
        ({"damping": float("inf")}, "at least 0, and finite"),
        ({"optimiser": "rmsprop"}, "expected one of sgd, adam"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IMAML(**options)


def test_gradients_through_its_steps_are_refused():
    learner, params = built(REGRESSION)
    experience = synthetic.experience(learner, params)
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    with pytest.raises(ValueError, match="not differentiated"):
        learner.adapt(learner.begin(leaves, experience.descriptors), experience.supports[0])
