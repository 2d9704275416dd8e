"""Multi-task learning: conditioned networks by hand and by finite differences; fine-tuning; oracle and pre-trained."""

import itertools
from dataclasses import replace

import pytest
import torch
from support import slow_inner, synthetic
from support.synthetic import CONTINUOUS, DISCRETE
from torch import nn

from metarl.algorithms.multitask import MultiTask
from metarl.control.sampling import Sampling
from metarl.evaluation.scores import evaluate
from metarl.fewshot.regression import Regression
from metarl.networks import conditioning
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Examples, Experience, Spec, each_tensor, inputs_of
from metarl_envs.navigation import PointNavigation

float64 = pytest.mark.usefixtures("float64")
SMALL = Network(hidden=(5,), activation="tanh")
CONDITIONS = ("none", "concatenate", "add", "multiply", "heads")
REGRESSION = Spec((3,), 2, "regression", descriptor_size=2)
CLASSIFICATION = Spec((3,), 4, "classification", descriptor_size=2)
DESCRIBED = {
    spec.kind: Spec(spec.input_shape, spec.output_size, spec.kind, descriptor_size=2)
    for spec in (REGRESSION, CLASSIFICATION, CONTINUOUS, DISCRETE)
}


@pytest.fixture(autouse=True)
def one_thread(two_threads):
    """More would only wait for each other on networks of this size."""
    torch.set_num_threads(1)


def prepared(kind, condition, tasks=4, **options):
    learner = MultiTask(**{"condition": condition, "network": SMALL, **options}).build(DESCRIBED[kind])
    generator = torch.Generator().manual_seed(1)
    # A descriptor's weights begin at 0, which would hide mistakes: move every parameter off its start.
    params = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in learner.init(generator).items()
    }
    make = synthetic.rollout if learner.spec.control else synthetic.examples
    query = make(learner.spec, tasks, generator)
    experience = Experience(descriptors=torch.randn(tasks, 2, generator=generator), supports=(), query=query)
    if learner.spec.control:
        experience = synthetic.acted(learner, params, experience, generator)
    return learner, params, experience


def meta_loss(learner, params, experience):
    return learner.meta_loss(params, experience)[0].mean()


