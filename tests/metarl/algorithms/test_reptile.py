"""Reptile against a plain loop over tasks with torch's own optimisers; its options; that it learns."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from support import slow_inner, synthetic
from support.synthetic import CONTINUOUS, DISCRETE

from metarl.algorithms.maml import MAML
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.shared.mini_batches import positions
from metarl.evaluation.scores import evaluate
from metarl.networks.options import Network
from metarl.numerics import flatten
from metarl.outer.gradient import SGD, Adam
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.training.settings import Settings
from metarl.training.start import train
from metarl.types import Examples, Experience, Spec, each_tensor
from metarl_envs.bandit import Bandit

float64 = pytest.mark.usefixtures("float64")


@pytest.fixture(autouse=True)
def one_thread(two_threads):
    """More would only wait for each other on networks of this size."""
    torch.set_num_threads(1)


REGRESSION, CLASSIFICATION = Spec((3,), 2, "regression"), Spec((3,), 4, "classification")
SPECS = pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION, CONTINUOUS, DISCRETE], ids=lambda spec: spec.kind)
SMALL = Network(hidden=(5,), activation="tanh")


def built(spec, **options):
    learner = Reptile(**{"network": SMALL, "carry_moments": False, "step_size": 0.1, **options}).build(spec)
    return learner, learner.init(torch.Generator().manual_seed(0))


def meta_gradient(learner, params, experience):
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    loss, metrics = learner.meta_loss(leaves, experience)
    gradients = torch.autograd.grad(loss.mean(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True)), metrics


def mini_batches(options, experience, task):
    """Batches of one task's inner steps: slices of the support set in order, whose order the tests below pin."""
    supports = [slow_inner.task_of(support, task) for support in experience.supports]
    if isinstance(experience.query, Examples):
        items, size = len(supports[0].targets) if supports else 0, options["batch_size"]
        for step, support in enumerate(supports):
            chosen = positions(options["mini_batches"], items, min(size, items), step)
            supports[step] = Examples(inputs=support.inputs[chosen], targets=support.targets[chosen])
    tail = [slow_inner.task_of(experience.query, task)] if options["tail"] == "separate" else []
    return [*supports, *tail]


@float64
@SPECS
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("combine", "tail", "steps"), list(itertools.product(["sum", "last"], ["shared", "separate"], [1, 4]))
)
def test_meta_gradient_is_the_mean_way_that_single_tasks_went(spec, optimiser, combine, tail, steps):
    options = {"optimiser": optimiser, "combine": combine, "tail": tail, "batch_size": 4, "mini_batches": "cycle"}
    learner, params = built(spec, steps=steps, **options)
    experience = synthetic.experience(learner, params)
    found, _ = meta_gradient(learner, params, experience)
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for task in range(4):
        batches = mini_batches(options, experience, task)
        history = slow_inner.train(spec.kind, params, batches, optimiser, 0.1)
        origin = history[0] if combine == "sum" else history[-2]
        for name, total in expected.items():
            total += (origin[name] - history[-1][name]) / 4
    assert max(value.abs().max() for value in expected.values()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@float64
def test_inner_gradients_of_descent_add_up():
    """With gradient descent the way gone is the step size times g1 + g2 + g3 + g4, or only the last of them."""
    gradients = []
    for steps in (1, 2, 3, 4):
        learner, params = built(CLASSIFICATION, steps=steps, optimiser="sgd", combine="last", batch_size=2)
        experience = synthetic.experience(learner, params)
        gradients.append(flatten(meta_gradient(learner, params, experience)[0].values()))
    learner, _ = built(CLASSIFICATION, steps=4, optimiser="sgd", batch_size=2)
    experience = synthetic.experience(learner, params)
    torch.testing.assert_close(flatten(meta_gradient(learner, params, experience)[0].values()), sum(gradients))


@float64
@pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION], ids=lambda spec: spec.kind)
def test_one_inner_step_is_joint_training(spec):
    learner, params = built(spec, steps=1, optimiser="sgd", batch_size=None, step_size=0.3)
    experience = synthetic.experience(learner, params)
    moved = SGD(anneal=False).update(learner, params, {}, experience).params
    joint = MultiTask(network=SMALL).build(spec)
    same_data = Experience(descriptors=experience.descriptors, supports=(), query=experience.supports[0])
    expected = SGD(learning_rate=0.3, anneal=False).update(joint, params, {}, same_data).params
    torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-12)


