"""MAML's meta-gradients against finite differences, against a plain loop over tasks, and its options."""

import itertools
from dataclasses import replace

import pytest
import torch
from support import loop_reference, synthetic
from support.synthetic import CONTINUOUS, DISCRETE
from torch import nn

from metarl.algorithms.maml import MAML
from metarl.networks.options import Network
from metarl.types import Experience, Spec, each_tensor

pytestmark = pytest.mark.usefixtures("float64")

SURROGATES = ("log_likelihood", "likelihood_ratio", "dice")
REGRESSION, CLASSIFICATION = Spec((3,), 2, "regression"), Spec((3,), 4, "classification")


def initial(learner, seed=1):
    params = learner.init(torch.Generator().manual_seed(seed))
    # Log-probabilities as flat as those of a fresh network hide mistakes: move every parameter off its start.
    generator = torch.Generator().manual_seed(seed + 1)
    return {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in params.items()}


def meta_loss(learner, params, experience):
    return learner.meta_loss(params, experience)[0].mean()


def meta_gradient(learner, params, experience):
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    gradients = torch.autograd.grad(meta_loss(learner, leaves, experience), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


def finite_difference(learner, params, experience, name, index, width=1e-5):
    def shifted(by):
        moved = {key: value.clone() for key, value in params.items()}
        moved[name].view(-1)[index] += by
        with torch.no_grad():
            return float(meta_loss(learner, moved, experience))

    return (shifted(width) - shifted(-width)) / (2 * width)


def assert_matches_finite_differences(learner, entries=6):
    params = initial(learner)
    experience = synthetic.experience(learner, params)
    # Leave the policy that acted, where a ratio of 1 would hide its derivative.
    params = {name: value + 0.02 * (1 + index) for index, (name, value) in enumerate(params.items())}
    gradient = meta_gradient(learner, params, experience)
    for name, value in params.items():
        for index in torch.linspace(0, value.numel() - 1, min(entries, value.numel())).long().unique().tolist():
            expected = finite_difference(learner, params, experience, name, index)
            assert float(gradient[name].view(-1)[index]) == pytest.approx(expected, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_meta_gradient_of_control_matches_finite_differences(spec, steps, surrogate):
    maml = MAML(steps=steps, surrogate=surrogate, network=Network(hidden=(5,), activation="tanh"), step_size=0.3)
    assert_matches_finite_differences(maml.build(spec))


@pytest.mark.parametrize(
    "options",
    [
        {"learn_step_sizes": True},
        {"adapt_only": ("head",)},
        {"adapt_only": ("head", "policy")},
        {"schedule": (1.0, 0.5)},
        {"learn_step_sizes": True, "adapt_only": ("head",), "schedule": (1.0, 0.5, 0.25)},
    ],
    ids=str,
)
@pytest.mark.parametrize(("steps", "surrogate"), list(itertools.product([1, 2, 3], SURROGATES)))
def test_meta_gradient_with_options_matches_finite_differences(options, steps, surrogate):
    maml = MAML(
        steps=steps, surrogate=surrogate, network=Network(hidden=(4,), activation="tanh"), step_size=0.3, **options
    )
    assert_matches_finite_differences(maml.build(CONTINUOUS), entries=3)


@pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION], ids=["regression", "classification"])
@pytest.mark.parametrize("steps", [1, 3])
def test_meta_gradient_on_examples_matches_finite_differences(spec, steps):
    assert_matches_finite_differences(MAML(steps=steps, network=Network(hidden=(5,), activation="tanh")).build(spec))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("steps", [1, 2])
def test_batched_equals_a_plain_loop_over_tasks(surrogate, steps):
    maml = MAML(
        steps=steps,
        surrogate=surrogate,
        network=Network(hidden=(5, 4), activation="tanh"),
        step_size=0.2,
        schedule=(1.0,),
    )
    learner = maml.build(CONTINUOUS)
    params = initial(learner)
    experience = synthetic.experience(learner, params)
    state = learner.begin(params, experience.descriptors)
    for support in experience.supports:
        state = learner.adapt(state, support)
    for task in range(4):
        own = {name: value.clone().requires_grad_() for name, value in params.items()}
        for support in experience.supports:
            own = loop_reference.adapt(own, loop_reference.task_of(support, task), 0.2, surrogate, create_graph=False)
        for name, value in own.items():
            torch.testing.assert_close(state.params[name][task], value, rtol=1e-10, atol=1e-12)


