"""CAVIA against MAML on a bias, against contexts that are really concatenated, and against finite differences."""

import pytest
import torch
from support import slow_inner, synthetic
from support.meta_gradients import assert_finite_differences, meta_gradient
from support.synthetic import CONTINUOUS, DISCRETE
from torch.nn import functional

from metarl.algorithms.gradient.cavia import CAVIA
from metarl.algorithms.maml import MAML
from metarl.control.sampling import Sampling
from metarl.evaluation.scores import evaluate
from metarl.networks.convolutional import conv4
from metarl.networks.options import Network
from metarl.sb3 import to_ppo
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Spec
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation
from metarl_plugins.sinusoid import Sinusoid

float64 = pytest.mark.usefixtures("float64")
REGRESSION, CLASSIFICATION = Spec((3,), 2, "regression"), Spec((3,), 4, "classification")
SPECS = pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION, CONTINUOUS, DISCRETE], ids=lambda spec: spec.kind)
SMALL = Network(hidden=(5,), activation="tanh")
IMAGES = Spec((1, 16, 16), 3, "classification")


@float64
@SPECS
@pytest.mark.parametrize(("steps", "first_order"), [(1, False), (2, False), (2, True)])
def test_a_context_for_every_feature_is_maml_on_a_bias(spec, steps, first_order):
    """With the identity as its map, and a bias to start from, the context is the bias's change."""
    options = {"steps": steps, "step_size": 0.3, "first_order": first_order, "network": SMALL}
    cavia, maml = CAVIA(context=5, **options).build(spec), MAML(adapt_only=("hidden_0.bias",), **options).build(spec)
    network = synthetic.initial(maml)
    params = network | {"context_shift:hidden_0": torch.eye(5)}
    experience = synthetic.experience(maml, network)
    state, expected = cavia.begin(params, experience.descriptors), maml.begin(network, experience.descriptors)
    for support in experience.supports:
        state, expected = cavia.adapt(state, support), maml.adapt(expected, support)
    assert state.context.abs().max() > 1e-3
    torch.testing.assert_close(state.networks, expected.params)
    found = meta_gradient(cavia, params, experience)
    del found["context_shift:hidden_0"]
    torch.testing.assert_close(found, meta_gradient(maml, network, experience), rtol=1e-9, atol=1e-11)


@float64
@SPECS
@pytest.mark.parametrize("context_in", ["input", "film"])
@pytest.mark.parametrize("steps", [1, 2])
def test_meta_gradient_matches_finite_differences(spec, context_in, steps):
    learner = CAVIA(context=3, context_in=context_in, steps=steps, step_size=0.4, network=SMALL).build(spec)
    params = synthetic.initial(learner)
    experience = synthetic.experience(learner, params)
    # Leave the policy that acted, where a ratio of 1 would hide its derivative.
    params = {name: value + 0.02 * (1 + index) for index, (name, value) in enumerate(params.items())}

    def loss(moved):
        return learner.meta_loss(moved, experience)[0].mean()

    assert_finite_differences(loss, params, meta_gradient(learner, params, experience))


def modulated(params, context, inputs, context_in):
    """One task's network, with the context where the paper has it."""
    maps = {name.partition(":")[0]: value for name, value in params.items() if ":" in name}
    weight, bias = params["hidden_0.weight"], params["hidden_0.bias"]
    if context_in == "input":
        wide = torch.cat([inputs, context.expand(*inputs.shape[:-1], -1)], dim=-1)
        features = functional.linear(wide, torch.cat([weight, maps["context_shift"]], dim=1), bias)
    else:
        scale, shift = 1 + maps["context_scale"] @ context, maps["context_shift"] @ context
        features = scale * functional.linear(inputs, weight, bias) + shift
    return functional.linear(torch.tanh(features), params["head.weight"], params["head.bias"])