@float64
@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION, CONTINUOUS], ids=lambda spec: spec.kind)
def test_the_last_gradient_on_the_query_set_is_first_order_maml(spec, steps):
    learner, params = built(spec, steps=steps, optimiser="sgd", combine="last", tail="separate", batch_size=None)
    maml = MAML(steps=steps - 1, step_size=0.1, first_order=True, schedule=(1.0,), network=SMALL).build(spec)
    assert learner.adaptations == maml.adaptations == steps - 1
    experience = synthetic.experience(learner, params)
    expected, scores = meta_gradient(maml, params, experience)
    found, told = meta_gradient(learner, params, experience)
    torch.testing.assert_close(found, {name: 0.1 * value for name, value in expected.items()}, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(told, scores)


@float64
def test_the_whole_way_leads_to_the_mean_of_the_trained_networks():
    learner, params = built(REGRESSION, steps=3)
    experience = synthetic.experience(learner, params)
    state = learner.begin(params, experience.descriptors)
    for support in experience.supports:
        state = learner.adapt(state, support)
    moved = SGD(anneal=False).update(learner, params, {}, experience)
    for name, value in state.params.items():
        torch.testing.assert_close(moved.params[name], value.mean(0))
    distances = sum(((value - params[name]) ** 2).flatten(1).sum(1) for name, value in state.params.items())
    assert float(moved.metrics["outer/loss"]) == pytest.approx(float(distances.mean()) / 2)
    outputs, _ = learner.predict(state, experience.query.inputs)
    expected = (outputs - experience.query.targets).square().mean()
    assert float(moved.metrics["loss/step_3"]) == pytest.approx(float(expected))


@float64
def test_serial_reptile_carries_adams_moments_as_one_optimiser_would():
    """The paper's code goes from task to task with one optimiser, which forgets nothing on the way."""
    learner, params = built(REGRESSION, steps=3, carry_moments=True, batch_size=None)
    network = {name: value for name, value in params.items() if "moment" not in name}
    own = {name: value.clone().requires_grad_() for name, value in network.items()}
    steps = slow_inner.optimiser("adam", list(own.values()), 0.1)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        support = synthetic.examples(REGRESSION, 1, generator)
        experience = Experience(descriptors=torch.zeros(1, 0), supports=(support,) * 3, query=support)
        params = SGD(anneal=False).update(learner, params, {}, experience).params
        for _ in range(3):
            steps.zero_grad()
            slow_inner.loss("regression", own, slow_inner.task_of(support, 0)).backward()
            steps.step()
    for name, value in own.items():
        torch.testing.assert_close(params[name], value.detach(), rtol=1e-8, atol=1e-10)
    assert float(params["second_moment_weight"]) == pytest.approx(1 - 0.999**12)


@float64
def test_moments_are_meta_parameters_only_where_they_are_carried():
    names = {"hidden_0.weight", "hidden_0.bias", "head.weight", "head.bias"}
    assert set(built(REGRESSION)[1]) == names
    assert set(built(REGRESSION, optimiser="sgd", carry_moments=True)[1]) == names
    carried = built(REGRESSION, carry_moments=True)[1]
    assert set(carried) == names | {f"second_moment:{name}" for name in names} | {"second_moment_weight"}


def test_a_cycle_uses_each_item_once_in_every_round():
    steps = [positions("cycle", 10, 4, step).tolist() for step in range(5)]
    visited = [position for chosen in steps for position in chosen]
    assert sorted(visited[:10]) == sorted(visited[10:]) == list(range(10))
    assert visited[:10] != visited[10:]


def test_with_replacement_items_come_back_before_all_were_used():
    steps = [positions("replacement", 10, 4, step).tolist() for step in range(50)]
    assert all(len(set(chosen)) == 4 for chosen in steps)
    assert len(set(steps[0] + steps[1])) < 8 or len({*steps[0], *steps[1], *steps[2]}) < 10
    counts = [sum(chosen.count(item) for chosen in steps) for item in range(10)]
    assert min(counts) > 10


@float64
@pytest.mark.parametrize("size", [None, 6, 50])
def test_mini_batches_are_at_most_the_support_set(size):
    learner, params = built(REGRESSION, steps=2, batch_size=size)
    whole, _ = built(REGRESSION, steps=2, batch_size=6)
    experience = synthetic.experience(learner, params)
    found, expected = (meta_gradient(one, params, experience)[0] for one in (learner, whole))
    assert all(torch.equal(found[name], expected[name]) for name in found)


@float64
@SPECS
@pytest.mark.parametrize("tail", ["shared", "separate"])
def test_tasks_are_independent_and_their_order_does_not_matter(spec, tail):
    learner, params = built(spec, steps=3, tail=tail, batch_size=4)
    experience = synthetic.experience(learner, params)
    order = torch.tensor([2, 0, 3, 1])

    def permuted(batch):
        return each_tensor(lambda values: values[order], batch)

    shuffled = Experience(
        descriptors=experience.descriptors,
        supports=tuple(map(permuted, experience.supports)),
        query=permuted(experience.query),
    )
    expected, scores = meta_gradient(learner, params, experience)
    found, told = meta_gradient(learner, params, shuffled)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(told, {name: values[order] for name, values in scores.items()})

    field = "advantages" if spec.control else "inputs"
    values = getattr(experience.supports[0], field).clone()
    values[1] *= -3
    changed = replace(experience.supports[0], **{field: values})
    before = learner.adapt(learner.begin(params, experience.descriptors), experience.supports[0]).params
    after = learner.adapt(learner.begin(params, experience.descriptors), changed).params
    for name in before:
        assert torch.equal(before[name][[0, 2, 3]], after[name][[0, 2, 3]])
        assert not torch.equal(before[name][1], after[name][1])


@float64
@pytest.mark.parametrize("update", [SGD, Adam])
@pytest.mark.parametrize("spec", [REGRESSION, CONTINUOUS], ids=lambda spec: spec.kind)
def test_groups_of_tasks_equal_the_whole(update, spec):
    learner, params = built(spec, steps=2, carry_moments=update is SGD)
    experience = synthetic.experience(learner, params)
    whole, parts = (update(chunks=chunks) for chunks in (1, 3))
    expected = whole.update(learner, params, whole.init(params), experience)
    found = parts.update(learner, params, parts.init(params), experience)
    torch.testing.assert_close(found.params, expected.params, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        {name: torch.as_tensor(value) for name, value in found.metrics.items()},
        {name: torch.as_tensor(value) for name, value in expected.metrics.items()},
    )


@float64
@pytest.mark.parametrize("update", [TRPO(), ProMP()], ids=["trpo", "promp"])
def test_updates_through_adaptation_are_refused(update):
    learner, params = built(CONTINUOUS, steps=2)
    experience = synthetic.experience(learner, params)
    with pytest.raises(ValueError, match="use sgd or adam"):
        update.update(learner, params, update.init(params), experience)


def test_its_own_outer_update_is_annealed_gradient_descent():
    assert Reptile().default_outer() == SGD(learning_rate=1.0, anneal=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least one inner step"),
        ({"step_size": math.nan}, "must be positive"),
        ({"batch_size": 0}, "at least 1, or None for the whole support set"),
        ({"optimiser": "adamw"}, "optimiser='adamw': expected sgd or adam"),
        ({"mini_batches": "random"}, "expected cycle or replacement"),
        ({"combine": "first"}, "expected sum or last"),
        ({"tail": "own"}, "expected shared or separate"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Reptile(**options)


def test_bandits_are_learned():
    family = Bandit(arms=5)
    algorithm = Reptile(steps=3, optimiser="sgd", step_size=1.0, network=Network(hidden=(32,)))
    result = train(algorithm, family, settings=Settings(iterations=30, meta_batch_size=20))
    assert list(result.rows[0])[1:5] == [f"return/step_{step}" for step in range(4)]
    untrained = result.learner.init(torch.Generator().manual_seed(0))
    found, before = (
        evaluate(result.learner, params, family, tasks=100, steps=3).scores["return"].mean(1).tolist()
        for params in (result.params, untrained)
    )
    assert found[0] == pytest.approx(before[0], abs=0.05)
    assert found[1] > before[1] + 0.05
    assert found[2] > before[2] + 0.03