def test_meta_gradient_equals_that_of_the_loop():
    learner = MAML(
        steps=2,
        network=Network(hidden=(5,), activation="tanh"),
        step_size=0.2,
        surrogate="log_likelihood",
        schedule=(1.0,),
    ).build(CONTINUOUS)
    params = initial(learner)
    experience = synthetic.experience(learner, params)
    expected = loop_reference.trpo_update(params, experience.supports, experience.query, 0.2)[1]
    found = loop_reference.flat(list(meta_gradient(learner, params, experience).values()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_first_order_equals_the_detached_loop():
    learner = MAML(
        steps=2,
        network=Network(hidden=(5,), activation="tanh"),
        step_size=0.2,
        first_order=True,
        surrogate="log_likelihood",
        schedule=(1.0,),
    ).build(CONTINUOUS)
    params = initial(learner)
    experience = synthetic.experience(learner, params)
    total = torch.zeros_like(loop_reference.flat(list(params.values())))
    for task in range(4):
        own = {name: value.clone().requires_grad_() for name, value in params.items()}
        for support in experience.supports:
            own = loop_reference.adapt(own, loop_reference.task_of(support, task), 0.2, "log_likelihood", False)
            own = {name: value.detach().requires_grad_() for name, value in own.items()}
        loss = loop_reference.inner_loss("likelihood_ratio", own, loop_reference.task_of(experience.query, task))
        total += loop_reference.flat(torch.autograd.grad(loss, list(own.values()))) / 4
    found = loop_reference.flat(list(meta_gradient(learner, params, experience).values()))
    torch.testing.assert_close(found, total, rtol=1e-10, atol=1e-12)
    second = MAML(
        steps=2,
        network=Network(hidden=(5,), activation="tanh"),
        step_size=0.2,
        surrogate="log_likelihood",
        schedule=(1.0,),
    ).build(CONTINUOUS)
    assert not torch.allclose(loop_reference.flat(list(meta_gradient(second, params, experience).values())), total)


def test_anil_leaves_the_other_layers_alone():
    learner = MAML(adapt_only=("head",), network=Network(hidden=(5,))).build(CONTINUOUS)
    params = initial(learner)
    experience = synthetic.experience(learner, params)
    state = learner.adapt(learner.begin(params, experience.descriptors), experience.supports[0])
    changed = {name for name, value in state.params.items() if not torch.equal(value, params[name].expand_as(value))}
    assert changed == {"head.weight", "head.bias"}


def test_meta_sgd_starts_as_maml():
    options = {"network": Network(hidden=(5,)), "step_size": 0.3, "steps": 2}
    plain, learned = MAML(**options).build(CONTINUOUS), MAML(**options, learn_step_sizes=True).build(CONTINUOUS)
    params = learned.init(torch.Generator().manual_seed(0))
    sizes = {name: value for name, value in params.items() if name.startswith("step_size:")}
    assert len(sizes) == 5
    assert all((value == 0.3).all() for value in sizes.values())
    network = {name: value for name, value in params.items() if name not in sizes}
    assert all(
        torch.equal(value, network[name]) for name, value in plain.init(torch.Generator().manual_seed(0)).items()
    )
    experience = synthetic.experience(plain, network)
    torch.testing.assert_close(meta_loss(learned, params, experience), meta_loss(plain, network, experience))


def test_schedule_scales_each_step_and_its_last_factor_holds():
    maml = MAML(steps=3, network=Network(hidden=(4,)), step_size=0.2, schedule=(1.0, 0.5))
    learner = maml.build(REGRESSION)
    params = initial(learner)
    experience = synthetic.experience(learner, params)
    state = learner.begin(params, experience.descriptors)
    for step_size in (0.2, 0.1, 0.1):
        single = MAML(network=Network(hidden=(4,)), step_size=step_size).build(REGRESSION)
        expected = single.adapt(state._replace(step=0), experience.supports[0]).params
        state = learner.adapt(state, experience.supports[0])
        torch.testing.assert_close(state.params, expected)


@pytest.mark.parametrize("steps", [1, 2])
def test_by_default_only_steps_of_control_beyond_those_of_training_are_halved(steps):
    for spec, same in ((CONTINUOUS, (*[1.0] * steps, 0.5)), (REGRESSION, (1.0,))):
        default = MAML(steps=steps, network=Network(hidden=(4,))).build(spec)
        explicit = MAML(steps=steps, network=Network(hidden=(4,)), schedule=same).build(spec)
        plain = MAML(steps=steps, network=Network(hidden=(4,)), schedule=(1.0,)).build(spec)
        params = initial(default)
        experience = synthetic.experience(default, params)
        assert torch.equal(meta_loss(default, params, experience), meta_loss(plain, params, experience))
        states = [learner.begin(params, experience.descriptors) for learner in (default, explicit)]
        for _ in range(steps + 2):
            states = [
                default.adapt(states[0], experience.supports[0]),
                explicit.adapt(states[1], experience.supports[0]),
            ]
            assert all(torch.equal(value, states[1].params[name]) for name, value in states[0].params.items())


def test_tasks_are_independent_and_their_order_does_not_matter():
    learner = MAML(steps=2, network=Network(hidden=(5,))).build(CONTINUOUS)
    params = initial(learner)
    experience = synthetic.experience(learner, params)
    loss, gradient = meta_loss(learner, params, experience), meta_gradient(learner, params, experience)
    order = torch.tensor([2, 0, 3, 1])

    def permuted(batch):
        return each_tensor(lambda values: values[order], batch)

    shuffled = Experience(
        descriptors=experience.descriptors,
        supports=tuple(map(permuted, experience.supports)),
        query=permuted(experience.query),
    )
    torch.testing.assert_close(meta_loss(learner, params, shuffled), loss)
    torch.testing.assert_close(meta_gradient(learner, params, shuffled), gradient)

    changed = replace(experience.supports[0], advantages=experience.supports[0].advantages.clone())
    changed.advantages[1] *= -3
    before = learner.adapt(learner.begin(params, experience.descriptors), experience.supports[0]).params
    after = learner.adapt(learner.begin(params, experience.descriptors), changed).params
    for name in before:
        assert torch.equal(before[name][[0, 2, 3]], after[name][[0, 2, 3]])
        assert not torch.equal(before[name][1], after[name][1])


def test_adapting_without_gradients_keeps_no_graph():
    learner = MAML(network=Network(hidden=(5,))).build(CONTINUOUS)
    params = {name: value.requires_grad_() for name, value in initial(learner).items()}
    experience = synthetic.experience(learner, params)
    with torch.no_grad():
        state = learner.adapt(learner.begin(params, experience.descriptors), experience.supports[0])
    assert not any(value.requires_grad for value in state.params.values())


class Residual(nn.Module):
    """A user's network that no special case knows, with a parameter that the loss does not reach."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.norm, self.first = nn.LayerNorm(spec.input_shape[0]), nn.Linear(spec.input_shape[0], spec.input_shape[0])
        self.out = nn.Linear(spec.input_shape[0], spec.model_outputs)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs):
        return self.out(inputs + torch.tanh(self.first(self.norm(inputs))))


@pytest.mark.parametrize("spec", [CONTINUOUS, REGRESSION], ids=["continuous", "regression"])
def test_any_module_can_be_meta_learned(spec):
    learner = MAML(steps=2, network=Network(architecture=Residual), step_size=0.3).build(spec)
    params = initial(learner)
    experience = synthetic.experience(learner, params)
    gradient = meta_gradient_allowing_unused(learner, params, experience)
    for name in ("first.weight", "norm.bias", "out.weight"):
        expected = finite_difference(learner, params, experience, name, 1)
        assert float(gradient[name].view(-1)[1]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def meta_gradient_allowing_unused(learner, params, experience):
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    loss = meta_loss(learner, leaves, experience)
    gradients = torch.autograd.grad(loss.mean(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least one inner step"),
        ({"step_size": -0.1}, "must be positive"),
        ({"step_size": float("nan")}, "must be positive"),
        ({"step_size": float("inf")}, "must be positive and finite"),
        ({"schedule": (1.0, float("inf"))}, "positive"),
        ({"schedule": ()}, "at least one factor"),
        ({"schedule": (1.0, -1.0)}, "positive"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MAML(**options)


def test_anil_refuses_layers_that_do_not_exist():
    with pytest.raises(ValueError, match=r"adapt_only=\['haed'\] names no parameter; the network has hidden_0.weight"):
        MAML(adapt_only=("haed",)).build(CONTINUOUS)


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"surrogate='lvc': expected one of log_likelihood, likelihood_ratio, dice"):
        MAML(surrogate="lvc")