def meta_gradient(learner, params, experience):
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    gradients = torch.autograd.grad(meta_loss(learner, leaves, experience), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


@float64
@pytest.mark.parametrize(("kind", "condition"), list(itertools.product(DESCRIBED, CONDITIONS)))
def test_meta_gradient_matches_finite_differences(kind, condition):
    learner, params, experience = prepared(kind, condition)
    params = {name: value + 0.02 for name, value in params.items()}  # leave the policy that acted
    gradient = meta_gradient(learner, params, experience)
    for name, value in params.items():
        for index in torch.linspace(0, value.numel() - 1, min(4, value.numel())).long().unique().tolist():
            ends = []
            for width in (1e-5, -1e-5):
                moved = {key: tensor.clone() for key, tensor in params.items()}
                moved[name].view(-1)[index] += width
                ends.append(float(meta_loss(learner, moved, experience)))
            expected = (ends[0] - ends[1]) / 2e-5
            assert float(gradient[name].view(-1)[index]) == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def network_of(condition, params, told):
    """One task's network, written out from the meta-parameters and its descriptor ``[2]``."""
    own = {name: value for name, value in params.items() if not name.startswith("condition:")}
    if condition == "add":
        own["hidden_0.bias"] = own["hidden_0.bias"] + params["condition:hidden_0"] @ told
    elif condition == "multiply":
        scale = 1 + params["condition:hidden_0"] @ told
        own["hidden_0.weight"], own["hidden_0.bias"] = (
            scale[:, None] * own["hidden_0.weight"],
            scale * own["hidden_0.bias"],
        )
    elif condition == "heads":
        for name in ("head.weight", "head.bias"):
            own[name] = told[0] * params[name][0] + told[1] * params[name][1]
    return own


@float64
@pytest.mark.parametrize(("kind", "condition"), list(itertools.product(DESCRIBED, CONDITIONS)))
def test_batched_equals_a_plain_loop_over_tasks(kind, condition):
    learner, params, experience = prepared(kind, condition)
    losses = []
    for task in range(4):
        query = slow_inner.task_of(experience.query, task)
        told = experience.descriptors[task]
        if condition == "concatenate":
            inputs, field = inputs_of(query), "inputs" if isinstance(query, Examples) else "observations"
            query = replace(query, **{field: torch.cat([inputs, told.expand(*inputs.shape[:-1], 2)], -1)})
        losses.append(slow_inner.loss(kind, network_of(condition, params, told), query))
    torch.testing.assert_close(meta_loss(learner, params, experience), torch.stack(losses).mean())


@float64
@pytest.mark.parametrize(("kind", "condition"), list(itertools.product(DESCRIBED, CONDITIONS)))
def test_tasks_are_independent_and_their_order_does_not_matter(kind, condition):
    learner, params, experience = prepared(kind, condition)
    order = torch.tensor([2, 0, 3, 1])
    query = each_tensor(lambda values: values[order], experience.query)
    shuffled = Experience(descriptors=experience.descriptors[order], supports=(), query=query)
    torch.testing.assert_close(meta_loss(learner, params, shuffled), meta_loss(learner, params, experience))
    torch.testing.assert_close(meta_gradient(learner, params, shuffled), meta_gradient(learner, params, experience))

    field = "advantages" if learner.spec.control else "inputs"
    values = getattr(experience.query, field).clone()
    values[1] *= -3
    state = learner.begin(params, experience.descriptors)
    before = learner.adapt(state, experience.query).tuned.params
    after = learner.adapt(state, replace(experience.query, **{field: values})).tuned.params
    for name in before:
        assert torch.equal(before[name][[0, 2, 3]], after[name][[0, 2, 3]])
        assert not torch.equal(before[name][1], after[name][1])


@float64
@pytest.mark.parametrize("condition", ["add", "multiply"])
def test_features_begin_as_those_of_the_plain_network(condition):
    plain, conditioned = (MultiTask(condition=name, network=SMALL).build(REGRESSION) for name in ("none", condition))
    generator = torch.Generator().manual_seed(2)
    inputs, told = torch.randn(3, 6, 3, generator=generator), torch.randn(3, 2, generator=generator)
    first, second = (one.init(torch.Generator().manual_seed(0)) for one in (plain, conditioned))
    assert set(second) - set(first) == {"condition:hidden_0"}
    outputs = [
        one.predict(one.begin(params, told), inputs)[0] for one, params in ((plain, first), (conditioned, second))
    ]
    assert torch.equal(*outputs)


def test_a_one_hot_descriptor_chooses_a_head_of_its_own():
    learner = MultiTask(condition="heads", network=SMALL).build(REGRESSION)
    params = learner.init(torch.Generator().manual_seed(0))
    assert params["head.weight"].shape == (2, 2, 5)
    assert not torch.equal(params["head.weight"][0], params["head.weight"][1])
    networks = learner.begin(params, torch.eye(2)).tuned.params
    for name in ("head.weight", "head.bias"):
        assert torch.equal(networks[name], params[name])
    assert torch.equal(networks["hidden_0.weight"][0], networks["hidden_0.weight"][1])


class Convolutions(nn.Sequential):
    """A small network of images, with a norm between."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3)
        self.flatten, self.head = nn.Flatten(-3), nn.Linear(12, spec.output_size)

    def forward(self, inputs):
        return self.head(self.flatten(torch.relu(self.norm(self.convolution(inputs)))))


@float64
@pytest.mark.parametrize("condition", ["add", "multiply"])
def test_any_network_with_hidden_layers_can_be_conditioned(condition):
    spec = Spec((1, 4, 4), 2, "classification", descriptor_size=2)
    network = Network(architecture=Convolutions)
    conditioned = conditioning.build(condition, network, spec)
    params = conditioned.init(torch.Generator().manual_seed(0))
    maps = {name: value.shape for name, value in params.items() if name.startswith("condition:")}
    assert maps == {"condition:convolution": (3, 2), "condition:norm": (3, 2)}
    generator = torch.Generator().manual_seed(2)
    params["condition:norm"] = torch.randn(3, 2, generator=generator)
    told, images = torch.randn(5, 2, generator=generator), torch.randn(5, 7, 1, 4, 4, generator=generator)
    found = conditioned.model.apply(conditioned.networks(params, told), images)
    for task in range(5):
        module = Convolutions(spec)
        module.load_state_dict({name: value for name, value in params.items() if "condition" not in name})
        features, change = module.norm(module.convolution(images[task])), params["condition:norm"] @ told[task]
        shift, scale = (change, 0 * change) if condition == "add" else (0 * change, change)
        features = features * (1 + scale)[:, None, None] + shift[:, None, None]
        torch.testing.assert_close(found[task], module.head(module.flatten(torch.relu(features))))


@float64
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_fine_tuning_takes_steps_by_the_schedule_on_each_tasks_own_network(optimiser):
    learner, params, _ = prepared("regression", "heads", step_size=0.2, schedule=(1.0, 0.5), optimiser=optimiser)
    generator = torch.Generator().manual_seed(3)
    support, told = synthetic.examples(REGRESSION, 4, generator), torch.randn(4, 2, generator=generator)
    state = learner.begin(params, told)
    for _ in range(3):
        state = learner.adapt(state, support)
    for task in range(4):
        own = {
            name: value.detach().clone().requires_grad_()
            for name, value in network_of("heads", params, told[task]).items()
        }
        steps = slow_inner.optimiser(optimiser, list(own.values()), 0.2)
        for step_size in (0.2, 0.1, 0.1):
            steps.param_groups[0]["lr"] = step_size
            steps.zero_grad()
            slow_inner.loss("regression", own, slow_inner.task_of(support, task)).backward()
            steps.step()
        for name, value in own.items():
            torch.testing.assert_close(state.tuned.params[name][task], value.detach(), rtol=1e-8, atol=1e-10)


@float64
def test_by_default_only_control_halves_its_steps():
    for kind, factors in (("continuous", (1.0, 0.5)), ("regression", (1.0,))):
        for schedule in (None, factors):
            learner, params, experience = prepared(kind, "none", schedule=schedule)
            state = learner.begin(params, experience.descriptors)
            for _ in range(3):
                state = learner.adapt(state, experience.query)
            if schedule is None:
                expected = state.tuned.params
        torch.testing.assert_close(state.tuned.params, expected, rtol=0, atol=0)


@float64
@pytest.mark.parametrize("update", [TRPO(), ProMP(), Adam()], ids=["trpo", "promp", "adam"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_policies_are_trained_by_every_outer_update(update, condition):
    learner, params, experience = prepared("continuous", condition)
    assert learner.adaptations == 0
    found = update.update(learner, params, update.init(params), experience)
    assert found.finite
    assert meta_loss(learner, found.params, experience) < meta_loss(learner, params, experience)


@pytest.mark.parametrize(
    ("spec", "network", "condition", "message"),
    [
        (Spec((3,), 2, "classification"), SMALL, "add", "nothing describes the tasks of this family"),
        (Spec((1, 4, 4), 2, "regression", 2), SMALL, "concatenate", r"vectors, not of shape \(1, 4, 4\)"),
        (REGRESSION, Network(hidden=()), "add", "needs a network with hidden layers"),
        (REGRESSION, Network(hidden=()), "multiply", "needs a network with hidden layers"),
        (REGRESSION, Network(architecture=lambda spec: nn.Linear(3, 2)), "heads", "last layer is called 'head'"),
    ],
)
def test_what_cannot_be_conditioned_is_refused(spec, network, condition, message):
    with pytest.raises(ValueError, match=message):
        MultiTask(condition=condition, network=network).build(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "film"}, "expected one of none, concatenate, add, multiply, heads"),
        ({"optimiser": "adagrad"}, "expected one of sgd, adam"),
        ({"step_size": 0.0}, "must be positive"),
        ({"schedule": ()}, "at least one factor"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiTask(**options)


@pytest.mark.parametrize("condition", ["concatenate", "add", "multiply", "heads"])
def test_the_oracle_beats_the_pretrained_network(condition):
    family = Regression(lambda inputs, slope, offset: slope * inputs + offset, {"slope": (-1, 1), "offset": (-1, 1)})
    losses = []
    for name in ("none", condition):
        algorithm = MultiTask(condition=name, network=Network(hidden=(20,)))
        result = train(algorithm, family, Adam(1e-2), Settings(iterations=150, meta_batch_size=20))
        found = evaluate(result.learner, result.params, family, tasks=50, steps=1)
        losses.append(found.scores["loss"].mean(1).tolist())
    (pretrained, tuned), (oracle, _) = losses
    assert tuned < pretrained
    assert oracle < 0.3 * pretrained


def test_the_oracle_of_navigation_finds_its_goals():
    family = PointNavigation(sampling=Sampling(episodes=10, horizon=20))
    algorithm = MultiTask(condition="concatenate", network=Network(hidden=(32,), activation="tanh"))
    settings = Settings(iterations=12, meta_batch_size=20)
    result = train(algorithm, family, TRPO(max_kl=0.1), settings)
    found = evaluate(result.learner, result.params, family, tasks=50, steps=0)
    before = evaluate(result.learner, result.learner.init(torch.Generator().manual_seed(0)), family, tasks=50, steps=0)
    assert found.scores["return"].mean() > 0.7 * before.scores["return"].mean()