@float64
@pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("context_in", ["input", "film"])
def test_contexts_are_those_of_a_loop_in_which_networks_read_them(spec, context_in):
    learner = CAVIA(context=3, context_in=context_in, steps=2, step_size=0.5, network=SMALL).build(spec)
    params = synthetic.initial(learner)
    experience = synthetic.experience(learner, params)
    found = meta_gradient(learner, params, experience)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    losses = []
    for task in range(4):
        context = torch.zeros(3, requires_grad=True)
        for batch in (*experience.supports, experience.query):
            own = slow_inner.task_of(batch, task)
            outputs = modulated(leaves, context, own.inputs, context_in)
            classes = spec.kind == "classification"
            loss = (functional.cross_entropy if classes else functional.mse_loss)(outputs, own.targets)
            if batch is not experience.query:
                (slope,) = torch.autograd.grad(loss, context, create_graph=True)
                context = context - 0.5 * slope
        losses.append(loss)
    torch.stack(losses).mean().backward()
    expected = {name: value.grad for name, value in leaves.items()}
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@float64
def test_film_scales_and_shifts_what_batch_norm_gives():
    network = Network("conv4", filters=3)
    learner = CAVIA(context=2, context_in="film", film_layers=("norm_2",), network=network).build(IMAGES)
    params = synthetic.initial(learner)
    assert [name for name in params if ":" in name] == ["context_scale:norm_2", "context_shift:norm_2"]
    experience = synthetic.few_shot(IMAGES)
    state = learner.adapt(learner.begin(params, experience.descriptors), experience.supports[0])
    found, _ = learner.predict(state, experience.query.inputs)
    module = conv4(IMAGES, filters=3).double()
    module.load_state_dict({name: value for name, value in params.items() if ":" not in name})
    for task, context in enumerate(state.context):
        values = experience.query.inputs[task]
        for name, layer in module.named_children():
            values = layer(values)
            if name == "norm_2":
                scale, shift = (params[f"context_{kind}:norm_2"] @ context for kind in ("scale", "shift"))
                values = (1 + scale).reshape(-1, 1, 1) * values + shift.reshape(-1, 1, 1)
        torch.testing.assert_close(found[task], values)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Network(hidden=(4, 3)), ["hidden_0", "hidden_1"]),
        (Network(hidden=(4, 3), normalise=True), ["norm_0", "norm_1"]),
        (Network("conv4", filters=2), [f"norm_{block}" for block in range(4)]),
    ],
    ids=["mlp", "batch norm", "conv4"],
)
def test_film_leaves_out_what_a_norm_would_undo(network, expected):
    params = CAVIA(context_in="film", network=network).build(IMAGES).init(torch.Generator().manual_seed(0))
    assert [name.removeprefix("context_shift:") for name in params if "shift" in name] == expected


def test_every_task_begins_from_zeros_and_the_network_stays():
    learner = CAVIA(network=SMALL).build(REGRESSION)
    params = learner.init(torch.Generator().manual_seed(0))
    experience = synthetic.experience(learner, params)
    state = learner.begin(params, experience.descriptors)
    assert not state.context.any()
    assert state.context.shape == (4, 5)
    adapted = learner.adapt(state, experience.supports[0])
    assert adapted.context.any(1).all()
    changed = {
        name for name, value in adapted.networks.items() if not torch.equal(value, params[name].expand_as(value))
    }
    assert changed == {"hidden_0.bias"}


def test_one_class_leaves_the_context_at_zero():
    spec = Spec((3,), 1, "classification")
    learner = CAVIA(network=SMALL).build(spec)
    params = learner.init(torch.Generator().manual_seed(0))
    experience = synthetic.few_shot(spec)
    state = learner.adapt(learner.begin(params, experience.descriptors), experience.supports[0])
    assert not state.context.any()
    assert learner.predict(state, experience.query.inputs)[0].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "at least 1; multitask trains"),
        ({"steps": 0}, "at least one inner step"),
        ({"step_size": 0.0}, "must be positive"),
        ({"schedule": ()}, "at least one factor"),
        ({"context_in": "head"}, "expected one of input, film"),
        ({"surrogate": "ppo"}, "expected one of"),
        ({"film_layers": ("norm_2",)}, "only context_in=film"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CAVIA(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": Network("conv4", filters=2)}, "use context_in=film"),
        ({"network": Network(normalise=True)}, "use context_in=film"),
        ({"context_in": "film", "network": Network(hidden=())}, "needs a network with hidden layers"),
        ({"context_in": "film", "film_layers": ("conv_1",), "network": Network("conv4")}, "there are norm_0"),
    ],
    ids=["conv4", "batch norm", "linear", "before a norm"],
)
def test_networks_that_let_no_context_through_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CAVIA(**options).build(IMAGES)


@pytest.mark.parametrize("context", [2, 50])
def test_it_learns_sinusoids(context):
    network = Network(hidden=(40, 40))
    settings = Settings(iterations=300, meta_batch_size=25)
    result = train(CAVIA(context=context, network=network), Sinusoid(shots=10), settings=settings)
    found = evaluate(result.learner, result.params, Sinusoid(shots=10), tasks=100, steps=1)
    before, after = (found.metrics[f"loss/step_{step}"]["mean"] for step in (0, 1))
    assert after < 0.7 * before


def test_policies_adapt_by_their_context():
    family = Bandit(arms=5)
    algorithm = CAVIA(step_size=1.0, network=Network(hidden=(32, 32)))
    result = train(algorithm, family, settings=Settings(iterations=20, meta_batch_size=20))
    returns = evaluate(result.learner, result.params, family, tasks=100, steps=2).scores["return"].mean(1)
    assert returns[1] > returns[0] + 0.15
    assert returns[2] > returns[1] - 0.02


def test_an_adapted_policy_is_exported():
    family = PointNavigation(sampling=Sampling(episodes=3, horizon=5))
    algorithm = CAVIA(network=Network(hidden=(8,), activation="tanh"))
    result = train(algorithm, family, settings=Settings(iterations=1, meta_batch_size=2))
    to_ppo(result, family.sample(1, "test", torch.Generator().manual_seed(0)), steps=1)  # checks that it acts alike
